"""Selection by reconstruction: the units that their consumers can do without, all remaining weights refitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from latprune.argument_rules import check_number, check_whole
from latprune.errors import InvalidArgumentError
from latprune.graph.model_graph import ModelGraph
from latprune.importance.core import GroupedModel, Importance, LossFunction, register
from latprune.importance.tensors import evenly_shared
from latprune.recovery.elimination import reconstruction_ranking, unread_groups

__all__ = ["ReconstructionConfig", "score_reconstruction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionConfig:
    """Greedy elimination on the Gram matrix of what the consumers read; batches of inputs are needed, labels are not.

    It follows the run of the dense network, so that methods which cut in several stages are refused, and so are networks with a group that
    no layer and no product of queries and keys reads (:func:`latprune.recovery.reconstruction_ranking`).

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

    def __post_init__(self) -> None:
        check_whole("images", self.images, least=1)
        check_whole("rows", self.rows, least=1)
        check_number("ridge", self.ridge, "be a number of at least 0", 0.0)
        check_whole("seed", self.seed, least=0)


def _dense(graph: GroupedModel) -> ModelGraph:
    if not isinstance(graph, ModelGraph):
        raise InvalidArgumentError(
            "ReconstructionConfig follows the recorded run of the dense network, and this one was cut: use it in a method of a single pass"
        )
    return graph


def _unread(names: Iterable[str]) -> InvalidArgumentError:
    found = list(names)
    listed = ", ".join(f"'{name}'" for name in found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    return InvalidArgumentError(
        f"ReconstructionConfig scores channels by what reads them, and no layer and no product of queries and keys reads those of {listed}"
        ": keep these groups whole (keep=, --keep), or take another criterion; units='reconstruction' (--units) leaves them to the method"
    )


def _check(model: nn.Module, graph: GroupedModel, config: ReconstructionConfig, batch: Any) -> None:
    unread = unread_groups(model, _dense(graph), batch, images=config.images) if batch is not None else []
    if unread:
        raise _unread(unread)


@register(ReconstructionConfig, name="reconstruction", needs_data=True, reads_inputs=True, check=_check, follows_dense=True)
def score_reconstruction(
    model: nn.Module, graph: GroupedModel, config: ReconstructionConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """Scores in the order of elimination; shares are split evenly over the layers that make the channels.

    Raises:
        InvalidArgumentError: There is no data, the network was cut, or nothing can be said of a group.
    """
    if data is None:
        raise InvalidArgumentError("ReconstructionConfig scores by what layers read: data must hold batches of inputs")
    units = reconstruction_ranking(model, _dense(graph), data, images=config.images, rows=config.rows, ridge=config.ridge, seed=config.seed)
    if len(units) < len(graph.groups):
        raise _unread(name for name in graph.groups if name not in units)
    return evenly_shared(graph, units)
