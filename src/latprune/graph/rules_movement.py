"""Rules for other pure data movement: the operation itself runs on the labels."""

from __future__ import annotations

from typing import Any

import torch

from latprune.graph.combine import meet
from latprune.graph.fields import move, varying
from latprune.graph.recording import Fields
from latprune.graph.rules import Step, register_rule
from latprune.graph.rules_cutting import picked

__all__: list[str] = []


@register_rule(
    "aten::clone", "aten::contiguous", "aten::detach", "aten::alias", "aten::lift_fresh", "aten::_to_copy", "aten::positive",
    "aten::zeros_like", "aten::ones_like", "aten::empty_like", "aten::full_like", "aten::rand_like", "aten::randn_like",
    "aten::fill", "aten::zero", "aten::bernoulli",
)  # fmt: skip
def same(step: Step) -> Fields:
    """The result has the fields of the first argument."""
    return step.fields(step.args[0])


@register_rule(
    "aten::permute", "aten::transpose", "aten::t", "aten::unsqueeze", "aten::movedim", "aten::flip", "aten::numpy_T", "aten::swapaxes",
)  # fmt: skip
def same_on_compact(step: Step) -> Fields:
    """Operations that act alike on a field with size-1 dimensions."""
    return tuple(step.func(f, *step.args[1:], **step.kwargs) for f in step.fields(step.args[0]))


@register_rule("aten::roll")
def roll(step: Step) -> Fields:
    """Places move on and come back at the other end: channels that are left would come back at other places, so they stay."""
    source: torch.Tensor = step.args[0]
    dims = {d % source.dim() for d in step.argument(2, "dims", [])} or set(range(source.dim()))
    step.freeze((f for f in step.fields(source) if set(varying(f)) & dims), f"channels are rolled by {step.place}")
    return tuple(step.func(f, *step.args[1:], **step.kwargs) for f in step.fields(source))


@register_rule("aten::channel_shuffle", "aten::native_channel_shuffle")
def channel_shuffle(step: Step) -> Fields:
    """Groups of channels are interleaved: they keep equal counts, and the same places of each."""
    source: torch.Tensor = step.args[0]
    result = []
    for f in step.fields(source):
        if varying(f) != (1,):
            step.freeze([f], f"channels vary along other dimensions in {step.place}")
            continue
        rows = f.reshape(int(step.args[1]), -1)
        step.space.grid(rows, step.place)
        call = step.recorder.watcher.arguments("channel_shuffle", "native_channel_shuffle")
        stated = step.args[1] if call is None else call[0][1] if len(call[0]) > 1 else call[1]["groups"]
        step.recorder.state_size(stated, rows[None], rows.shape[0], step.place)
        merged = rows.t().contiguous()
        if min(merged.shape) > 1:
            step.space.merges.append(merged.numpy())
        result.append(merged.reshape(f.shape))
    return tuple(result)


def _rerun(step: Step, source: torch.Tensor) -> Fields:
    rest: tuple[Any, ...] = step.args[1:]
    return tuple(picked(step, move(f, source.shape, lambda g: step.func(g, *rest, **step.kwargs)), f) for f in step.fields(source))


@register_rule(
    "aten::index", "aten::index_select", "aten::repeat", "aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::tile",
    "aten::diagonal", "aten::repeat_interleave", "aten::rot90",
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


@register_rule("aten::unfold")
def windows(step: Step) -> Fields:
    """Windows along a dimension: along a labelled one only windows that cut it into equal parts can lose channels."""
    source, dim, size, stride = step.args[0], step.args[1] % step.args[0].dim(), step.args[2], step.args[3]
    call = step.recorder.watcher.arguments("unfold")
    stated = (size, stride) if call is None else tuple(call[0][2:]) + tuple(call[1].get(n) for n in ("size", "step") if n in call[1])
    result = []
    for f in step.fields(source):
        moved = move(f, source.shape, lambda g: step.func(g, *step.args[1:], **step.kwargs))
        if f.shape[dim] > 1:
            count = f.shape[dim]
            if count > size and (stride != size or count % size):
                step.freeze([f], f"channels lie in windows that overlap or leave some out in {step.place}")
            else:
                parts = f.movedim(dim, -1).reshape(-1, size)
                step.space.grid(parts, step.place)
                for value in stated if count > size else stated[:1]:
                    step.recorder.state_size(value, parts[:, :, None], size, step.place)
        result.append(moved)
    return tuple(result)


@register_rule("aten::gather")
def gather(step: Step) -> Fields:
    """``gather(self, dim, index)``: along the other dimensions source and index agree place by place, as far as the index goes."""
    source, dim, index = step.args[0], step.args[1] % max(step.args[0].dim(), 1), step.args[2]
    if any(dim in varying(f) for f in step.fields(source)) or not step.fields(index):
        fields: Fields = rerun(step)
        return fields
    alike = all(source.shape[d] == n for d, n in enumerate(index.shape) if d != dim)
    if not alike:
        step.freeze((*step.fields(source), *step.fields(index)), f"only a part of the channels is read by {step.place}")
        return ()
    step.freeze((f for f in step.fields(index) if dim in varying(f)), f"used as an index in {step.place}")
    parts = [
        (tuple(f for f in step.fields(t) if dim not in varying(f)), tuple(1 if d == dim else n for d, n in enumerate(t.shape)))
        for t in (source, index)
    ]
    return meet(step.space, parts, source.dim(), step.place)


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
    """Kept where PyTorch itself restates the strides of the same shape (global pooling in channels-last does)."""
    source: torch.Tensor = step.args[0]
    if tuple(source.shape) == tuple(step.out.shape) and step.recorder.watcher.arguments("as_strided", "as_strided_") is None:
        return step.fields(source)
    step.freeze(step.fields(source), f"memory reinterpreted by {step.place}")
    return ()
