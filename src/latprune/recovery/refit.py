"""The default: sequential ridge regression with error correction at the sums of residual branches."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latprune.argument_rules import check_flag, check_number, check_share, check_whole
from latprune.recovery.contract import Recovery, Situation, register_strategy
from latprune.recovery.logits import fit_logits
from latprune.recovery.regression import Fit, clamped_error, ridge_change
from latprune.recovery.report import LayerRecovery
from latprune.recovery.rows import from_matrix, to_matrix
from latprune.recovery.sequences import ProductRows
from latprune.recovery.sites import Site
from latprune.recovery.spread import restore_spread, vectors_of
from latprune.recovery.walk import ACTIVATIONS, Layer, Rows, walk

__all__ = ["Refit"]

_NOT_FINITE = "what it reads or should give is not finite on these images"
_EXACT = 1e-10
"""Squared errors relative to the variation up to this are rounding: sums of products in float32 have 1e-14 to 1e-11."""
SHARES = (1.0, 0.5, 0.25)
"""Shares of a layer's change that are tried in turn. Where little is left to gain, the whole change may fit its images more than the
network: the error is all but quadratic in the share, so that a part of a change in the right direction lowers it all the same."""
_ALREADY = "it gives the dense network's values already"


@register_strategy
@dataclass(frozen=True, kw_only=True)
class Refit(Recovery):
    """Fit each layer that is left, in execution order, to what the dense network computes at its place.

    The input is what the layer reads in the pruned network with all earlier layers refitted, the target the dense result at the kept
    positions; at the last layer of a residual branch it is the dense stream after the sum minus the pruned stream before it, so that
    what went wrong before, removed blocks included, is corrected at each sum. Weight and bias are solved for in float64, pulled towards
    their present values.

    Attributes:
        ridge: Strength of the pull, relative to the mean square of the layer's inputs, at least.
        pulls: How many strengths are tried, each ten times the one before, as long as the error on held-out images falls. Late layers
            have more inputs than a thousand images tell apart, and follow their images too closely at the least one.
        rows: Rows of the regression per input of a layer, at most.
        least_rows: Rows of any layer that has so many: with few inputs (depthwise, pointwise) they cost little and are too few otherwise.
        memory: Bytes that the rows of one layer may take, at most.
        activations: Bytes that what later layers read may take, of all images and both networks; where it is more, fewer images are used,
            and the others come in at the layer from which on they fit.
        rounds: Rounds in which the target beyond the clamp (ReLU, ReLU6) that follows is replaced by what the fit gives there; 0 fits the
            plain result.
        keep: Share of the plain target that stays beyond the clamp.
        corrected: Whether the last layer of a branch is compared after the sum.
        ahead: Whether a sum that removed blocks follow is compared with the dense stream after them.
        logits: Whether queries and keys are fitted through their product where that is possible; else each to its own dense values.
        sweeps: How often the walk over all layers is made.
        spread: Whether batch norms get some of the dense network's spread back after it, where class probabilities come nearer by it
            (:func:`latprune.recovery.spread.restore_spread`).
    """

    name = "refit"
    checks_layers = True

    ridge: float = 1e-2
    pulls: int = 4
    rows: int = 60
    least_rows: int = 16_384
    memory: float = 6e8
    activations: float = ACTIVATIONS
    rounds: int = 8
    keep: float = 0.2
    corrected: bool = True
    ahead: bool = True
    logits: bool = True
    sweeps: int = 1
    spread: bool = True

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge, "be a number of at least 0", 0.0)
        for name, least in (("pulls", 1), ("rows", 1), ("least_rows", 1), ("rounds", 0), ("sweeps", 1)):
            check_whole(name, getattr(self, name), least=least)
        for name in ("memory", "activations"):
            check_number(name, getattr(self, name), "be a number of bytes, at least 1", 1.0)
        check_share("keep", self.keep)
        for name in ("corrected", "ahead", "logits", "spread"):
            check_flag(name, getattr(self, name))

    def settings(self) -> dict[str, Any]:
        """The options, for the record."""
        return asdict(self)

    @property
    def stand_in(self) -> Recovery:
        """One sweep over fewer rows: it is further from the dense network, and which networks are nearer it tells as well."""
        return replace(
            self, rows=min(self.rows, 10), least_rows=min(self.least_rows, 4096), rounds=min(self.rounds, 2), sweeps=1, spread=False
        )

    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Refit all layers."""
        done: list[LayerRecovery] = []
        start = vectors_of(situation)
        for sweep in range(self.sweeps):
            found = []
            through: dict[int, LayerRecovery] = {}
            steps = walk(
                situation,
                rows=self.rows,
                least_rows=self.least_rows,
                memory=self.memory,
                activations=self.activations,
                corrected=self.corrected,
                ahead=self.ahead,
                logits=self.logits,
            )
            for layer in steps:
                if layer.product is not None:
                    through |= self._product(layer.product)
                for entry in self._entries(layer, through):
                    found.append(entry)
                    if not _exact(entry.fitted_before, entry.held_out_before):
                        situation.say(_line(entry, sweep, self.sweeps))
            done = found if not done else [_both(a, b) for a, b in zip(done, found, strict=True)]
        norms = restore_spread(situation, start) if self.spread and any(layer.action for layer in done) else None
        return done if norms is None else [*done, norms]

    def _product(self, product: ProductRows) -> dict[int, LayerRecovery]:
        """Fit queries and keys through their product; the entry of each of their layers."""
        heads, rows = product.heads, [product.fitted] if product.held_out is None else [product.fitted, product.held_out]
        if all(bool(torch.isfinite(getattr(r, n)).all()) for r in rows for n in ("query_x", "key_x", "query", "key")):
            fits, entry = fit_logits(heads, product.fitted, product.held_out, ridge=self.ridge)
        else:
            fits, entry = {}, LayerRecovery(layer="", at="logits", reason=_NOT_FINITE)
        for site in heads.sites:
            if site.index in fits:
                write(site, fits[site.index], constant=site.has_constant)
        return {site.index: replace(entry, layer=site.name) for site in heads.sites}

    def _entries(self, layer: Layer, through: dict[int, LayerRecovery]) -> list[LayerRecovery]:
        """One entry for a layer, two where it holds columns beside those that go through a product."""
        if not layer.through:
            return [self._layer(layer)]
        entry = through[layer.site.index]
        if layer.columns is None and not layer.reason:
            return [entry]
        return [replace(entry, layer=f"{entry.layer} (queries, keys)"), replace(self._layer(layer), layer=f"{entry.layer} (other outputs)")]

    def _layer(self, layer: Layer) -> LayerRecovery:
        site = layer.site
        if layer.fitted is None:
            return LayerRecovery(layer=site.name, reason=layer.reason)
        rows, bounds = layer.fitted, site.activation
        if not all(bool(torch.isfinite(values).all()) for values in (rows.x, rows.target, rows.present)):
            return LayerRecovery(layer=site.name, reason=_NOT_FINITE)
        constant, held_out = site.has_constant, layer.held_out
        fit = ridge_change(
            rows.x,
            rows.present if rows.offset is None else rows.present + rows.offset,
            rows.target if rows.offset is None else rows.target + rows.offset,
            ridge=[float(self.ridge * 10.0**k) for k in range(self.pulls)],
            constant=constant,
            bounds=bounds,
            rounds=self.rounds,
            keep=self.keep,
            judge=(lambda fit: errors(held_out, site, fit)) if held_out is not None else None,
        )
        entry = settle(layer, fit, action="refit", constant=constant)
        pull = f"ridge {fit.ridge:.3g}" if entry.action and fit.ridge is not None else ""
        return replace(entry, note="; ".join(filter(None, (layer.note, pull))))


