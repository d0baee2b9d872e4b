"""Ridge regression of a layer's change, pulled towards its present values, and its variant for what a clamp lets through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError

__all__ = ["Fit", "clamped_error", "ridge_change"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """A change of the effective weight ``(groups, inputs, outputs)`` and of the constant ``(outputs,)``, float64.

    Attributes:
        ridge: Strength of the pull, where a stronger one than the first was taken; else None.
    """

    weight: Tensor
    constant: Tensor
    ridge: float | None = None


def _product(x: Tensor, change: Tensor) -> Tensor:
    """``(rows, groups, inputs) x (groups, inputs, outputs) -> (rows, groups * outputs)``."""
    if change.shape[0] == 1:
        return x[:, 0] @ change[0]
    return torch.einsum("rgi,gio->rgo", x, change).reshape(x.shape[0], -1)


def clamped_error(result: Tensor, target: Tensor, bounds: tuple[float, float] | None) -> float:
    """Squared error relative to the target's variation, after the clamp where there is one."""
    if bounds is not None:
        result, target = result.clamp(*bounds), target.clamp(*bounds)
    error = (result - target).double().square().sum()
    spread = (target - target.mean(0)).double().square().sum()
    return float(error / spread.clamp_min(1e-30))


def _wanted(result: Tensor, target: Tensor, bounds: tuple[float, float], keep: float) -> Tensor:
    """The target where it lies within the bounds; beyond them whatever of the present result lies beyond too (it is clamped alike)."""
    low, high = bounds
    wanted = target
    if low > -float("inf"):
        slack = keep * target + (1 - keep) * result.clamp(max=low)
        wanted = torch.where(target <= low, slack, wanted)
    if high < float("inf"):
        slack = keep * target + (1 - keep) * result.clamp(min=high)
        wanted = torch.where(target >= high, slack, wanted)
    return wanted


def ridge_change(
    x: Tensor,
    present: Tensor,
    target: Tensor,
    *,
    ridge: float | Sequence[float],
    constant: bool,
    bounds: tuple[float, float] | None = None,
    rounds: int = 0,
    keep: float = 0.0,
    judge: Callable[[Fit], float] | None = None,
) -> Fit:
    """The change of weight and constant that brings ``present`` closest to ``target``.

    Minimises ``|present + x W + c - target|^2 / rows + ridge * mean(diag(G)) * |W|^2`` with ``G`` the Gram matrix of ``x`` (centred where a
    constant is allowed). With ``bounds`` what counts is the result after a clamp: beyond a bound the target is replaced, round by round,
    by what the present fit gives there (a majorisation: each round lowers the clamped error).

    Args:
        x: ``(rows, groups, inputs)``.
        present: ``(rows, outputs)`` present result.
        target: ``(rows, outputs)``.
        ridge: Strength of the pull towards the present weights; of several, in rising order, ``judge`` takes one, by the fit of the plain
            target.
        constant: Whether a constant per output may be added.
        bounds: ``(low, high)`` of the clamp that follows.
        rounds: Rounds for the clamp; 0 fits the plain target.
        keep: Share of the plain target that stays beyond the bounds.
        judge: Error of a fit on other images. Stronger pulls are tried as long as it falls.
    """
    rows, groups, _ = x.shape
    centre = x.mean(0) if constant else torch.zeros_like(x[0])  # (groups, inputs)
    centred = x - centre if constant else x
    by_group = centred.permute(1, 0, 2)  # (groups, rows, inputs)
    gram = _gram(by_group) / rows
    scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)  # (groups,)

    def cross_of(wanted: Tensor) -> tuple[Tensor, Tensor]:
        residual = wanted - present
        mean = residual.double().mean(0) if constant else torch.zeros(residual.shape[1], dtype=torch.float64, device=x.device)
        grouped = (residual - mean.to(residual)).reshape(rows, groups, -1).permute(1, 0, 2)
        return torch.bmm(by_group.transpose(1, 2), grouped).double() / rows, mean

    def solved(cross: Tensor, mean: Tensor, factor: Tensor) -> Fit:
        change = torch.cholesky_solve(cross, factor)
        shift = mean - torch.einsum("gi,gio->go", centre.double(), change).reshape(-1) if constant else mean
        return Fit(weight=change, constant=shift)

    strengths = list(ridge) if isinstance(ridge, Sequence) else [ridge]
    cross, mean = cross_of(target)
    factor = _factor(gram, strengths[0] * scale)
    fit = solved(cross, mean, factor)
    if judge is not None and len(strengths) > 1:
        least = judge(fit)
        for strength in strengths[1:]:
            stronger = _factor(gram, strength * scale)
            tried = solved(cross, mean, stronger)
            error = judge(tried)
            if not error < least:
                break
            fit, factor, least = replace(tried, ridge=strength), stronger, error
    if bounds is not None and rounds:
        taken = fit.ridge
        if keep < 1:
            fit = solved(*cross_of(_wanted(present, target, bounds, keep)), factor)
        for _ in range(rounds):
            result = present + _product(x, fit.weight.to(x)) + fit.constant.to(x)
            fit = solved(*cross_of(_wanted(result, target, bounds, keep)), factor)
        fit = replace(fit, ridge=taken)
    return fit


def _gram(x: Tensor) -> Tensor:
    """``(groups, inputs, inputs)`` float64, summed piece by piece so that float32 products stay exact enough."""
    total = torch.zeros(x.shape[0], x.shape[2], x.shape[2], dtype=torch.float64, device=x.device)
    for piece in torch.split(x, 8192, dim=1):
        total += torch.bmm(piece.transpose(1, 2), piece).double()
    return total


def _factor(gram: Tensor, pull: Tensor) -> Tensor:
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    for attempt in range(8):
        factor: Tensor
        factor, status = torch.linalg.cholesky_ex(gram + (pull * 10.0**attempt)[:, None, None] * eye)
        if not bool(status.any()):
            return factor
    raise InvalidArgumentError("the Gram matrix of a layer's inputs is not finite: check the images and the networks' outputs on them")
