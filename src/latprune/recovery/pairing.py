"""Which operation of the dense network each operation of the pruned one is, and which places of its result are kept."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, Selection
from latprune.recovery.parameter_names import ParameterNames
from latprune.recovery.sites import Site
from latprune.recovery.stepper import Sequence_
from latprune.surgery.masked import _kept_classes, keep_mask
from latprune.surgery.plan import plan_step

__all__ = ["UNKNOWN", "Pairing", "aligned", "kept_values"]

UNKNOWN = (
    "which channels are kept at its place is not known: the network runs other operations on the data than on the example inputs; trace it "
    "with a batch like the data's"
)


def kept_values(tensor: Tensor, mask: Tensor | None, shape: tuple[int, ...] | None = None) -> Tensor:
    """The kept places of a dense tensor.

    Args:
        tensor: Result of the dense network.
        mask: Which places are kept, broadcastable to it; None where all are.
        shape: Shape that the pruned network's tensor has; needed where channels lie on several dimensions.

    Raises:
        InvalidArgumentError: The kept places do not fit the shape.
    """
    if mask is None:
        return tensor
    carrying = [d for d, n in enumerate(mask.shape) if n > 1]
    if len(carrying) == 1:
        return tensor.index_select(carrying[0], mask.reshape(-1).nonzero().reshape(-1).to(tensor.device))
    values = tensor[mask.to(tensor.device).expand(tensor.shape)]
    if shape is None or values.numel() != int(np.prod(shape)):
        raise InvalidArgumentError(f"{values.numel()} kept values do not fit the pruned network's shape {shape}")
    return values.reshape(shape)


class Pairing:
    """The operations of both networks side by side.

    Args:
        graph: Trace of the dense network.
        selection: What the pruned network was cut to.
        dense: Recorded run of the dense network.
        pruned: Recorded run of the pruned network.
        dense_model: The dense network (its parameters name the operations).
        pruned_model: The pruned network.

    Attributes:
        dense_of: Operation of the pruned network -> operation of the dense one.
        call_of: Operation of the dense network -> place in ``graph.calls``.
    """

    def __init__(
        self,
        graph: ModelGraph,
        selection: Selection,
        dense: Sequence_,
        pruned: Sequence_,
        dense_model: nn.Module,
        pruned_model: nn.Module,
    ) -> None:
        self.graph = graph
        self.removed = selection.removed_blocks
        self.kept: npt.NDArray[np.bool_] = _kept_classes(graph, selection)
        dense_tokens = [(str(op.func), op.module) for op in dense.operations]
        calls = [(call.op, call.module) for call in graph.calls]
        self.call_of = aligned(calls, dense_tokens)
        gone = {
            d
            for d, c in self.call_of.items()
            if not self.removed.isdisjoint(graph.calls[c].blocks) or not self.removed.isdisjoint(graph.calls[c].joins)
        }
        named_dense, named_pruned = self._named(dense_model), self._named(pruned_model)
        left = [d for d in range(len(dense.operations)) if d not in gone]
        found = aligned(
            [(*dense_tokens[d], _parameters(dense.operations[d], named_dense)) for d in left],
            [(str(op.func), op.module, _parameters(op, named_pruned)) for op in pruned.operations],
        )
        self.dense_of = {p: left[k] for p, k in found.items()}
        self._shapes = [op.result_shapes[:1] for op in dense.operations]
        both = self.dense_of if pruned is not dense else {}  # features are of the dense network alone
        self._left = {d: pruned.operations[p].result_shapes[:1] for p, d in both.items()}
        self._masks: dict[int, Tensor | None] = {}
        step = plan_step(dense_model, graph, selection)
        self._scales = step.scales
        self._edits = {edit.name: edit for edit in step.tensors}
        self._sizes = {name: tuple(t.shape) for name, t in dense_model.named_parameters()}
        self._pruned = dict(pruned_model.named_parameters())

    def _known(self, name: str) -> str:
        """What the graph calls a tensor: a tied one may have lost that name with a block."""
        return str(self.graph.plan.aliases.get(name, name))

    def _named(self, model: nn.Module) -> ParameterNames:
        named = (*model.named_parameters(), *model.named_buffers())
        return ParameterNames((self._known(name), tensor) for name, tensor in named if isinstance(tensor, Tensor))

    def output_scale(self, site: Site) -> Tensor | None:
        """``(outputs,)`` float64: factors that surgery put on a layer's filters (attention keeps its dense scale); None: all 1.

        They are those of the part of the parameter that the layer reads: queries and keys may be chunks of one packed projection.
        """
        tensor = self._known(site.tensor)
        dims = {scale.dim for scale in self._scales if scale.name == tensor}
        if not dims:
            return None
        parameter, weight = self._pruned[site.tensor], site.weight
        assert weight is not None
        along = site.output_dim
        numbers = torch.arange(site.outputs) % weight.shape[along]
        places = weight.storage_offset() - parameter.storage_offset() + numbers * weight.stride(along)  # of each filter's first value
        factors = torch.ones(site.outputs, dtype=torch.float64)
        for dim in dims:
            factors *= self._factors(tensor, dim)[places // parameter.stride(dim) % parameter.shape[dim]]
        return factors

    def _factors(self, tensor: str, dim: int) -> Tensor:
        """``(kept places of the dimension,)`` float64: factors that surgery put on a parameter along a dimension."""
        factors = torch.ones(self._sizes[tensor][dim], dtype=torch.float64)
        for scale in self._scales:
            if scale.name == tensor and scale.dim == dim:
                factors[slice(None) if scale.positions is None else torch.tensor(scale.positions)] *= scale.factor
        edit = self._edits.get(tensor)
        return factors[torch.tensor(edit.keep[dim])] if edit is not None and dim in edit.keep else factors

    def mask(self, dense_index: int) -> Tensor | None:
        """Which places of the first result of a dense operation are kept; None where all are.

        Raises:
            InvalidArgumentError: It is not known: the operation is none of the traced calls, or one of another shape.
        """
        if dense_index not in self._masks:
            self._masks[dense_index] = self._mask(dense_index)
        return self._masks[dense_index]

    def known(self, dense_index: int) -> bool:
        """Whether :meth:`mask` knows which places are kept."""
        try:
            self.mask(dense_index)
        except InvalidArgumentError:
            return False
        return True

    def _mask(self, dense_index: int) -> Tensor | None:
        shapes, left = self._shapes[dense_index], self._left.get(dense_index)
        call = self.call_of.get(dense_index)
        if call is None:
            if shapes == left:  # nothing was removed
                return None
            raise InvalidArgumentError(UNKNOWN)
        fields = self.graph.calls[call].output_fields
        mask = None if not fields or fields[0] is None else keep_mask(fields[0], self.kept)
        if not shapes:
            return mask
        kept = _kept_count(mask, shapes[0])
        if kept is None or (left is not None and kept != int(np.prod(left[0]))):
            raise InvalidArgumentError(UNKNOWN)
        return mask

    def removed_join(self, dense_index: int) -> bool:
        """Whether a removed block joins its shortcut at a dense operation."""
        call = self.call_of.get(dense_index)
        return call is not None and not self.removed.isdisjoint(self.graph.calls[call].joins)

    def target(self, dense_index: int, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Kept places of the dense result, in the pruned network's shape."""
        return kept_values(tensor, self.mask(dense_index), shape)


def _kept_count(mask: Tensor | None, shape: tuple[int, ...]) -> int | None:
    """Kept places of a tensor; None where the mask is not one of its shape."""
    if mask is None:
        return int(np.prod(shape))
    if mask.dim() != len(shape) or any(m not in (1, n) for m, n in zip(mask.shape, shape, strict=True)):
        return None
    return int(mask.sum()) * int(np.prod([n for m, n in zip(mask.shape, shape, strict=True) if m == 1]))


def _parameters(operation: Any, names: ParameterNames) -> tuple[str, ...]:
    return tuple(names.of(t) or "" for _, t in sorted(operation.operands.items()))


def aligned(first: list[Any], second: list[Any]) -> dict[int, int]:
    """Place in ``second`` -> place in ``first`` along a longest run of equal entries."""
    if first == second:
        return {k: k for k in range(len(first))}
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return {b + k: a + k for a, b, size in matcher.get_matching_blocks() for k in range(size)}
