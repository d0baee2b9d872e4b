"""Which channels stay: greedy elimination on the Gram matrix of what the consumers read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, Selection
from latprune.importance.ranking import best_units
from latprune.program.module import ProgramModule
from latprune.recovery.batches import calibration_pieces
from latprune.recovery.readers import Block, find_readers, measured_blocks, silent_groups
from latprune.recovery.retracing import graph_on

__all__ = ["reconstruction_ranking", "unread_groups"]

Scores = npt.NDArray[np.float64]


def reconstruction_ranking(
    dense: nn.Module,
    graph: ModelGraph,
    data: Iterable[Any],
    *,
    images: int = 512,
    rows: int = 100,
    ridge: float = 1e-3,
    seed: int = 0,
) -> dict[str, Scores]:
    """Rank the units of every group by how badly their consumers' results can be reconstructed without them.

    Unit by unit the one goes whose loss raises the consumers' squared error least, all remaining weights refitted each time. For
    consumers with inputs ``X``, weights ``B`` and ``H = X'X / n + ridge`` the loss of channel ``q`` is ``|B_q|^2 / (H^-1)_qq`` (optimal
    brain surgeon for a whole row), after which ``B`` and ``H^-1`` are brought up to date. All taps of a convolution share one Gram
    matrix, and each group of filters has its own. Queries and keys go by the logits that they make: a head's terms are its places, and
    their Gram matrix is that of the queries times that of the keys, place by place.

    Args:
        dense: The dense network.
        graph: Its trace.
        data: Batches of inputs, as for :func:`latprune.recovery.recover`.
        images: Images at most.
        rows: Rows per channel of a layer's input at most.
        ridge: Relative to the mean square of the inputs.
        seed: Seed of the sample.

    Returns:
        Group -> ``(units,)`` scores, at least 0: the error (relative to the consumers' results) at which a unit goes, growing in the order
        of elimination. The best ``w`` units by it are what a width of ``w`` keeps. Groups of which nothing can be said are left out:
        those that no layer and no product of queries and keys reads, such as the inputs of a recurrence.
    """
    if images < 1 or rows < 1 or not ridge >= 0:
        raise InvalidArgumentError(f"images (={images}) and rows (={rows}) must be at least 1 and ridge (={ridge}) at least 0")
    batches = _batches(dense, graph, data, images)
    graph = _followed(dense, graph, batches)
    blocks = list(measured_blocks(dense, graph, batches, rows=rows, ridge=ridge, seed=seed))
    silent = silent_groups(graph, [block.members for block in blocks])
    return {name: _eliminate(name, graph.groups[name].units, blocks) for name in graph.groups if name not in silent}


def unread_groups(dense: nn.Module, graph: ModelGraph, batch: Any, *, images: int = 512) -> list[str]:
    """Groups that :func:`reconstruction_ranking` leaves out, as far as a run of one batch tells.

    Args:
        dense: The dense network.
        graph: Its trace.
        batch: A batch of inputs.
        images: Images that are taken of it at most.
    """
    batches = _batches(dense, graph, [batch], images)
    graph = _followed(dense, graph, batches)
    _, readers = find_readers(dense, graph, batches[0])
    return silent_groups(graph, [members for reader in readers for members in reader.members])


def _batches(dense: nn.Module, graph: ModelGraph, data: Iterable[Any], images: int) -> list[Any]:
    device = next((p.device for p in dense.parameters()), torch.device("cpu"))
    only = dense.only_batch if isinstance(dense, ProgramModule) else None
    shapes = graph.input_shapes
    fitted, held = calibration_pieces(data, images, device, size=only, whole=only is not None, model=dense, shapes=shapes)
    return [piece.inputs for piece in (*fitted, *held)]


def _followed(dense: nn.Module, graph: ModelGraph, batches: list[Any]) -> ModelGraph:
    """The graph with the calls of a run on the data, where that would narrow every group in the same way."""
    narrowed = {n: best_units(g, np.arange(g.units, 0.0, -1.0), max(g.min_width, g.columns // 2)) for n, g in graph.groups.items()}
    return graph_on(graph, Selection(kept=narrowed), dense, batches[0]) if batches else graph


@dataclass(slots=True, eq=False)
class _Work:
    """A block while units of one group go.

    Attributes:
        inverse: ``(c, c)`` inverse of the Gram matrix of the channels that are left.
        weight: ``(c, m)`` their weights, refitted.
        energy: What errors are relative to.
        places: Unit -> its channels.
        losses: ``(units,)`` what each unit would cost now.
    """

    inverse: Tensor
    weight: Tensor
    energy: float
    places: dict[int, list[int]]
    losses: Scores

    def weigh(self) -> None:
        """Bring :attr:`losses` up to date."""
        by_count: dict[int, list[int]] = {}
        for unit, places in self.places.items():
            by_count.setdefault(len(places), []).append(unit)
        for units in by_count.values():
            at = torch.tensor([self.places[unit] for unit in units], device=self.weight.device)  # (units, places of each)
            rows = self.weight[at]
            if at.shape[1] == 1:
                values = rows.square().sum((1, 2)) / self.inverse.diagonal()[at[:, 0]].clamp_min(1e-30)
            else:
                values = (rows * torch.linalg.solve(self.inverse[at[:, :, None], at[:, None, :]], rows)).sum((1, 2))
            self.losses[units] = values.cpu().numpy() / self.energy

    def remove(self, unit: int) -> None:
        """Take a unit's channels out: the remaining weights are refitted, its rows and those of the inverse become 0."""
        places = self.places.pop(unit)
        block = torch.linalg.inv(self.inverse[places][:, places])
        across = self.inverse[:, places]
        self.weight -= across @ (block @ self.weight[places])
        self.inverse -= across @ block @ across.T
        self.weight[places] = 0
        self.inverse[places, :] = 0
        self.inverse[:, places] = 0
        self.inverse[places, places] = 1.0
        self.losses[unit] = 0.0
        self.weigh()


def _work(name: str, units: int, block: Block) -> _Work | None:
    places: dict[int, list[int]] = {}
    for place, members in enumerate(block.members):
        for group, unit in members:
            if group == name:
                places.setdefault(unit, []).append(place)
    if not places:
        return None
    found = _Work(inverse=block.inverse.clone(), weight=block.weight.clone(), energy=block.energy, places=places, losses=np.zeros(units))
    found.weigh()
    return found


def _eliminate(name: str, units: int, blocks: list[Block]) -> Scores:
    work = [found for block in blocks if (found := _work(name, units, block)) is not None]
    scores = np.zeros(units)
    alive = np.ones(units, dtype=bool)
    level = 0.0
    for step in range(units):
        losses = np.where(alive, sum(block.losses for block in work), np.inf)
        unit = int(losses.argmin())
        # The error never falls as more goes; a small step keeps the order where it is flat.
        level = max(level * (1 + 1e-9) + 1e-15 * (step + 1), float(losses[unit]))
        scores[unit] = level
        alive[unit] = False
        for block in work:
            if unit in block.places:
                block.remove(unit)
    return scores
