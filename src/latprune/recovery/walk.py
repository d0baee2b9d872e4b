"""The walk that sequential strategies share: by layer, the pruned network's input and the dense network's result at the same place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError
from latprune.progress import counted
from latprune.recovery.admission import Admission
from latprune.recovery.batches import count
from latprune.recovery.contract import Situation
from latprune.recovery.goals import Goals
from latprune.recovery.pairing import Pairing
from latprune.recovery.rows import Sampler, to_matrix
from latprune.recovery.sequences import ProductRows, Products
from latprune.recovery.sites import Site, find_sites
from latprune.recovery.stepper import Stepper, record_operations

__all__ = ["Layer", "Rows", "walk"]

ACTIVATIONS = 8e9
"""Bytes that what later layers read may take, of all images and both networks."""


@dataclass(slots=True, eq=False)
class Rows:
    """Rows of one layer.

    Attributes:
        x: ``(rows, groups, inputs)`` what the layer reads in the pruned network.
        present: ``(rows, outputs)`` its present result at the place of comparison, without the other operand of a sum.
        target: ``(rows, outputs)`` what that result should be.
        offset: ``(rows, outputs)`` the other operand of the sum; None where there is none.
    """

    x: Tensor
    present: Tensor
    target: Tensor
    offset: Tensor | None


@dataclass(slots=True, eq=False)
class Layer:
    """One layer of the walk.

    Attributes:
        site: Where it stands.
        fitted: Rows of the images that are fitted to; None where the layer cannot be fitted.
        held_out: Rows of the held-out images; None without any.
        joined: Whether the target is the dense stream after the sum minus the pruned stream before it.
        reason: Why it cannot be fitted.
        columns: ``(columns,)`` the output columns that the rows hold; None for all.
        product: At the first layer of a product of queries and keys: both, with their sequences.
        through: Whether the layer makes queries or keys that are fitted through their product; its rows then hold the other columns
            alone, and are None where there are none.
        note: What else there is to say about how it is fitted.
    """

    site: Site
    fitted: Rows | None = None
    held_out: Rows | None = None
    joined: bool = False
    reason: str = ""
    columns: Tensor | None = None
    product: ProductRows | None = None
    through: bool = False
    note: str = ""


def walk(
    situation: Situation,
    *,
    rows: int,
    least_rows: int,
    memory: float,
    activations: float = ACTIVATIONS,
    corrected: bool = True,
    ahead: bool = True,
    logits: bool = False,
) -> Iterator[Layer]:
    """Every layer of the pruned network in the order in which it runs, with its rows; the caller changes the weights before it goes on.

    Args:
        situation: The networks and the images.
        rows: Rows per input of the layer at most (more are sampled).
        least_rows: Rows of any layer that has so many, however few its inputs.
        memory: Bytes that the rows of one layer may take.
        activations: Bytes that the results of both networks which later layers read may take; where they are more, fewer images are used,
            and the others come in at the layer from which on they fit (:class:`latprune.recovery.admission.Admission`).
        corrected: Whether the last layer of a residual branch is compared after the sum.
        ahead: Whether a sum that removed blocks follow is compared with the dense stream after them.
        logits: Whether queries and keys come together, with the sequences of their product.
    """
    dense_run = record_operations(situation.dense, situation.fitted[0], situation.within)
    pruned_run = record_operations(situation.pruned, situation.fitted[0], situation.within)
    pairing = Pairing(situation.graph, situation.selection, dense_run, pruned_run, situation.dense, situation.pruned)
    sites = find_sites(pruned_run, situation.pruned)
    goals = Goals(pairing, dense_run, pruned_run, sites, corrected=corrected, ahead=ahead)
    goals.shorten(activations / _images(situation) * count(situation.fitted[0]) / 4)
    per_image = 4 / count(situation.fitted[0])
    admission = Admission(situation.fitted, situation.held_out, [per_image * held for held in goals.held_on_the_way()], activations)
    if goals.of and (line := admission.line("activations")):
        situation.say(f"recovery: {line}")
    batches = [*situation.fitted, *situation.held_out]
    place = -1
    dense = Stepper(situation.dense, batches, situation.within, dense_run)
    pruned = Stepper(situation.pruned, batches, situation.within, pruned_run)
    for at, _ in goals.of.values():
        dense.pin(at)
    products = Products(situation, pairing, dense_run, pruned_run, sites, rows=rows, memory=memory) if logits else None
    left = [at for at, _ in goals.of.values()]
    for number, site in enumerate(counted(sites, "recovering", unit="layers")):
        if site.reason:
            yield Layer(site=site, reason=site.reason)
            continue
        at, joined = goals.of[site.index]
        place += 1
        numbers, fitted = admission.at(place)
        heads = products.of(site) if products is not None else None
        product = (
            products.rows(heads, dense, pruned, goals.of, numbers, fitted)
            if products is not None and heads is not None and site is heads.sites[0]
            else None
        )
        heads = products.of(site) if products is not None else None
        columns = heads.other_columns(site) if heads is not None else None
        if columns is not None and not columns.numel():
            left.remove(at)
            if at not in left:
                dense.release(at)
            yield Layer(site=site, product=product, through=True)
            continue
        notes = (
            goals.notes.get(site.index, ""),
            products.notes.get(site.index, "") if products is not None else "",
            admission.remark(place),
        )
        generator = torch.Generator().manual_seed(situation.seed * 1_000_003 + number)
        parts: list[Rows] = []
        problem = ""
        sampler: Sampler | None = None
        with dense.ready():
            for k in numbers:
                dense.advance(k, at + 1)
        with pruned.ready():
            for k in numbers:
                pruned.advance(k, site.index)
        others: list[Tensor | None] = [None] * len(numbers)
        if joined and site.other is not None:
            others = [pruned.live(k, site.other) for k in numbers]
            if site.other[0] > site.index:
                position = pruned_run.operations[site.compared].sources.index(site.other)
                with pruned.ready():
                    others = [pruned.peek(k, site.compared)[position] for k in numbers]
        for k, other in zip(numbers, others, strict=True):
            x = pruned.arguments(k)[site.inputs]
            if site.fixed_at is not None:
                site.fixed = pruned.arguments(k)[site.fixed_at]
            if sampler is None:
                sampler = Sampler(site=site, share=_share(site, x, len(numbers), (rows, least_rows), memory), generator=generator)
            try:
                part = _rows(site, sampler, pairing, at, joined, x, dense.pinned(k, at), other)
            except InvalidArgumentError as error:
                problem = str(error)
                break
            parts.append(part)
        left.remove(at)
        if at not in left:
            dense.release(at)
        if problem:
            yield Layer(site=site, reason=problem, product=product, through=heads is not None)
            continue
        first = _joined_rows(parts[:fitted])
        second = _joined_rows(parts[fitted:]) if len(parts) > fitted else None
        parts = []
        if columns is not None:
            first, second = _columns(first, columns), _columns(second, columns) if second is not None else None
        yield Layer(
            site=site,
            fitted=first,
            held_out=second,
            joined=joined,
            columns=columns,
            product=product,
            through=columns is not None,
            note="; ".join(filter(None, notes)),
        )


def _images(situation: Situation) -> int:
    return max(1, sum(count(batch) for batch in (*situation.fitted, *situation.held_out)))


def _share(site: Site, x: Tensor, batches: int, rows: tuple[int, int], memory: float) -> float:
    """Share of a batch's places that gives so many rows per input, or in all where those are more, within the memory."""
    assert site.weight is not None
    groups = int(site.options[5]) if site.convolution else 1
    inputs = to_matrix(site).shape[1]
    if site.convolution:
        places = site.operation.result_shapes[0][2:] if len(site.operation.result_shapes[0]) > 2 else ()
        total = x.shape[0]
        for extent in places:
            total *= int(extent)
    else:
        total = x.numel() // x.shape[-1]
    total *= batches
    per_row = (groups * inputs + 3 * site.outputs) * x.element_size()
    wanted = min(float(max(rows[0] * inputs, rows[1])), memory / (2 * per_row))
    return min(1.0, wanted / max(total, 1))


