"""Rules for taking parts of a tensor: slice, select, split and unbind."""

from __future__ import annotations

import math
from typing import Any

import torch

from latprune.graph.fields import compact, varying
from latprune.graph.recording import Fields
from latprune.graph.rules import Step, register_rule

__all__ = ["picked"]


@register_rule("aten::slice", "aten::narrow")
def slice_(step: Step) -> Fields:
    """A slice; along a labelled dimension the same slice of the labels, and its bounds are stated as sizes."""
    source: torch.Tensor = step.args[0]
    dim = (step.argument(1, "dim", 0) or 0) % source.dim()
    if source.shape[dim] == step.out.shape[dim]:
        return step.fields(source)
    result = []
    for f in step.fields(source):
        if f.shape[dim] == 1:
            result.append(f)
        else:
            _state_bounds(step, f, dim, source.shape[dim])
            result.append(picked(step, compact(step.func(f, *step.args[1:], **step.kwargs)), f))
    return tuple(result)


def _state_bounds(step: Step, field: torch.Tensor, dim: int, size: int) -> None:
    """The bounds of a slice along a labelled dimension count the labels before them."""
    bounds = _stated_bounds(step, dim, field.dim())
    start = step.argument(2, "start", 0) or 0
    end = step.argument(3, "end", None) if "narrow" not in step.func._schema.name else start + step.args[3]
    plain = (start, size if end is None else min(end, size))
    stride = step.argument(4, "step", 1) or 1 if "narrow" not in step.func._schema.name else 1
    if stride != 1:
        if size % stride or size == stride:
            step.freeze([field], f"every {stride}th channel is taken by {step.place}")
        else:
            # The k-th channels of all strides stand together before and after: they go together.
            together = field.reshape([*field.shape[:dim], size // stride, stride, *field.shape[dim + 1 :]])
            step.space.unite(together, together.narrow(dim + 1, 0, 1).expand_as(together))
        return
    for k, bound in enumerate(plain):
        at = bound + size if bound < 0 else bound
        if at <= 0 or at >= size:
            continue
        stated = bounds[k] if bounds is not None and bounds[k] is not None else at
        part = field.narrow(dim, 0, at)
        if int(stated) < 0:
            part, stated = field.narrow(dim, at, size - at), -stated
        before = math.prod(field.shape[:dim])
        step.recorder.state_size(stated, part.reshape(before, part.shape[dim], -1), at, step.place)


def _stated_bounds(step: Step, dim: int, rank: int) -> tuple[Any, Any] | None:
    """Start and stop as the forward gave them in an index expression or a ``narrow``."""
    call = step.recorder.watcher.arguments("narrow")
    if call is not None:
        start, length = call[0][2], call[0][3]
        return start, start + length
    call = step.recorder.watcher.arguments("__getitem__", "__setitem__")
    if call is None:
        return None
    index = call[0][1]
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(i, torch.Tensor) for i in items):
        return None
    source: torch.Tensor = call[0][0]
    used = sum(1 for i in items if i is not None and i is not Ellipsis)
    full: list[Any] = []
    for item in items:
        if item is Ellipsis:
            full += [slice(None)] * (source.dim() - used)
        else:
            full.append(item)
    position = 0
    for item in full:
        if item is None:
            position += 1
        elif isinstance(item, slice):
            if position == dim:
                return item.start, item.stop
            position += 1
    return None


def picked(step: Step, part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """A single place picked out of labelled ones by a fixed index must stay."""
    if part.numel() == 1:
        step.space.freeze(part, f"one channel is picked by its index in {step.place}")
    return part


@register_rule("aten::select")
def select(step: Step) -> Fields:
    """One place of a dimension; along a labelled dimension that place must stay."""
    source: torch.Tensor = step.args[0]
    dim = step.args[1] % source.dim()
    result = []
    for f in step.fields(source):
        if f.shape[dim] == 1:
            result.append(f.squeeze(dim))
        else:
            _state_index(step, f, dim)
            result.append(picked(step, compact(f.select(dim, step.args[2])), f))
    return tuple(result)


def _state_index(step: Step, field: torch.Tensor, dim: int) -> None:
    """The index of a picked place counts the places before it, which must not shift."""
    at = step.args[2] % field.shape[dim]
    if at == 0:
        return
    call = step.recorder.watcher.arguments("select")
    stated = call[0][2] if call is not None and len(call[0]) > 2 else at
    stated = at if int(stated) < 0 else stated
    part = field.narrow(dim, 0, at)
    step.recorder.state_size(stated, part.reshape(math.prod(field.shape[:dim]), at, -1), at, step.place)


def _each(step: Step, results: list[list[torch.Tensor]], count: int) -> list[Fields]:
    return [tuple(r[k] for r in results) for k in range(count)]


@register_rule("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::tensor_split", "aten::unsafe_split", "aten::unsafe_chunk")
def split(step: Step) -> list[Fields]:
    """Parts; equal parts of a labelled dimension state equal counts."""
    source: torch.Tensor = step.args[0]
    dim = step.argument(2, "dim", 0) % source.dim()
    results = []
    for f in step.fields(source):
        if f.shape[dim] == 1:
            results.append([f] * len(step.out))
            continue
        parts = list(step.func(f, *step.args[1:], **step.kwargs))
        _state_parts(step, parts, dim)
        apart = step.recorder.program is not None and varying(f) == (dim,)  # a program states each part's size by itself
        if len({p.shape[dim] for p in parts}) == 1 and len(parts) > 1 and not apart:
            rows = torch.stack([p.movedim(dim, -1) for p in parts], 0).reshape(len(parts), -1)
            step.space.grid(rows, step.place)
        results.append([picked(step, compact(p), f) for p in parts])
    return _each(step, results, len(step.out))


def _state_parts(step: Step, parts: list[torch.Tensor], dim: int) -> None:
    """Sizes of the parts, where the forward gave them."""
    call = step.recorder.watcher.arguments("split", "split_with_sizes")
    if call is None:
        return
    args, kwargs = call
    sizes: Any = args[1] if len(args) > 1 else kwargs.get("split_size_or_sections", kwargs.get("split_size", kwargs.get("split_sizes")))
    stated = list(sizes) if isinstance(sizes, (list, tuple)) else [sizes] * len(parts)
    if len(stated) != len(parts):
        return
    for value, part in zip(stated, parts, strict=True):
        if not isinstance(value, int):
            continue
        before = math.prod(part.shape[:dim])
        step.recorder.state_size(value, part.reshape(before, part.shape[dim], -1), part.shape[dim], step.place)


@register_rule("aten::unbind")
def unbind(step: Step) -> list[Fields]:
    """One result for each place of a dimension."""
    source: torch.Tensor = step.args[0]
    dim = step.argument(1, "dim", 0) % source.dim()
    results = []
    for f in step.fields(source):
        if f.shape[dim] == 1:
            results.append([f.squeeze(dim)] * len(step.out))
        else:
            results.append([picked(step, compact(p), f) for p in f.unbind(dim)])
    return _each(step, results, len(step.out))