def _both(first: LayerRecovery, second: LayerRecovery) -> LayerRecovery:
    """Two sweeps over one layer as one entry."""
    if not second.action:
        return first
    return replace(second, fitted_before=first.fitted_before, held_out_before=first.held_out_before)


def errors(rows: Rows, site: Site, fit: Fit | None) -> float:
    """Relative squared error of the compared result after its clamp, with the change or without."""
    result = rows.present
    if fit is not None:
        x, change = rows.x, fit.weight.to(rows.x)
        if change.shape[0] == 1:
            step = x[:, 0] @ change[0]
        else:
            step = torch.einsum("rgi,gio->rgo", x, change).reshape(x.shape[0], -1)
        result = result + step + fit.constant.to(result)
    target = rows.target
    if rows.offset is not None:
        result, target = result + rows.offset, target + rows.offset
    return clamped_error(result, target, site.activation)


def settle(layer: Layer, fit: Fit, *, action: str, constant: bool) -> LayerRecovery:
    """Write the change into the layer if it lowers the error on fitted and on held-out images, or the largest part of it that does; where
    none does, the layer keeps its weights.
    """
    site = layer.site
    assert layer.fitted is not None
    at = "join" if layer.joined else "layer"
    before = errors(layer.fitted, site, None)
    held_before = errors(layer.held_out, site, None) if layer.held_out is not None else None
    if _exact(before, held_before):
        return LayerRecovery(
            layer=site.name,
            at=at,
            fitted_before=before,
            fitted_after=before,
            held_out_before=held_before,
            held_out_after=held_before,
            reason=_ALREADY,
        )
    for share in SHARES:
        part = fit if share == 1.0 else Fit(weight=share * fit.weight, constant=share * fit.constant)
        after = errors(layer.fitted, site, part)
        held_after = errors(layer.held_out, site, part) if layer.held_out is not None else None
        if not after <= before:
            reason = "the fit does not lower the error on the images that it was fitted to"
        elif held_before is not None and held_after is not None and not held_after <= held_before:
            reason = "the error on held-out images would grow"
        else:
            reason = ""
            write(site, part if layer.columns is None else _widened(part, layer.columns, site.outputs), constant=constant)
            break
    return LayerRecovery(
        layer=site.name,
        action="" if reason else action,
        at=at,
        fitted_before=before,
        fitted_after=after,
        held_out_before=held_before,
        held_out_after=held_after,
        reason=reason,
    )


