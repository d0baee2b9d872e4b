"""Where an operation computes: how the fields of its operands meet, and what a reduction leaves of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latprune.graph.fields import align, compact, varying
from latprune.graph.labels import LabelSpace

__all__ = ["meet", "reduce", "unite_own"]

Fields = tuple[torch.Tensor, ...]


def meet(space: LabelSpace, operands: Sequence[tuple[Fields, tuple[int, ...]]], rank: int, place: str) -> Fields:
    """Fields of the place-by-place combination of ``operands`` (fields and shape each), broadcast to ``rank`` dimensions.

    Fields that vary along the same dimensions are united; where one varies along a part of the other's dimensions, each of its places meets
    several finer ones. A field that meets values without labels along one of its dimensions is frozen. Fields of one operand are
    compared with each other only where they vary along the same dimensions, which the other operand has channels along.
    """
    merged: list[torch.Tensor] = []
    merged_shape = [1] * rank
    for fields, shape in operands:
        wide = [1] * (rank - len(shape)) + list(shape)
        merged = _meet_two(space, merged, merged_shape, [align(f, rank) for f in fields], wide, place)
        merged_shape = [max(a, b) for a, b in zip(merged_shape, wide, strict=True)]
    return tuple(merged)


def _meet_two(
    space: LabelSpace, left: list[torch.Tensor], left_shape: list[int], right: list[torch.Tensor], right_shape: list[int], place: str
) -> list[torch.Tensor]:
    if not left and not right:
        return []
    right_dims = [varying(g) for g in right]
    if len(left) == len(right) == 1 and varying(left[0]) == right_dims[0]:  # nearly always
        space.unite(left[0], right[0])
        return left
    kept: list[torch.Tensor] = []
    loose: list[tuple[torch.Tensor, tuple[int, ...]]] = []
    shared: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for f in left:
        dims = varying(f)
        if dims in right_dims:
            shared.setdefault(dims, []).append(f)
        else:
            loose.append((f, dims))
    for dims, fields in shared.items():
        kept.append(unite_own(space, fields, place))
        space.unite(kept[-1], unite_own(space, [g for g, other in zip(right, right_dims, strict=True) if other == dims], place))
    spare = [(g, dims) for g, dims in zip(right, right_dims, strict=True) if dims not in shared]
    covered_right = {d for dims in right_dims for d in dims}
    covered_left = {d for f in left for d in varying(f)}
    for f, dims in loose:
        finer = [g for g, other in spare if set(dims) < set(other)]
        coarser = [g for g, other in spare if set(other) < set(dims)]
        for g, other in zip(right, right_dims, strict=True):
            if _crossing(dims, other):
                _unite_shared(space, f, g, dims, other, place)
        if not _blank(dims, right_shape, covered_right):
            repeated = _unite_repeated(space, f, dims, coarser, right_shape)
            if repeated is not None:
                kept.append(repeated)
                continue
            space.freeze(f, f"meets values that carry no channels in {place}")
            for g in coarser:
                space.freeze(g, f"meets channels that meet values without any in {place}")
            continue
        for g in finer:
            if _blank(varying(g), left_shape, covered_left):
                space.bundle(f, g)
        for g in coarser:
            space.bundle(g, f)
        if not finer:
            kept.append(f)
    for g, dims in spare:
        if not _blank(dims, left_shape, covered_left):
            inner = [f for f, own in loose if set(own) < set(dims)]
            repeated = _unite_repeated(space, g, dims, inner, left_shape)
            if repeated is not None:
                if all(repeated is not k for k in kept):
                    kept.append(repeated)
                continue
            space.freeze(g, f"meets values that carry no channels in {place}")
            for f in inner:
                space.freeze(f, f"meets channels that meet values without any in {place}")
            continue
        if not any(set(dims) < set(other) for _, other in loose):
            kept.append(g)
    return kept


def unite_own(space: LabelSpace, fields: Sequence[torch.Tensor], place: str) -> torch.Tensor:
    """State that fields of one tensor which vary along the same dimensions carry the same channels; returns the first.

    Where a place stands for a pair of channels (an outer product that is flattened) it goes with either, so that none can go alone.
    """
    first, *others = fields
    for g in others:
        space.unite(first, g)
        pairs = torch.stack([h.reshape(-1) for h in torch.broadcast_tensors(first, g)])  # type: ignore[no-untyped-call]
        if torch.unique(pairs, dim=1).shape[1] > max(torch.unique(labels).numel() for labels in pairs):
            for h in (first, g):
                space.freeze(h, f"each place stands for a pair of channels in {place}")
    return first


def _unite_repeated(
    space: LabelSpace, fine: torch.Tensor, dims: Sequence[int], coarser: Sequence[torch.Tensor], shape: Sequence[int]
) -> torch.Tensor | None:
    """``fine`` meets a tensor of ``shape`` that has places of its own, but no labels, along some of ``fine``'s dimensions.

    That tensor carries the same channels at each of those places (paths that are stacked, one key for all heads), so ``fine`` does too.

    Returns:
        The tensor's field that covers exactly the other dimensions, or None where there is none.
    """
    for g in coarser:
        if all(shape[d] > 1 for d in dims if g.shape[d] == 1):
            space.unite(fine, g)
            return g
    return None


def _unite_shared(space: LabelSpace, f: torch.Tensor, g: torch.Tensor, dims: Sequence[int], other: Sequence[int], place: str) -> None:
    """Two fields share some dimensions (the heads) and have others of their own: what they stand for along the shared ones is the same."""
    coarse_f = space.reduce(f, tuple(d for d in dims if d not in other), place)
    coarse_g = space.reduce(g, tuple(d for d in other if d not in dims), place)
    space.unite(coarse_f, coarse_g)


def _crossing(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two sets of dimensions overlap and neither holds the other."""
    return bool(set(a) & set(b)) and not set(a) <= set(b) and not set(b) <= set(a)


def _blank(dims: Sequence[int], shape: Sequence[int], covered: set[int]) -> bool:
    """Whether a tensor of ``shape`` has, along each of ``dims``, size 1 or labels."""
    return all(shape[d] == 1 or d in covered for d in dims)


def reduce(space: LabelSpace, fields: Fields, dims: Sequence[int], rank: int, keepdim: bool, place: str) -> Fields:
    """Fields after a reduction over ``dims``: gone where all their dimensions go, coarse where some stay."""
    gone = {d % rank for d in dims} if rank else set()
    result: list[torch.Tensor] = []
    whole = [set(varying(f)) for f in fields if not set(varying(f)) & gone]
    for f in fields:
        own = set(varying(f))
        if own <= gone:
            continue
        if own & gone and any(own - gone <= other for other in whole):
            continue  # another field already tells these places apart, and more finely
        if own & gone:
            f = compact(space.reduce(f, tuple(sorted(own & gone)), place))
        if not keepdim:
            f = f.reshape([n for d, n in enumerate(f.shape) if d not in gone])
        result.append(f)
    return tuple(result)
