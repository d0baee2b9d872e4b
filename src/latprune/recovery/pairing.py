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
from latprune.recovery.stepper import Sequence_
from latprune.surgery.masked import _kept_classes, keep_mask
from latprune.surgery.plan import plan_step

__all__ = ["Pairing", "aligned", "kept_values"]


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
        named_dense, named_pruned = ({at: self._known(name) for at, name in _named(m).items()} for m in (dense_model, pruned_model))
        left = [d for d in range(len(dense.operations)) if d not in gone]
        found = aligned(
            [(*dense_tokens[d], _parameters(dense.operations[d], named_dense)) for d in left],
            [(str(op.func), op.module, _parameters(op, named_pruned)) for op in pruned.operations],
        )
        self.dense_of = {p: left[k] for p, k in found.items()}
        self._masks: dict[int, Tensor | None] = {}
        step = plan_step(dense_model, graph, selection)
        self._scales = step.scales
        self._edits = {edit.name: edit for edit in step.tensors}
        self._sizes = {name: tuple(t.shape) for name, t in dense_model.named_parameters()}

    def _known(self, name: str) -> str:
        """What the graph calls a tensor: a tied one may have lost that name with a block."""
        return str(self.graph.plan.aliases.get(name, name))

    def output_scale(self, tensor: str) -> Tensor | None:
        """``(outputs,)`` float64: factors that surgery put on the filters of a weight (attention keeps its dense scale); None: all 1."""
        tensor = self._known(tensor)
        found = [s for s in self._scales if s.name == tensor and s.dim == 0]
        if not found:
            return None
        factors = torch.ones(self._sizes[tensor][0], dtype=torch.float64)
        for scale in found:
            factors[slice(None) if scale.positions is None else torch.tensor(scale.positions)] *= scale.factor
        edit = self._edits.get(tensor)
        return factors[torch.tensor(edit.keep[0])] if edit is not None and 0 in edit.keep else factors

    def mask(self, dense_index: int) -> Tensor | None:
        """Which places of the first result of a dense operation are kept; None where all are."""
        if dense_index not in self._masks:
            call = self.call_of.get(dense_index)
            field = self.graph.calls[call].output_fields[0] if call is not None and self.graph.calls[call].output_fields else None
            self._masks[dense_index] = None if field is None else keep_mask(field, self.kept)
        return self._masks[dense_index]

    def removed_join(self, dense_index: int) -> bool:
        """Whether a removed block joins its shortcut at a dense operation."""
        call = self.call_of.get(dense_index)
        return call is not None and not self.removed.isdisjoint(self.graph.calls[call].joins)

    def target(self, dense_index: int, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Kept places of the dense result, in the pruned network's shape."""
        return kept_values(tensor, self.mask(dense_index), shape)


def _named(model: nn.Module) -> dict[int, str]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {t.untyped_storage().data_ptr(): name for name, t in tensors if isinstance(t, torch.Tensor) and t.numel()}


def _parameters(operation: Any, names: dict[int, str]) -> tuple[str, ...]:
    return tuple(names.get(t.untyped_storage().data_ptr(), "") for _, t in sorted(operation.operands.items()))


def aligned(first: list[Any], second: list[Any]) -> dict[int, int]:
    """Place in ``second`` -> place in ``first`` along a longest run of equal entries."""
    if first == second:
        return {k: k for k in range(len(first))}
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return {b + k: a + k for a, b, size in matcher.get_matching_blocks() for k in range(size)}
