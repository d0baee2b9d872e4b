"""Selection by reconstruction: the units that their consumers can do without, all remaining weights refitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.graph.model_graph import ModelGraph
from latprune.graph.types import Role
from latprune.importance.core import GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.tensors import combine
from latprune.recovery.elimination import reconstruction_ranking

__all__ = ["ReconstructionConfig", "score_reconstruction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionConfig:
    """Greedy elimination on the Gram matrix of what the consumers read; batches of inputs are needed, labels are not.

    Attributes:
        images: Images at most.
        rows: Rows per channel of a layer's input at most.
        ridge: Relative to the mean square of the inputs.
        seed: Seed of the sample.
    """

    images: int = 512
    rows: int = 100
    ridge: float = 1e-3
    seed: int = 0


@register(ReconstructionConfig, name="reconstruction", needs_data=True, reads_inputs=True)
def score_reconstruction(
    model: nn.Module, graph: GroupedModel, config: ReconstructionConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """Scores in the order of elimination; shares are split evenly over the layers that make the channels."""
    if data is None:
        raise InvalidArgumentError("ReconstructionConfig scores by what layers read: data must hold batches of inputs")
    if not isinstance(graph, ModelGraph):
        raise InvalidArgumentError(
            "ReconstructionConfig follows the recorded run of the dense network, and this one was cut: use it in a method of a single pass"
        )
    units = reconstruction_ranking(model, graph, data, images=config.images, rows=config.rows, ridge=config.ridge, seed=config.seed)
    parts: dict[str, list[tuple[tuple[str, ...], Scores]]] = {}
    for name, group in graph.groups.items():
        makers = dict.fromkeys((m.kernel, m.blocks) for m in group.members if m.role is Role.PRODUCER)
        parts[name] = [(blocks, np.ones(group.units)) for _, blocks in makers]
    return combine(units, parts)
