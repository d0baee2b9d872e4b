"""Rank of the feature maps (HRank, arXiv:2002.10179)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latprune.argument_rules import check_whole
from latprune.errors import InvalidArgumentError
from latprune.importance.activations import ActivationPlace, read_activations
from latprune.importance.core import GroupedModel, Importance, LossFunction, register
from latprune.importance.place_scores import PlaceScores

__all__ = ["HRankConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HRankConfig:
    """Mean rank of each channel's feature map over the images.

    Attributes:
        batches: Look at so many batches; None takes all.
    """

    batches: int | None = None

    def __post_init__(self) -> None:
        if self.batches is not None:
            check_whole("batches", self.batches, least=1, instead=", or None for all")


def _require_maps(place: ActivationPlace, maps: Tensor) -> None:
    if maps.ndim != 4:
        raise InvalidArgumentError(
            f"the activations of group '{place.group}' have shape {tuple(maps.shape)}, and a rank needs maps (batch, channels, rows, "
            "columns); choose 'chip', or a criterion of weights or gradients"
        )


def _check(model: nn.Module, graph: GroupedModel, config: HRankConfig, batch: Any) -> None:
    read_activations(model, graph, [batch], _require_maps)


@register(HRankConfig, name="hrank", needs_data=True, check=_check, reads_inputs=True)
def score_hrank(model: nn.Module, graph: GroupedModel, config: HRankConfig, data: Iterable[Any] | None, loss: LossFunction) -> Importance:
    """Mean over the images, and over the places where the group is seen, of the rank of the map of each channel.

    Raises:
        InvalidArgumentError: A group's activations are no two-dimensional maps.
    """
    found = PlaceScores(graph)

    def visit(place: ActivationPlace, maps: Tensor) -> None:
        _require_maps(place, maps)
        found.add(place, torch.linalg.matrix_rank(maps.float()).double().mean(dim=0).cpu().numpy().astype(np.float64))

    read_activations(model, graph, data, visit, batches=config.batches)
    return found.importance()
