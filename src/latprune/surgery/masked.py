"""The masked executor: the user's dense model, run as if the removed channels and blocks were not there.

It follows the recorded sequence of operations and hides what is removed from every operation that reads it, so it needs no index into any
weight. Surgery is checked against it; the two share nothing but the labels of the recording.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.copying import laid_out_otherwise
from latprune.errors import CaptureError, InvalidArgumentError
from latprune.graph.conditions import capture_conditions, during_calls, forget_cached, preserved_buffers, preserved_state, unfolded
from latprune.graph.example_inputs import own_copy
from latprune.graph.surgery_plan import SurgeryPlan
from latprune.graph.tensors import tensors_in
from latprune.graph.types import Call, ChannelGroup, Selection
from latprune.modes import preserved_modes
from latprune.surgery.masked_follower import Follower

__all__ = ["MaskedModel", "MaskedRun", "RecordedModel", "keep_mask", "masked"]

IntArray = npt.NDArray[np.int64]


class RecordedModel(Protocol):
    """What the executor reads of a traced model; :class:`latprune.graph.ModelGraph` has it."""

    @property
    def groups(self) -> Mapping[str, ChannelGroup]:
        """Channel groups by name."""

    @property
    def calls(self) -> tuple[Call, ...]:
        """The recorded operations, in order."""

    @property
    def plan(self) -> SurgeryPlan:
        """``within`` and ``scales`` are read: the sub-module whose operations were recorded, and weights that keep a scale."""

    @property
    def class_units(self) -> Sequence[tuple[tuple[str, int], ...]]:
        """Coordinate class -> the units that it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskedRun:
    """What one run of a masked model gave.

    Attributes:
        output: As the dense model gives it, removed coordinates at 0.
        masks: By ``id`` of an output tensor that carries removed coordinates: which of its places are kept, broadcastable to it.
        types: Floating-point types that channels were computed in on the way (a norm may compute in a narrower one than the model).
    """

    output: Any
    masks: Mapping[int, Tensor]
    types: frozenset[torch.dtype]


def masked(model: nn.Module, graph: RecordedModel, selection: Selection) -> MaskedModel:
    """The dense ``model`` with everything hidden that ``selection`` removes; it computes what the pruned network must compute.

    A removed coordinate reads as 0 wherever it is read, after norm and activation; a removed block contributes exactly 0 where it joins its
    shortcut; norms, means and softmax over a pruned dimension use the kept coordinates only; attention keeps the dense scale.

    Args:
        model: The dense model that was traced, unchanged since. It is not modified.
        graph: Its traced graph.
        selection: Kept units and removed blocks.

    Returns:
        A callable with the signature of the model's ``forward``.

    Raises:
        InvalidArgumentError: The selection names an unknown group, unit or block.
    """
    return MaskedModel(model, graph, selection)


