"""After the refit: batch norms with some of the spread that they have in the dense network, where class probabilities come nearer by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latprune.importance.outputs import output_js
from latprune.recovery.batches import count
from latprune.recovery.contract import Situation
from latprune.recovery.norm_basis import own_norms
from latprune.recovery.output_error import no_worse, outputs_of
from latprune.recovery.report import LayerRecovery
from latprune.recovery.values import Values
from latprune.train.batches import forward
from latprune.train.calibration import recalibrate_batch_norm

__all__ = ["restore_spread", "vectors_of"]

_SHARES = (1.0, 0.5)
"""Shares of the way back to the dense network's spread that are tried."""
_IMAGES = 256
"""Images that statistics are measured on each time; one number per channel needs no more."""


def vectors_of(situation: Situation) -> dict[int, Tensor]:
    """The weights and biases that norms may have, as they are, by identity."""
    return {id(p): p.detach().clone() for p in situation.pruned.parameters() if p.dim() == 1}


def restore_spread(situation: Situation, start: Mapping[int, Tensor]) -> LayerRecovery | None:
    r"""Bring weight and bias of every batch norm towards what they were before the fit, its statistics measured again.

    A least-squares fit explains a part of what it is fitted to, so its result varies less than the dense network's, and each layer adds to
    that: the squared error is least so, and the class probabilities are too even. With a norm on its own statistics
    (:func:`latprune.recovery.norm_basis.norms_on_own_statistics`), weight :math:`\gamma` and bias :math:`\beta` are the spread and mean
    of each channel. Bringing them back to the dense network's (REPAIR, Jordan et al. 2023, for merged networks) gives deep and narrow
    networks their probabilities back, and takes a little from others. So shares of the way are tried, and the one is taken whose class
    probabilities on held-out images are nearest to the dense network's (Jensen-Shannon divergence), if they are nearer than the fit's by
    more than the standard error of the difference.

    Args:
        situation: The networks after the fit; the pruned one's norms and their statistics may change.
        start: The norms' weights and biases before it (:func:`vectors_of`).

    Returns:
        The entry of the norms; None where they stay: there are none, the output is not one tensor of class scores ``(images, classes)``,
        no images are held out, nothing can be compared, or the class probabilities would be no nearer to the dense network's.
    """
    watch, judged = situation.watch, situation.held_out
    references = _scores(situation.dense, judged)
    if not references or watch is None or watch.place != "outputs" or watch.before is None:
        return None
    few = _few(situation.fitted)
    norms = [n for n in own_norms(situation.pruned, few, within=situation.within) if id(n.weight) in start and id(n.bias) in start]
    if not norms:
        return None
    for norm in norms:
        norm.change()
    fitted = [(norm.weight.clone(), norm.bias.clone()) for norm in norms]
    begun = least = _divergences(situation, judged, references)
    taken, best = 0.0, Values(situation.pruned)
    for share in _SHARES:
        for norm, (weight, bias) in zip(norms, fitted, strict=True):
            norm.weight.detach().copy_(torch.lerp(weight, start[id(norm.weight)], share))
            norm.bias.detach().copy_(torch.lerp(bias, start[id(norm.bias)], share))
        recalibrate_batch_norm(situation.pruned, [(inputs, None) for inputs in few], batches=len(few), within=situation.within)
        found, error = _divergences(situation, judged, references), watch.error()
        if found.mean() < least.mean() and _surely(begun - found) and error is not None and no_worse(error, watch.before):
            taken, least, best = share, found, Values(situation.pruned)
    best.put_back()
    if not taken:
        return None
    before, after = float(begun.mean()), float(least.mean())
    situation.say(f"recovery: batch norms {taken:.0%} of the way to the dense spread, divergence {before:.3g} -> {after:.3g}")
    return LayerRecovery(
        layer="batch norms",
        action="spread",
        at="class probabilities",
        held_out_before=before,
        held_out_after=after,
        note=f"{taken:.0%} of the way to the dense network's spread",
    )


def _few(batches: Sequence[Any]) -> list[Any]:
    """The first batches, of about as many images as statistics need."""
    taken: list[Any] = []
    for inputs in batches:
        taken.append(inputs)
        if sum(map(count, taken)) >= _IMAGES:
            break
    return taken


@torch.no_grad()
def _scores(model: torch.nn.Module, batches: Sequence[Any]) -> list[Tensor] | None:
    """``(images, classes)`` class scores of each batch; None where the model gives something else (boxes, maps, several results)."""
    found: list[Tensor] = []
    for inputs in batches:
        outputs = outputs_of(forward(model, inputs))
        if len(outputs) != 1 or outputs[0].dim() != 2 or outputs[0].shape[1] < 2:
            return None
        found.append(outputs[0])
    return found


@torch.no_grad()
def _divergences(situation: Situation, batches: Sequence[Any], references: Sequence[Tensor]) -> Tensor:
    """``(images,)`` divergence of the class probabilities from the dense network's; infinite where they have another shape, or none."""
    situation.pruned.eval()
    now = _scores(situation.pruned, batches)
    if now is None or any(a.shape != b.shape for a, b in zip(references, now, strict=True)):
        return torch.full((sum(map(len, references)),), float("inf"))
    pairs = (pair for a, b in zip(references, now, strict=True) for pair in zip(torch.split(a, 1), torch.split(b, 1), strict=True))
    return torch.tensor([output_js(reference, scores)[0] for reference, scores in pairs])


def _surely(gains: Tensor) -> bool:
    """Whether the mean gain is above its standard error; one image says nothing."""
    return len(gains) > 1 and float(gains.mean()) > float(gains.std()) / len(gains) ** 0.5