def _rows(
    site: Site,
    sampler: Sampler,
    pairing: Pairing,
    at: int,
    joined: bool,
    x: Tensor,
    dense: Tensor,
    other: Tensor | None,
) -> Rows:
    where = pairing.dense_of.get(site.compared, at)
    shape = list(dense.shape)
    mask = pairing.mask(at if joined else where)
    if joined:
        if other is None:
            raise InvalidArgumentError("the other operand of its sum is not there when it runs")
        shape = list(other.shape)
    elif mask is not None and sum(n > 1 for n in mask.shape) > 1:
        raise InvalidArgumentError("its channels lie on several dimensions of its result")
    target = pairing.target(at, dense, tuple(shape))
    values = [target] if other is None or not joined else [target, other]
    for value in values:
        if value.dim() == 0:
            raise InvalidArgumentError("its result is a single number")
    for undo in reversed(site.views):
        values = [undo(v) for v in values]
    taken, drawn = sampler.rows(x, values)
    if drawn[0].shape != (taken.shape[0], site.outputs):
        raise InvalidArgumentError(f"the dense result has {drawn[0].shape[-1]} kept channels at its place, the layer {site.outputs}")
    factors = pairing.output_scale(site)
    if factors is not None and not joined:
        drawn[0] = drawn[0] * factors.to(drawn[0])
    matrix = to_matrix(site)
    scale, shift = site.rescale()
    if matrix.shape[0] == 1:
        plain = taken[:, 0] @ matrix[0].to(taken)
    else:
        plain = torch.einsum("rgi,gio->rgo", taken, matrix.to(taken)).reshape(taken.shape[0], -1)
    bias = site.bias if site.bias is not None else site.fixed
    if bias is not None:
        plain = plain + bias.detach().to(plain).reshape(-1)
    present = plain * scale.to(plain) + shift.to(plain)
    offset = drawn[1] if joined else None
    return Rows(x=taken, present=present, target=drawn[0] if offset is None else drawn[0] - offset, offset=offset)


def _joined_rows(parts: list[Rows]) -> Rows:
    offsets = [p.offset for p in parts if p.offset is not None]
    return Rows(
        x=torch.cat([p.x for p in parts]),
        present=torch.cat([p.present for p in parts]),
        target=torch.cat([p.target for p in parts]),
        offset=torch.cat(offsets) if offsets else None,
    )


def _columns(rows: Rows, columns: Tensor) -> Rows:
    """The rows of some output columns alone."""
    at = columns.to(rows.x.device)
    offset = rows.offset[:, at] if rows.offset is not None else None
    return Rows(x=rows.x, present=rows.present[:, at], target=rows.target[:, at], offset=offset)
