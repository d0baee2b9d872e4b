"""Rules for pure data movement: the operation itself runs on the labels."""

from __future__ import annotations

import math
from typing import Any

import torch

from latprune.graph.fields import align, compact, move, reshape, segments, varying
from latprune.graph.labels import FIXED_PAD
from latprune.graph.provenance import Expression, TracedInt, expression
from latprune.graph.recording import Fields
from latprune.graph.rules import Step, register_rule

__all__: list[str] = []


@register_rule(
    "aten::clone", "aten::contiguous", "aten::detach", "aten::alias", "aten::lift_fresh", "aten::_to_copy", "aten::positive",
    "aten::zeros_like", "aten::ones_like", "aten::empty_like", "aten::full_like", "aten::rand_like", "aten::randn_like",
    "aten::fill", "aten::zero", "aten::bernoulli",
)  # fmt: skip
def same(step: Step) -> Fields:
    """The result has the fields of the first argument."""
    return step.fields(step.args[0])


@register_rule("aten::new_zeros", "aten::new_ones", "aten::new_empty", "aten::new_full", "aten::new_empty_strided", "aten::is_same_size")
def created(step: Step) -> Fields:
    """A new tensor takes nothing but type and device from its argument: it does not depend on the inputs."""
    return ()


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


@register_rule(
    "aten::permute", "aten::transpose", "aten::t", "aten::unsqueeze", "aten::movedim", "aten::flip", "aten::roll", "aten::numpy_T",
    "aten::swapaxes",
)  # fmt: skip
def same_on_compact(step: Step) -> Fields:
    """Operations that act alike on a field with size-1 dimensions."""
    return tuple(step.func(f, *step.args[1:], **step.kwargs) for f in step.fields(step.args[0]))


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
            result.append(_picked(step, compact(step.func(f, *step.args[1:], **step.kwargs)), f))
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


