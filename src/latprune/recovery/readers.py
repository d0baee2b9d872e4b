"""What reads the channels of a network: layers, one group of filters at a time, and products of queries and keys, one head at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph
from latprune.graph.types import Call, IntArray
from latprune.recovery.attention import BATCHED, factors_of
from latprune.recovery.pairing import aligned
from latprune.recovery.rows import to_matrix
from latprune.recovery.sites import Site, find_sites
from latprune.recovery.stepper import Sequence_, Stepper, record_operations

__all__ = ["Block", "Member", "Reader", "find_readers", "measured_blocks", "silent_groups"]

_LAYOUT = {"aten.as_strided_.default"}
"""Operations that only lay values out in memory: a pooling to 1 x 1 does one more on images whose channels lie last."""

Member = tuple[str, int]
"""A group's name and one of its units."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reader:
    """One operation that reads channels.

    Attributes:
        index: Number of the operation.
        members: For each of its blocks (a group of filters, a head), for each channel that the block reads, the units that it goes with.
        site: The layer; None for a product of queries and keys.
        factors: Places of queries and keys among the tensor arguments of a product.
    """

    index: int
    members: list[list[tuple[Member, ...]]]
    site: Site | None = None
    factors: tuple[int, int] = (0, 0)


@dataclass(slots=True, eq=False)
class Block:
    """What one block reads of ``c`` channels: a result ``sum_q x_q weight_q`` and the Gram matrix of its terms.

    Attributes:
        inverse: ``(c, c)`` float64 inverse of the Gram matrix.
        weight: ``(c, m)`` float64.
        energy: Squared result of the whole reader, which errors are relative to.
        members: For each channel the units that it goes with.
    """

    inverse: Tensor
    weight: Tensor
    energy: float
    members: list[tuple[Member, ...]]


def find_readers(dense: nn.Module, graph: ModelGraph, inputs: Any) -> tuple[Sequence_, list[Reader]]:
    """Record one run and find what reads channels of groups in it, in the order in which it runs.

    Raises:
        InvalidArgumentError: The run takes another course than the one that was traced.
    """
    run = record_operations(dense, inputs, str(graph.plan.within or ""))
    traced, ran = [call.op for call in graph.calls], [str(op.func) for op in run.operations]
    call_of = aligned(traced, ran)
    matched = set(call_of.values())
    alone = {op for c, op in enumerate(traced) if c not in matched} | {op for k, op in enumerate(ran) if k not in call_of}
    if not alone <= _LAYOUT:
        raise InvalidArgumentError(
            "the network takes another course on this data than when it was traced; trace it with a batch like these"
        )
    # A weight that several layers share cannot be fitted, but what they read can be told.
    sites = [site for site in find_sites(run, dense) if site.weight is not None]
    found = [r for site in sites if (r := _layer(site, graph.calls[call_of[site.index]], graph)) is not None]
    products = [(index, at) for index, op in enumerate(run.operations) if (at := factors_of(op.name))]
    found += [r for index, at in products if (r := _product(index, at, graph.calls[call_of[index]], graph)) is not None]
    return run, sorted(found, key=lambda reader: reader.index)


