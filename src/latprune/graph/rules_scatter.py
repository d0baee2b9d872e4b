"""Rules for writing values to places that an index names: along the indexed dimensions labels stay, along all others they meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from latprune.graph.combine import meet
from latprune.graph.fields import align, compact, varying
from latprune.graph.recording import Fields
from latprune.graph.rules import Step, register_rule
from latprune.graph.rules_compute import extents

__all__: list[str] = []

Operand = tuple[Fields, tuple[int, ...]]


def _free(step: Step, tensor: torch.Tensor, dims: set[int]) -> Fields:
    """The fields that do not vary along the indexed ``dims``; the others stay."""
    step.freeze((f for f in step.fields(tensor) if set(varying(f)) & dims), f"channels are written by their places in {step.place}")
    return tuple(f for f in step.fields(tensor) if not set(varying(f)) & dims)


def _operand(step: Step, tensor: torch.Tensor, dim: int) -> Operand:
    shape = tuple(1 if d == dim else n for d, n in enumerate(extents(tensor, fixed=step.recorder.program is not None)))
    return _free(step, tensor, {dim}), shape


@register_rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def scatter(step: Step) -> Fields:
    """``scatter(self, dim, index, src)``: the three agree along the other dimensions, place by place."""
    target: torch.Tensor = step.args[0]
    dim = step.args[1] % target.dim()
    operands = [target, *(t for t in (*step.args[2:], *step.kwargs.values()) if isinstance(t, torch.Tensor) and t.dim() == target.dim())]
    return _met_along(step, operands, dim)


@register_rule("aten::index_add", "aten::index_copy", "aten::index_reduce")
def index_add(step: Step) -> Fields:
    """``index_add(self, dim, index, source)``: target and source agree along the other dimensions."""
    target: torch.Tensor = step.args[0]
    return _met_along(step, [target, step.args[3]], step.args[1] % target.dim())


@register_rule("aten::index_fill")
def index_fill(step: Step) -> Fields:
    """One value at places of one dimension."""
    return _free(step, step.args[0], {step.args[1] % step.args[0].dim()})


def _met_along(step: Step, operands: Sequence[torch.Tensor], dim: int) -> Fields:
    """Operands that agree along all dimensions but ``dim``; where one covers only the first places of another, their labels stay."""
    shapes = {tuple(n for d, n in enumerate(t.shape) if d != dim) for t in operands}
    if len(shapes) > 1:
        for tensor in operands:
            step.freeze(step.fields(tensor), f"only a part of the channels is written by {step.place}")
        return ()
    return meet(step.space, [_operand(step, t, dim) for t in operands], operands[0].dim(), step.place)


@register_rule("aten::index_put", "aten::_index_put_impl")
def index_put(step: Step) -> Fields:
    """``x[:, :, index] = values`` and ``x[mask] = value``."""
    target: torch.Tensor = step.args[0]
    indices: list[Any] = list(step.args[1])
    values: torch.Tensor = step.args[2]
    given = [t for t in indices if t is not None]
    if len(given) == 1 and given[0].dtype == torch.bool and values.numel() == 1:
        return _where(step, target, indices, given[0])
    if any(step.fields(t) for t in given) or any(t.dtype in (torch.bool, torch.uint8) for t in given):
        for tensor in (target, values, *given):
            step.freeze(step.fields(tensor), f"places that depend on the data are written by {step.place}")
        return ()
    dims = {d for d, t in enumerate(indices) if t is not None}
    fields = _free(step, target, dims)
    # What the places that are written look like in the layout of the values: the same indexing on the labels.
    taken = tuple(compact(torch.ops.aten.index(f.expand(target.shape), indices)) for f in fields)
    shape = [1] * values.dim()
    rank = taken[0].dim() if taken else values.dim()
    for f in taken:
        for d in varying(f):
            at = d - rank + values.dim()
            if at >= 0:
                shape[at] = values.shape[at]
    meet(step.space, [(taken, _extent(taken, rank)), (step.fields(values), tuple(shape))], max(rank, values.dim()), step.place)
    return fields


def _extent(fields: Fields, rank: int) -> tuple[int, ...]:
    return tuple(max((align(f, rank).shape[d] for f in fields), default=1) for d in range(rank))


def _where(step: Step, target: torch.Tensor, indices: list[Any], mask: torch.Tensor) -> Fields:
    """One value wherever a mask over some dimensions holds."""
    first = next(d for d, t in enumerate(indices) if t is not None)
    after = target.dim() - first - mask.dim()
    fields = tuple(f.reshape([1] * first + list(f.shape) + [1] * after) for f in step.fields(mask))
    shape = (*[1] * first, *extents(mask, fixed=step.recorder.program is not None), *[1] * after)
    whole: list[Operand] = [(step.fields(target), tuple(target.shape)), (fields, shape)]
    return meet(step.space, whole, target.dim(), step.place)
