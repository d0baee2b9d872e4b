"""Queries and keys fitted through the logits that they make together.

A head that kept ``d'`` of its ``d`` places is fitted to its dense logits, not to the dense values at those places: of all products of
queries and keys of size ``d'`` that are linear in the layers' inputs, the one is taken whose logits are nearest to the dense ones over all
pairs of tokens. With ``A`` and ``B`` the regressions of the dense queries and keys (all ``d`` places) on the inputs, and ``Sq``, ``Sk``
``(d, d)`` the second moments of what they give, that is the truncated singular value decomposition of ``Sq^1/2 Sk^1/2``. Softmax does not
see a constant per query, so keys count from the mean of their sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latprune.recovery.heads import Heads
from latprune.recovery.regression import Fit, ridge_change
from latprune.recovery.report import LayerRecovery
from latprune.recovery.rows import to_matrix
from latprune.recovery.sites import Site

__all__ = ["LogitRows", "fit_logits"]

_PAIRS = 4_000_000
"""Logits that are held at once while an error is summed."""


@dataclass(slots=True, eq=False)
class LogitRows:
    """Whole sequences of one product.

    Attributes:
        query_x: ``(sequences, tokens, inputs)`` what the query layer reads in the pruned network.
        key_x: ``(sequences, key tokens, inputs)`` what the key layer reads.
        query: ``(sequences, tokens, heads, dense size)`` the dense queries of the heads that are left.
        key: ``(sequences, key tokens, key heads, dense size)`` the dense keys.
    """

    query_x: Tensor
    key_x: Tensor
    query: Tensor
    key: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Map:
    """``x @ weight + constant``: weight ``(heads, inputs, size)``, constant ``(heads, size)``, float64."""

    weight: Tensor
    constant: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """``(sequences, tokens, inputs) -> (sequences, tokens, heads, size)``."""
        return torch.einsum("sti,hid->sthd", x, self.weight.to(x)) + self.constant.to(x)


def fit_logits(heads: Heads, fitted: LogitRows, held_out: LogitRows | None, *, ridge: float) -> tuple[dict[int, Fit], LayerRecovery]:
    """Fit the queries and keys of one product.

    The fit of each to its own dense values stands beside the fit of their product; the better one on the held-out sequences is taken, and
    the weights stay where neither lowers the logits' error on the fitted sequences without raising it on the held-out ones.

    Args:
        heads: The heads.
        fitted: Sequences that are fitted to.
        held_out: Sequences that decide; None without any.
        ridge: Strength of the pull towards the present weights, relative to the mean square of the inputs.

    Returns:
        Number of a layer's operation -> the change of its effective weight and constant (empty where the weights stay), and the errors of
        the logits relative to the variation of the dense ones.
    """
    present = (_effective(heads.query, heads.query_columns), _effective(heads.key, heads.key_columns))
    before = _error(heads, fitted, *present)
    held_before = _error(heads, held_out, *present) if held_out is not None else None
    whole = _regressed(heads, fitted, present, ridge)
    offers = [(_kept(whole[0], heads.query_kept), _kept(whole[1], heads.key_kept))]
    if not heads.whole:
        offers.append(_shrunk(heads, fitted, whole))
    tried = [(_error(heads, fitted, *offer), _error(heads, held_out, *offer) if held_out is not None else None) for offer in offers]
    allowed = [
        k for k, (after, held) in enumerate(tried) if after <= before and (held is None or held_before is None or held <= held_before)
    ]
    taken = min(allowed, key=lambda k: _decisive(*tried[k]), default=None)
    after, held = tried[-1 if taken is None else taken]
    reason = ""
    if taken is None:
        reason = "the error of the logits on held-out images would grow" if after <= before else "no fit lowers the error of the logits"
    record = LayerRecovery(
        layer="",
        action="" if taken is None else "refit",
        at="logits",
        fitted_before=before,
        fitted_after=after,
        held_out_before=held_before,
        held_out_after=held,
        reason=reason,
    )
    return {} if taken is None else _changes(heads, present, offers[taken]), record


def _decisive(fitted: float, held_out: float | None) -> float:
    return fitted if held_out is None else held_out


def _effective(site: Site, columns: Tensor) -> _Map:
    """What the layer's columns give now, norm or bias behind it included."""
    scale, shift = site.rescale()
    matrix = to_matrix(site)[0] * scale
    if site.bias is not None:
        shift = shift + site.bias.detach().double().reshape(-1) * scale
    at = columns.to(matrix.device)
    return _Map(weight=matrix[:, at].permute(1, 0, 2), constant=shift[at])


def _regressed(heads: Heads, rows: LogitRows, present: tuple[_Map, _Map], ridge: float) -> tuple[_Map, _Map]:
    """Regressions of the dense queries and keys at all their places, kept places pulled towards the present weights, others to zero."""
    found = []
    for role, x, wanted, kept, factor in (
        (0, rows.query_x, rows.query, heads.query_kept, heads.query_factor),
        (1, rows.key_x, rows.key, heads.key_kept, heads.key_factor),
    ):
        count, size, inputs = wanted.shape[2], wanted.shape[3], x.shape[2]
        wanted = wanted * factor.to(wanted)[:, None]
        prior = torch.zeros(count, size, inputs, dtype=torch.float64, device=x.device)
        at = kept.to(x.device)[:, :, None].expand(-1, -1, inputs)
        prior.scatter_(1, at, present[role].weight.transpose(1, 2))
        start = prior.permute(2, 0, 1).reshape(inputs, -1)  # (inputs, heads * size)
        flat, target = x.flatten(0, 1), wanted.flatten(0, 1).flatten(1)
        means = flat.double().mean(0), target.double().mean(0)
        constant = (heads.query, heads.key)[role].has_constant
        if role == 1:
            flat = (x - x.mean(1, keepdim=True)).flatten(0, 1)
            target = (wanted - wanted.mean(1, keepdim=True)).flatten(0, 1).flatten(1)
        fit = ridge_change(flat[:, None], flat @ start.to(flat), target, ridge=ridge, constant=constant and role == 0)
        weight = start + fit.weight[0]
        shift = means[1] - means[0] @ weight if constant else torch.zeros_like(means[1])
        found.append(_Map(weight=weight.reshape(inputs, count, size).permute(1, 0, 2), constant=shift.reshape(count, size)))
    return found[0], found[1]