class MaskedModel:
    """See :func:`masked`. Runs in evaluation mode and without gradients, with inputs shaped like the traced example's."""

    def __init__(self, model: nn.Module, graph: RecordedModel, selection: Selection) -> None:
        self.model = model
        self.selection = selection
        self._calls = graph.calls
        self._within = graph.plan.within
        self._kept = _kept_classes(graph, selection)
        self.carriers = frozenset(member.tensor for group in graph.groups.values() for member in group.members)
        """Names of the parameters and buffers that carry channels of a group."""
        self.rescaled = _rescaled(graph, selection)
        self._removed = selection.removed_blocks
        joins = {block for call in graph.calls for block in call.joins}
        unknown = sorted(self._removed - joins)
        if unknown:
            raise InvalidArgumentError(
                f"removed_blocks (={unknown}) must be blocks that join a shortcut in the recorded run: {sorted(joins)}"
            )
        self._masks: dict[int, Tensor | None] = {}
        self._last = max((call.index for call in graph.calls if self._concerns(call)), default=-1)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs as the dense model gives them; removed coordinates of an output read as 0."""
        return self.run(args, kwargs).output

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MaskedRun:
        """Run once; in the other memory layout where only in that one the operations are those that were recorded.

        The layout is no part of a network, but composite operations choose their parts by strides, and training may change them.

        Raises:
            CaptureError: The run performs other operations than the recorded one did.
        """
        try:
            return self._follow(*own_copy((args, kwargs)))
        except CaptureError:
            if not any(parameter.ndim == 4 for parameter in self.model.parameters()):
                raise
            try:
                return self.with_model(laid_out_otherwise(self.model))._follow(args, kwargs)
            except CaptureError:
                pass  # the first run's words are those of the model as it is
            raise

    def _follow(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MaskedRun:
        follower = Follower(self)
        with _conditions(self.model), during_calls(self.model, self._within, follower):
            output = self.model(*args, **kwargs)
        follower.finish()
        masks = {}
        for tensor in tensors_in(output):
            mask = follower.mask_of(tensor)
            if mask is not None:
                tensor.masked_fill_(mask.logical_not().to(tensor.device), 0)
                masks[id(tensor)] = mask
        return MaskedRun(output=output, masks=masks, types=frozenset(follower.types))

    def with_model(self, model: nn.Module) -> MaskedModel:
        """The same masks over another instance of the same model (a copy in another type, on another device)."""
        other = copy.copy(self)
        other.model = model
        return other

    def mask(self, fields: tuple[IntArray, ...]) -> Tensor | None:
        """Which places of a tensor with these fields are kept, broadcastable to it; None where all are."""
        combined: Tensor | None = None
        for field in fields:
            if id(field) not in self._masks:
                self._masks[id(field)] = keep_mask(field, self._kept)
            mask = self._masks[id(field)]
            if mask is not None:
                combined = mask if combined is None else combined & mask
        return combined

    def call(self, index: int) -> Call | None:
        """The recorded operation at a place of the sequence."""
        return self._calls[index] if index < len(self._calls) else None

    @property
    def recorded(self) -> int:
        """Number of recorded operations."""
        return len(self._calls)

    @property
    def last(self) -> int:
        """Place of the last operation that removed channels or blocks concern; what comes after it may take any course."""
        return self._last

    def removes(self, block: str) -> bool:
        """Whether a block is removed."""
        return block in self._removed

    def _concerns(self, call: Call) -> bool:
        fields = (*call.all_fields, *call.all_output_fields)
        return not self._removed.isdisjoint(call.joins) or any(self.mask(found) is not None for found in fields)


def _rescaled(graph: RecordedModel, selection: Selection) -> bool:
    """Whether cutting multiplies weights to keep a scale that follows a size, which rounds them."""
    dense = {name: group.columns for name, group in graph.groups.items()}
    widths = {name: len(selection.kept[name]) // g.rows if name in selection.kept else g.columns for name, g in graph.groups.items()}
    return any(use.axis.size(dense) != use.axis.size(widths) for use in graph.plan.scales)


def keep_mask(field: IntArray, kept: npt.NDArray[np.bool_]) -> Tensor | None:
    """Boolean tensor of the field's shape: True where the coordinate class is kept (-1 always is); None where all are."""
    keep = np.where(field < 0, True, kept[np.maximum(field, 0)]) if kept.size else np.ones(field.shape, dtype=bool)
    return None if bool(keep.all()) else torch.from_numpy(np.ascontiguousarray(keep))


def _kept_classes(graph: RecordedModel, selection: Selection) -> npt.NDArray[np.bool_]:
    """``(classes,)``: a class is kept when every unit that it belongs to is."""
    kept_units: dict[str, npt.NDArray[np.bool_]] = {}
    for name, units in selection.kept.items():
        if name not in graph.groups:
            raise InvalidArgumentError(f"kept names the group {name!r}, which the graph does not have")
        group = graph.groups[name]
        if units.size and (int(units.min()) < 0 or int(units.max()) >= group.units):
            raise InvalidArgumentError(f"kept[{name!r}] holds unit {int(units.max())}; the group has {group.units} units")
        mask = np.zeros(group.units, dtype=bool)
        mask[units] = True
        kept_units[name] = mask
    kept = np.ones(len(graph.class_units), dtype=bool)
    for index, memberships in enumerate(graph.class_units):
        kept[index] = all(bool(kept_units[name][unit]) for name, unit in memberships if name in kept_units)
    return kept


@contextmanager
def _conditions(model: nn.Module) -> Iterator[None]:
    """The conditions under which the recorded run was made; afterwards the model is as it was, without what the run cached in it."""
    try:
        with preserved_modes(model), capture_conditions(), unfolded(model), preserved_state(model), preserved_buffers(model):
            for module in model.modules():
                module.training = False
            yield
    finally:
        forget_cached(model)