def silent_groups(graph: ModelGraph, members: Iterable[Sequence[tuple[Member, ...]]]) -> list[str]:
    """Groups of which nothing can be said: some row of theirs has no unit that any block reads.

    Args:
        graph: The graph.
        members: For each block, for each of its channels, the units.
    """
    rows: dict[str, set[int]] = {name: set() for name in graph.groups}
    for block in members:
        for name, unit in (member for channel in block for member in channel):
            rows[name].add(unit // graph.groups[name].columns)
    return [name for name, group in graph.groups.items() if len(rows[name]) < group.rows]


def measured_blocks(dense: nn.Module, graph: ModelGraph, batches: list[Any], *, rows: int, ridge: float, seed: int) -> Iterable[Block]:
    """The blocks of all readers with the Gram matrices of what they read on ``batches``.

    A layer's terms are its input channels, all taps of a convolution together. A product's are ``q_i k_i'`` for the places ``i`` of a head,
    so that their Gram matrix is that of the queries times that of the keys, place by place and summed over sequences; keys count from the
    mean of their sequence, for softmax does not see a constant per query.
    """
    run, readers = find_readers(dense, graph, batches[0])
    stepper = Stepper(dense, batches, str(graph.plan.within or ""), run)
    generator = torch.Generator().manual_seed(seed)
    for reader in readers:
        with stepper.ready():
            for k in range(len(stepper)):
                stepper.advance(k, reader.index)
        read = [stepper.arguments(k) for k in range(len(stepper))]
        if reader.site is not None:
            site, blocks = reader.site, len(reader.members)
            gram = _gram([arguments[site.inputs] for arguments in read], site, blocks, rows, generator)
            weight = to_matrix(site).reshape(*gram.shape[:2], -1)
        else:
            pairs = [(arguments[reader.factors[0]], arguments[reader.factors[1]]) for arguments in read]
            batched = run.operations[reader.index].name in BATCHED
            gram = _logit_gram([(q, k.mT if batched else k) for q, k in pairs], len(reader.members))
            weight = torch.ones(*gram.shape[:2], 1, dtype=gram.dtype, device=gram.device)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        diagonal.add_(ridge * diagonal.mean().clamp_min(1e-12))
        energy = float((weight * (gram @ weight)).sum())
        if energy > 0:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
            for part, matrix, members in zip(inverse, weight, reader.members, strict=True):
                yield Block(inverse=part, weight=matrix, energy=energy, members=members)


def _layer(site: Site, call: Call, graph: ModelGraph) -> Reader | None:
    field = _field(call, site.inputs, most=1)
    if field is None:
        return None
    members = [_members(graph, c) for c in field.reshape(-1).tolist()]
    blocks = int(site.options[5]) if site.convolution else 1
    if len(members) != blocks * _channels(site):
        return None
    size = len(members) // blocks
    parts = [members[k * size : (k + 1) * size] for k in range(blocks)]
    if blocks > 1:
        parts = [_inside(part) for part in parts]
    return Reader(index=site.index, site=site, members=parts) if any(map(any, parts)) else None


def _channels(site: Site) -> int:
    """Channels that one group of a layer's filters reads."""
    assert site.weight is not None
    if not site.convolution:
        return int(site.weight.shape[0])
    return int(site.weight.shape[0]) // int(site.options[5]) if site.options[3] else int(site.weight.shape[1])


def _product(index: int, factors: tuple[int, int], call: Call, graph: ModelGraph) -> Reader | None:
    query, key = (_field(call, place, most=3) for place in factors)
    if query is None or key is None:
        return None
    if call.op.rpartition(".")[0] in BATCHED:
        key = key.swapaxes(-1, -2)
    if query.shape[-1] < 2 or query.shape[-1] != key.shape[-1] or query.shape[-2] > 1 or key.shape[-2] > 1:
        return None  # what is contracted carries no channels: tokens, where values are weighted
    left, right = (_heads(field) for field in (query, key))
    count = max(len(left), len(right))
    if count % len(left) or count % len(right):
        return None
    # Heads that share a key head: each has its neighbours' one.
    left, right = left.repeat(count // len(left), axis=0), right.repeat(count // len(right), axis=0)
    parts = [
        _inside([tuple(dict.fromkeys((*_members(graph, a), *_members(graph, b)))) for a, b in zip(*pair, strict=True)])
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    ]
    return Reader(index=index, factors=factors, members=parts) if any(map(any, parts)) else None


def _field(call: Call, place: int, *, most: int) -> IntArray | None:
    """The first field of an operation's argument that varies, along so many dimensions at most."""
    return next((f for f in call.all_fields[place] if 1 <= sum(n > 1 for n in f.shape) <= most), None)


def _members(graph: ModelGraph, label: int) -> tuple[Member, ...]:
    return graph.class_units[label] if label >= 0 else ()


def _inside(members: list[tuple[Member, ...]]) -> list[tuple[Member, ...]]:
    """Without the units that are the whole block: its results go with them, and what they lack is no error."""
    whole = set(members[0]).intersection(*members[1:])
    return [tuple(member for member in channel if member not in whole) for channel in members]


def _heads(field: IntArray) -> IntArray:
    """``(heads, size)`` of a factor's field; batches and heads may be one dimension, the heads then stand together."""
    flat = field.reshape(-1, field.shape[-1])
    for count in range(1, len(flat) + 1):
        if len(flat) % count == 0 and (flat.reshape(-1, count, flat.shape[-1]) == flat[:count]).all():
            return flat[:count]
    return flat


def _gram(inputs: list[Tensor], site: Site, blocks: int, rows: int, generator: torch.Generator) -> Tensor:
    """``(blocks, channels, channels)`` float64, mean over the places."""
    total, count = None, 0
    for x in inputs:
        flat = x.flatten(2).transpose(1, 2).reshape(-1, x.shape[1]) if site.convolution else x.reshape(-1, x.shape[-1])
        wanted = max(256, rows * (flat.shape[1] // blocks) // len(inputs))
        if flat.shape[0] > wanted:
            flat = flat[torch.randperm(flat.shape[0], generator=generator)[:wanted].to(flat.device)]
        parts = flat.reshape(flat.shape[0], blocks, -1).transpose(0, 1)
        here = (parts.mT @ parts).double()
        total = here if total is None else total + here
        count += flat.shape[0]
    assert total is not None
    return total / count


def _logit_gram(pairs: list[tuple[Tensor, Tensor]], heads: int) -> Tensor:
    """``(heads, size, size)`` float64, mean over the sequences of ``(..., tokens, size)`` queries and keys."""
    total, count = None, 0
    for query, key in pairs:
        if key.dim() > 3 and key.shape[-3] != query.shape[-3]:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        left, right = (x.reshape(-1, heads, *x.shape[-2:]) for x in (query, key - key.mean(-2, keepdim=True)))
        here = ((left.mT @ left).double() * (right.mT @ right).double()).sum(0)
        total = here if total is None else total + here
        count += left.shape[0]
    assert total is not None
    return total / count