def _picked(step: Step, part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
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
            result.append(_picked(step, compact(f.select(dim, step.args[2])), f))
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


@register_rule("aten::cat", "aten::concat")
def cat(step: Step) -> Fields:
    """Labels stand one after the other along the joined dimension and are united along all others."""
    tensors = [t for t in step.args[0] if t.numel() or t.dim() > 1]
    return _join(step, tensors, step.argument(1, "dim", 0) % step.out.dim())


@register_rule("aten::stack")
def stack(step: Step) -> Fields:
    """As ``cat`` along a new dimension."""
    dim = step.argument(1, "dim", 0) % step.out.dim()
    shaped = [(tuple(f.unsqueeze(dim) for f in step.fields(t)), (*t.shape[:dim], 1, *t.shape[dim:])) for t in step.args[0]]
    return _join_fields(step, shaped, dim)


def _join(step: Step, tensors: list[torch.Tensor], dim: int) -> Fields:
    return _join_fields(step, [(step.fields(t), tuple(t.shape)) for t in tensors], dim)


def _join_fields(step: Step, parts: list[tuple[Fields, tuple[int, ...]]], dim: int) -> Fields:
    """One field along the joined dimension (if any part is labelled there), one united field for each other set of dimensions."""
    from latprune.graph.combine import meet

    rank = len(parts[0][1])
    along = [[f for f in fields if dim in varying(f)] for fields, _ in parts]
    across = [tuple(f for f in fields if dim not in varying(f)) for fields, _ in parts]
    shapes = [tuple(1 if d == dim else n for d, n in enumerate(shape)) for _, shape in parts]
    if not any(along):
        return meet(step.space, list(zip(across, shapes, strict=True)), rank, step.place)
    if all(varying(f) == (dim,) for fields in along for f in fields):
        # Each part has its places and, apart from those, channels along other dimensions (tokens of a width).
        joint = _joined(step, [(tuple(own), shape) for own, (_, shape) in zip(along, parts, strict=True)], dim)
        return (joint, *meet(step.space, list(zip(across, shapes, strict=True)), rank, step.place))
    return (_joined(step, parts, dim),)


def _joined(step: Step, parts: list[tuple[Fields, tuple[int, ...]]], dim: int) -> torch.Tensor:
    """The labels of all parts along ``dim``; places of parts that carry none there are labels of their own that stay."""
    pieces = []
    for fields, shape in parts:
        if shape[dim] == 0:
            continue
        best = [f for f in fields if dim in varying(f)]
        if not best and shape[dim] == 1 and fields:
            best = list(fields)
        if len(best) != 1:
            # A part without labels: its places along the joined dimension stay, and are their own.
            step.freeze(
                fields,
                f"joined with values that carry no channels in {step.place}" if not best else f"several labellings meet in {step.place}",
            )
            fixed = step.space.fresh(shape[dim], "fixed", step.place)
            step.space.freeze(fixed, f"joined with values that carry no channels in {step.place}")
            pieces.append(fixed.reshape([shape[d] if d == dim else 1 for d in range(len(shape))]))
            continue
        for f in fields:
            if f is not best[0]:
                step.freeze([f], f"several labellings meet in {step.place}")
        pieces.append(best[0].expand([shape[d] if d == dim else best[0].shape[d] for d in range(len(shape))]))
    rank = len(parts[0][1])
    wide = [max(p.shape[d] for p in pieces) for d in range(rank)]
    grown = [p.expand([p.shape[d] if d == dim else wide[d] for d in range(rank)]) for p in pieces]
    return torch.cat(grown, dim)


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
        results.append([_picked(step, compact(p), f) for p in parts])
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
            results.append([_picked(step, compact(p), f) for p in f.unbind(dim)])
    return _each(step, results, len(step.out))


def _rerun(step: Step, source: torch.Tensor) -> Fields:
    rest: tuple[Any, ...] = step.args[1:]
    return tuple(_picked(step, move(f, source.shape, lambda g: step.func(g, *rest, **step.kwargs)), f) for f in step.fields(source))


@register_rule(
    "aten::index", "aten::index_select", "aten::gather", "aten::repeat", "aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::tile",
    "aten::channel_shuffle", "aten::native_channel_shuffle", "aten::unfold", "aten::diagonal", "aten::repeat_interleave", "aten::rot90",
)  # fmt: skip
def rerun(step: Step) -> Fields:
    """The same operation on the expanded labels."""
    if any(step.fields(t) for t in _tensors(step.args[1:])):
        for t in _tensors(step.args[1:]):
            step.freeze(step.fields(t), f"used as an index in {step.place}")
    name = step.func._schema.name
    if name in ("aten::index", "aten::index_select", "aten::gather"):
        picked = {d for d, t in enumerate(step.args[1]) if t is not None} if name == "aten::index" else {step.args[1] % step.args[0].dim()}
        fixed = not any(step.info(t).dynamic for t in _tensors(step.args[1:]))
        step.freeze(
            (f for f in step.fields(step.args[0]) if fixed and picked & set(varying(f))), f"picked by fixed indices in {step.place}"
        )
    return _rerun(step, step.args[0])


def _tensors(values: Any) -> list[torch.Tensor]:
    found = []
    for v in values:
        if isinstance(v, torch.Tensor):
            found.append(v)
        elif isinstance(v, (list, tuple)):
            found += [t for t in v if isinstance(t, torch.Tensor)]
    return found


@register_rule("aten::as_strided")
def as_strided(step: Step) -> Fields:
    """Kept where it only restates the strides of the same shape (global pooling in channels-last does)."""
    source: torch.Tensor = step.args[0]
    if tuple(source.shape) == tuple(step.out.shape):
        return step.fields(source)
    step.freeze(step.fields(source), f"memory reinterpreted by {step.place}")
    return ()


@register_rule("aten::constant_pad_nd")
def constant_pad(step: Step) -> Fields:
    """Padding; zero channels added to a labelled dimension are labels of their own, editable where a module attribute holds the amount."""
    source: torch.Tensor = step.args[0]
    pad = list(step.args[1])
    rank = source.dim()
    amounts = [(0, 0)] * rank
    for k in range(len(pad) // 2):
        amounts[rank - 1 - k] = (pad[2 * k], pad[2 * k + 1])
    value = step.argument(2, "value", 0)
    result = []
    for f in step.fields(source):
        for dim in varying(f):
            before, after = amounts[dim]
            if before == 0 and after == 0:
                continue
            if before < 0 or after < 0:
                f = f.narrow(dim, max(-before, 0), f.shape[dim] - max(-before, 0) - max(-after, 0))
            if before > 0 or after > 0:
                f = _with_pads(step, f, dim, max(before, 0), max(after, 0), value, pad)
        result.append(f)
    return tuple(result)


def _with_pads(step: Step, field: torch.Tensor, dim: int, before: int, after: int, value: float, pad: list[int]) -> torch.Tensor:
    where = step.recorder.module_path
    count = sum(1 for name in step.recorder.pads if name == where or name.startswith(where + "#"))
    name = where if not count else f"{where}#{count + 1}"
    labels = step.space.fresh(before + after, "pad", f"pad:{name}")
    shape = [before + after if d == dim else 1 for d in range(field.dim())]
    wide = labels.reshape(shape)
    at = 2 * (field.dim() - 1 - dim)
    sources = step.recorder.pad_sources(at, before, after)
    if value != 0:
        step.space.freeze(labels, f"padded with {value} (only zero padding can follow) in {step.place}")
    elif len(varying(field)) != 1:
        step.space.freeze(labels, f"channels padded jointly with other dimensions in {step.place}")
    elif sources is None:
        step.space.freeze(labels, f"{FIXED_PAD} '{where}', not a module attribute, in {step.place}")
    else:
        step.recorder.pads[name] = {
            "module": step.recorder.pads_holder,
            "before": (sources[0], labels[:before]),
            "after": (sources[1], labels[before:]),
        }
    left, right = wide.narrow(dim, 0, before), wide.narrow(dim, before, after)
    grown = list(field.shape)
    grown[dim] = before
    left = left.expand(grown)
    grown[dim] = after
    right = right.expand(grown)
    return torch.cat([left, field, right], dim)