def _exact(fitted: float | None, held_out: float | None) -> bool:
    """Whether errors, as far as they are known, are rounding and nothing else."""
    known = [error for error in (fitted, held_out) if error is not None]
    return bool(known) and max(known) <= _EXACT


def _widened(fit: Fit, columns: Tensor, outputs: int) -> Fit:
    """A change of some output columns as one of all, zero at the others."""
    weight = torch.zeros(1, fit.weight.shape[1], outputs, dtype=fit.weight.dtype, device=fit.weight.device)
    constant = torch.zeros(outputs, dtype=fit.constant.dtype, device=fit.constant.device)
    weight[:, :, columns], constant[columns] = fit.weight, fit.constant
    return Fit(weight=weight, constant=constant)


@torch.no_grad()
def write(site: Site, fit: Fit, *, constant: bool) -> None:
    """Bring a change of the effective weight and constant into the layer's tensors."""
    assert site.weight is not None
    scale, _ = site.rescale()
    safe = scale.abs() > 1e-6 * scale.abs().max()
    inverse = torch.where(safe, 1 / torch.where(safe, scale, torch.ones_like(scale)), torch.zeros_like(scale))
    change: Tensor = fit.weight * inverse.reshape(fit.weight.shape[0], 1, -1)
    new = from_matrix(site, to_matrix(site) + change).to(site.weight)
    site.weight.detach().copy_(new)
    if constant:
        site.take_constant(fit.constant)


def _line(layer: LayerRecovery, sweep: int, sweeps: int) -> str:
    head = f"recovery{f' (sweep {sweep + 1} of {sweeps})' if sweeps > 1 else ''}: {layer.layer}"
    if not layer.action:
        return f"{head} left alone: {layer.reason}"
    before, after = (
        (layer.held_out_before, layer.held_out_after) if layer.held_out_before is not None else (layer.fitted_before, layer.fitted_after)
    )
    return f"{head} error {before:.3g} -> {after:.3g}"
