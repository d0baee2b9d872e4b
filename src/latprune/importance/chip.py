"""Channel independence (CHIP, arXiv:2110.13981)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latprune.argument_rules import check_flag, check_whole
from latprune.importance.activations import ActivationPlace, read_activations
from latprune.importance.core import GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.place_scores import PlaceScores

__all__ = ["CHIPConfig", "channel_independence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CHIPConfig:
    """How much of a layer's feature maps no other channel of the layer can stand in for.

    Attributes:
        batches: Look at so many batches; None takes all.
        exact: The paper's value, by one decomposition per channel; otherwise its first-order value, by one per layer.
    """

    batches: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if self.batches is not None:
            check_whole("batches", self.batches, least=1, instead=", or None for all")
        check_flag("exact", self.exact)


def channel_independence(maps: Tensor, *, exact: bool = False) -> Scores:
    """``||A||_* - ||A with row k set to 0||_*`` (nuclear norms; CHIP eq. 3), the mean over images.

    The first-order value is the diagonal of ``(A A^T)^(1/2)``: the derivative of the nuclear norm is ``U V^T``. The norm is convex, so it
    is never below the exact one.

    Args:
        maps: ``(batch, n, ...)`` activations; all dimensions after the channels are one row of the matrix ``A``.
        exact: Decompose once for each channel.

    Returns:
        ``(n,)`` at least 0.
    """
    rows = maps.flatten(2).double() if maps.ndim > 2 else maps.double().T[None]  # vectors: the batch is the row
    gram = rows @ rows.transpose(1, 2)  # (batch, n, n)
    if not exact:
        values, vectors = torch.linalg.eigh(gram)
        diagonal = (vectors.square() * values.clamp(min=0).sqrt()[:, None, :]).sum(dim=2)
        return np.asarray(diagonal.mean(dim=0).cpu().numpy(), dtype=np.float64)
    whole = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum(dim=1)
    found = []
    for k in range(gram.shape[1]):
        others = [i for i in range(gram.shape[1]) if i != k]
        left = torch.linalg.eigvalsh(gram[:, others][:, :, others]).clamp(min=0).sqrt().sum(dim=1)
        found.append(float((whole - left).clamp(min=0).mean()))
    return np.array(found, dtype=np.float64)


def _check(model: nn.Module, graph: GroupedModel, config: CHIPConfig, batch: Any) -> None:
    read_activations(model, graph, [batch], lambda place, maps: None)


@register(CHIPConfig, name="chip", needs_data=True, check=_check, reads_inputs=True)
def score_chip(model: nn.Module, graph: GroupedModel, config: CHIPConfig, data: Iterable[Any] | None, loss: LossFunction) -> Importance:
    """Mean channel independence over the batches and over the places where the group is seen."""
    found = PlaceScores(graph)

    def visit(place: ActivationPlace, maps: Tensor) -> None:
        found.add(place, channel_independence(maps, exact=config.exact))

    read_activations(model, graph, data, visit, batches=config.batches)
    return found.importance()
