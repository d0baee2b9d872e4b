"""Rules for views: view, reshape, expand and squeeze, with the sizes that code states in them."""

from __future__ import annotations

import math
from typing import Any

import torch

from latprune.graph.fields import align, reshape, segments, varying
from latprune.graph.provenance import Expression, TracedInt, expression
from latprune.graph.recording import Fields
from latprune.graph.rules import Step, register_rule

__all__: list[str] = []


@register_rule("aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias")
def view(step: Step) -> Fields:
    """Reshape by aligned runs of dimensions.

    A labelled dimension cut into parts states equal counts for the parts; sizes that the forward gives are stated as equations.
    """
    source: torch.Tensor = step.args[0]
    old, new = tuple(source.shape), tuple(step.out.shape)
    if math.prod(old) == 0:
        return ()
    stated = _stated_sizes(step, old, new)
    result = []
    labelled: set[int] = set()
    fields = step.fields(source)
    for f in fields:
        result.append(reshape(f, old, new))
        labelled |= _state_cuts(step, f, fields, old, new, stated)
    if stated is not None:
        for d, value in enumerate(stated):
            if d not in labelled and isinstance(value, TracedInt) and int(value) != -1:
                step.recorder.state_size(value, None, new[d], step.place)
    return tuple(result)


def _stated_sizes(step: Step, old: tuple[int, ...], new: tuple[int, ...]) -> list[Any] | None:
    """The sizes as the forward gave them (-1 where it left one open), or None where PyTorch chose them itself."""
    watcher = step.recorder.watcher
    call = watcher.arguments("view", "reshape", "view_as", "reshape_as")
    if call is not None:
        args, kwargs = call
        sizes = list(args[1:]) or [kwargs.get("size", kwargs.get("shape"))]
        if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
            sizes = list(sizes[0])
        if len(sizes) == len(new) and all(isinstance(s, int) for s in sizes):
            return sizes
        return None
    call = watcher.arguments("unflatten")
    if call is not None:
        args, kwargs = call
        dim = (args[1] if len(args) > 1 else kwargs["dim"]) % len(old)
        sizes = list(args[2] if len(args) > 2 else kwargs["sizes"])
        if len(old) - 1 + len(sizes) == len(new):
            return [-1] * dim + sizes + [-1] * (len(old) - dim - 1)
    return None


def _state_cuts(
    step: Step, field: torch.Tensor, fields: Fields, old: tuple[int, ...], new: tuple[int, ...], stated: list[Any] | None
) -> set[int]:
    """State equal counts and sizes for the labelled dimensions of the result; returns those dimensions.

    Where another field varies along fewer dimensions, that one has the size of those (the filters of a weight, whose inputs differ).
    """
    labelled: set[int] = set()
    fewer = [varying(g) for g in fields if set(varying(g)) < set(varying(field))]
    for left, right in segments(old, new):
        if all(field.shape[d] == 1 for d in left):
            continue
        if any(set(dims) & set(left) for dims in fewer):
            continue
        local = field.expand([old[d] if d in left else field.shape[d] for d in range(len(old))])
        _state_merges(step, local, left)
        before = [d for d in range(len(old)) if d < left[0]]
        after = [d for d in range(len(old)) if d > left[-1]]
        sizes = [new[d] for d in right]
        flat = local.reshape(math.prod(local.shape[d] for d in before), *sizes, math.prod(local.shape[d] for d in after))
        several = sum(n > 1 for n in sizes) > 1
        for k, d in enumerate(right):
            if sizes[k] == 1:
                continue
            inner = math.prod(flat.shape[k + 2 :])
            parts = _distinct(flat.reshape(-1, sizes[k] * inner)).reshape(-1, sizes[k], inner)
            if bool((parts == parts[:, :1]).all()):
                continue
            labelled.add(d)
            if several and inner > 1:
                step.space.grid(_distinct(parts.reshape(-1, inner)), step.place)
            _state_size(step, stated, d, parts, several)
    return labelled


def _state_merges(step: Step, field: torch.Tensor, left: list[int]) -> None:
    """Note how labelled dimensions are merged: their order must be the same after pruning."""
    index = tuple(slice(None) if d in left else 0 for d in range(field.dim()))
    merged = field[index]
    for k in range(1, merged.dim()):
        matrix = merged.reshape(math.prod(merged.shape[:k]), -1)
        if matrix.shape[0] > 1 and bool((matrix != matrix[:1]).any()) and bool((matrix != matrix[:, :1]).any()):
            step.space.merges.append(matrix.contiguous().numpy())


def _state_size(step: Step, stated: list[Any] | None, dim: int, parts: torch.Tensor, several: bool) -> None:
    size = parts.shape[1]
    if stated is not None:
        if int(stated[dim]) != -1:
            step.recorder.state_size(stated[dim], parts, size, step.place)
        return
    width = step.recorder.attention_width()
    if width is not None:
        expr, heads, value = width
        if size == value and parts.shape[2] == 1:
            step.recorder.state_expression(expr, parts, step.place)
        elif not several:
            return
        elif parts.shape[2] == 1 and dim == step.out.dim() - 1:
            step.recorder.state_expression(("floordiv", expr, ("const", heads)), parts, step.place)
        else:
            step.recorder.state_expression(("const", size), parts, step.place)


def _distinct(rows: torch.Tensor) -> torch.Tensor:
    """Rows without repeats, order kept (batch and window dimensions repeat the same labels)."""
    first: dict[int, int] = {}
    head = rows[:, 0].tolist()
    for k, value in enumerate(head):
        first.setdefault(value, k)
    return rows[list(first.values())]


@register_rule("aten::expand", "aten::broadcast_to")
def expand(step: Step) -> Fields:
    """New leading dimensions; labels do not vary along expanded ones."""
    result = tuple(align(f, step.out.dim()) for f in step.fields(step.args[0]))
    call = step.recorder.watcher.arguments("expand", "broadcast_to")
    if call is not None:
        sizes = list(call[0][1:]) or [call[1].get("size")]
        if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)):
            sizes = list(sizes[0])
        for f in result:
            for dim in varying(f):
                if len(sizes) == f.dim() and int(sizes[dim]) != -1:
                    before = math.prod(f.shape[:dim])
                    step.recorder.state_size(sizes[dim], f.reshape(before, f.shape[dim], -1), f.shape[dim], step.place)
        step.expanded = _repeated(step, sizes)
    return result


def _repeated(step: Step, sizes: list[Any]) -> tuple[tuple[int, Expression], ...]:
    """Dimensions that hold one value repeated as often as the code says (and not as a size that it read says)."""
    rank = step.out.dim()
    before = [1] * (rank - step.args[0].dim()) + list(step.args[0].shape)
    if len(sizes) != rank:
        return ()
    found = [(dim, expression(sizes[dim])) for dim in range(rank) if before[dim] == 1 and step.out.shape[dim] > 1]
    return tuple((dim, expr) for dim, expr in found if expr[0] in ("const", "attr"))


@register_rule("aten::squeeze")
def squeeze(step: Step) -> Fields:
    """Drop the dimensions that the tensor (not the field) loses."""
    source: torch.Tensor = step.args[0]
    if len(step.args) > 1:
        dims = step.args[1] if isinstance(step.args[1], (list, tuple)) else [step.args[1]]
        gone = {d % source.dim() for d in dims if source.shape[d] == 1}
    else:
        gone = {d for d, n in enumerate(source.shape) if n == 1}
    return tuple(f.reshape([n for d, n in enumerate(f.shape) if d not in gone]) for f in step.fields(source))