def _kept(maps: _Map, kept: Tensor) -> _Map:
    at = kept.to(maps.weight.device)
    return _Map(
        weight=maps.weight.gather(2, at[:, None].expand(-1, maps.weight.shape[1], -1)),
        constant=maps.constant.gather(1, at),
    )


def _shrunk(heads: Heads, rows: LogitRows, whole: tuple[_Map, _Map]) -> tuple[_Map, _Map]:
    """The regressions of all places brought to the kept size so that the logits change least."""
    query, key = whole
    groups, size = key.weight.shape[0], heads.query_columns.shape[1]
    key_of = heads.key_of.to(query.weight.device)
    queries = _moments(query, rows.query_x)
    moments = torch.zeros(groups, *queries.shape[1:], dtype=queries.dtype, device=queries.device).index_add_(0, key_of, queries)
    centred = rows.key_x - rows.key_x.mean(1, keepdim=True)
    left, right = _root(moments), _root(_moments(_Map(weight=key.weight, constant=torch.zeros_like(key.constant)), centred))
    u, values, vh = torch.linalg.svd(left @ right)
    u, values, v = u[:, :, :size], values[:, :size], vh.transpose(1, 2)[:, :, :size]
    inverse = torch.where(values > 1e-9 * values[:, :1], values.clamp_min(1e-300).rsqrt(), torch.zeros_like(values))[:, None]
    to_query, to_key = right @ v * inverse, left @ u * inverse  # (key heads, dense size, size) each
    # Any invertible change of the size' places gives the same logits; the rotation nearest to the places that surgery kept is taken.
    chosen = torch.zeros_like(to_query).scatter_(1, heads.key_kept.to(left.device)[:, None], 1.0)
    near = (left @ to_query).transpose(1, 2) @ (left @ chosen) + (right @ to_key).transpose(1, 2) @ (right @ chosen)
    a, _, bh = torch.linalg.svd(near)
    to_query, to_key = to_query @ a @ bh, to_key @ a @ bh
    mine = to_query[key_of]
    return (
        _Map(weight=query.weight @ mine, constant=(query.constant[:, None] @ mine)[:, 0]),
        _Map(weight=key.weight @ to_key, constant=(key.constant[:, None] @ to_key)[:, 0]),
    )


def _moments(maps: _Map, x: Tensor) -> Tensor:
    """``(heads, size, size)`` mean second moments of what a map gives, float64."""
    total = torch.zeros(maps.weight.shape[0], maps.weight.shape[2], maps.weight.shape[2], dtype=torch.float64, device=x.device)
    for piece in torch.split(x.flatten(0, 1), 8192):
        values = maps(piece[None])[0].transpose(0, 1)
        total += (values.transpose(1, 2) @ values).double()
    return total / (x.shape[0] * x.shape[1])


def _root(moments: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(moments)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.transpose(1, 2)
    return root


def _error(heads: Heads, rows: LogitRows, query: _Map, key: _Map) -> float:
    """Squared error of the logits relative to the dense ones, both from the mean over the keys of each query."""
    error = spread = 0.0
    sequences, tokens, count = rows.query.shape[:3]
    step = max(1, _PAIRS // (tokens * rows.key.shape[1] * count))
    key_of = heads.key_of.to(rows.key.device)
    for at in range(0, sequences, step):
        here = slice(at, at + step)
        logits = []
        for left, right in (
            (rows.query[here] * heads.query_factor.to(rows.query)[:, None], rows.key[here] * heads.key_factor.to(rows.key)[:, None]),
            (query(rows.query_x[here]), key(rows.key_x[here])),
        ):
            right = (right - right.mean(1, keepdim=True))[:, :, key_of]
            logits.append(torch.einsum("sthd,suhd->shtu", left, right))
        error += float((logits[1] - logits[0]).double().square().sum())
        spread += float(logits[0].double().square().sum())
    return error / max(spread, 1e-30)


def _changes(heads: Heads, present: tuple[_Map, _Map], maps: tuple[_Map, _Map]) -> dict[int, Fit]:
    """The changes of the layers' effective weights and constants, zero at the columns that do not go through the product."""
    found: dict[int, Fit] = {}
    for site, columns, before, after in (
        (heads.query, heads.query_columns, present[0], maps[0]),
        (heads.key, heads.key_columns, present[1], maps[1]),
    ):
        fit = found.get(site.index)
        if fit is None:
            inputs = before.weight.shape[1]
            nothing = torch.zeros(1, inputs, site.outputs, dtype=torch.float64, device=before.weight.device)
            fit = found[site.index] = Fit(weight=nothing, constant=torch.zeros_like(nothing[0, 0]))
        at = columns.reshape(-1).to(fit.weight.device)
        fit.weight[0][:, at] = (after.weight - before.weight).permute(1, 0, 2).flatten(1)
        fit.constant[at] = (after.constant - before.constant).reshape(-1)
    return found
