"""Rules for joining tensors and for padding them."""

from __future__ import annotations

import torch

from latprune.graph.fields import varying
from latprune.graph.labels import CodeReason
from latprune.graph.recording import Fields, PaddingDraft
from latprune.graph.rules import Step, register_rule

__all__: list[str] = []


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
        step.space.freeze(
            labels, CodeReason(f"the amount of zero channels is fixed in the code of '{where}', not a module attribute, in {step.place}")
        )
    else:
        step.recorder.pads[name] = tuple(
            PaddingDraft(module=step.recorder.pads_holder, attribute=attribute, labels=part)
            for attribute, part in zip(sources, (labels[:before], labels[before:]), strict=True)
            if attribute is not None
        )
    left, right = wide.narrow(dim, 0, before), wide.narrow(dim, before, after)
    grown = list(field.shape)
    grown[dim] = before
    left = left.expand(grown)
    grown[dim] = after
    right = right.expand(grown)
    return torch.cat([left, field, right], dim)
