"""The default: sequential ridge regression with error correction at the sums of residual branches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError
from latprune.recovery.contract import Recovery, Situation, register_strategy
from latprune.recovery.regression import Fit, clamped_error, ridge_change
from latprune.recovery.report import LayerRecovery
from latprune.recovery.rows import from_matrix, to_matrix
from latprune.recovery.sites import Site
from latprune.recovery.walk import Layer, Rows, walk

__all__ = ["Refit"]


@register_strategy
@dataclass(frozen=True, kw_only=True)
class Refit(Recovery):
    """Fit each layer that is left, in execution order, to what the dense network computes at its place.

    The input is what the layer reads in the pruned network with all earlier layers refitted, the target the dense result at the kept
    positions; at the last layer of a residual branch it is the dense stream after the sum minus the pruned stream before it, so that
    what went wrong before, removed blocks included, is corrected at each sum. Weight and bias are solved for in float64, pulled towards
    their present values.

    Attributes:
        ridge: Strength of the pull, relative to the mean square of the layer's inputs.
        rows: Rows of the regression per input of a layer, at most.
        memory: Bytes that the rows of one layer may take, at most.
        rounds: Rounds in which the target beyond the clamp (ReLU, ReLU6) that follows is replaced by what the fit gives there; 0 fits the
            plain result.
        keep: Share of the plain target that stays beyond the clamp.
        corrected: Whether the last layer of a branch is compared after the sum.
        ahead: Whether a sum that removed blocks follow is compared with the dense stream after them.
        sweeps: How often the walk over all layers is made.
    """

    name = "refit"

    ridge: float = 1e-2
    rows: int = 60
    memory: float = 6e8
    rounds: int = 8
    keep: float = 0.2
    corrected: bool = True
    ahead: bool = True
    sweeps: int = 1

    def __post_init__(self) -> None:
        for option, low in (("ridge", 0.0), ("rows", 1), ("memory", 1.0), ("rounds", 0), ("keep", 0.0), ("sweeps", 1)):
            if not getattr(self, option) >= low:
                raise InvalidArgumentError(f"{option} (={getattr(self, option)}) must be at least {low}")
        if self.keep > 1:
            raise InvalidArgumentError(f"keep (={self.keep}) must be at most 1")

    def settings(self) -> dict[str, Any]:
        """The options, for the record."""
        return asdict(self)

    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Refit all layers."""
        done: list[LayerRecovery] = []
        for sweep in range(self.sweeps):
            found = []
            for layer in walk(situation, rows=self.rows, memory=self.memory, corrected=self.corrected, ahead=self.ahead):
                found.append(self._layer(layer))
                situation.say(_line(found[-1], sweep, self.sweeps))
            done = found if not done else [_both(a, b) for a, b in zip(done, found, strict=True)]
        return done

    def _layer(self, layer: Layer) -> LayerRecovery:
        site = layer.site
        if layer.fitted is None:
            return LayerRecovery(layer=site.name, reason=layer.reason)
        rows, bounds = layer.fitted, site.activation
        if not all(bool(torch.isfinite(values).all()) for values in (rows.x, rows.target, rows.present)):
            return LayerRecovery(layer=site.name, reason="what it reads or should give is not finite on these images")
        constant = site.take_constant(torch.zeros(site.outputs, dtype=torch.float64, device=rows.x.device), apply=False)
        fit = ridge_change(
            rows.x,
            rows.present if rows.offset is None else rows.present + rows.offset,
            rows.target if rows.offset is None else rows.target + rows.offset,
            ridge=self.ridge,
            constant=constant,
            bounds=bounds,
            rounds=self.rounds,
            keep=self.keep,
        )
        return settle(layer, fit, action="refit", constant=constant)


def _both(first: LayerRecovery, second: LayerRecovery) -> LayerRecovery:
    """Two sweeps over one layer as one entry."""
    if not second.action:
        return first
    return LayerRecovery(
        layer=first.layer,
        action=second.action,
        at=second.at,
        fitted_before=first.fitted_before,
        fitted_after=second.fitted_after,
        held_out_before=first.held_out_before,
        held_out_after=second.held_out_after,
    )


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
    """Write the change into the layer if it lowers the error on fitted and on held-out images; else the layer keeps its weights."""
    site = layer.site
    assert layer.fitted is not None
    at = "join" if layer.joined else "layer"
    before, after = errors(layer.fitted, site, None), errors(layer.fitted, site, fit)
    held_before = errors(layer.held_out, site, None) if layer.held_out is not None else None
    held_after = errors(layer.held_out, site, fit) if layer.held_out is not None else None
    numbers = {"fitted_before": before, "fitted_after": after, "held_out_before": held_before, "held_out_after": held_after}
    reason = ""
    if not after <= before:
        reason = "the fit does not lower the error on the images that it was fitted to"
    elif held_before is not None and held_after is not None and not held_after <= held_before:
        reason = "the error on held-out images would grow"
    if not reason:
        write(site, fit, constant=constant)
    return LayerRecovery(layer=site.name, action="" if reason else action, at=at, reason=reason, **numbers)


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
