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
from latprune.graph import ModelGraph
from latprune.program.module import ProgramModule
from latprune.recovery.batches import calibration_batches
from latprune.recovery.rows import to_matrix
from latprune.recovery.sites import Site, find_sites
from latprune.recovery.stepper import Stepper, record_operations

__all__ = ["reconstruction_ranking"]

Scores = npt.NDArray[np.float64]


@dataclass(slots=True, eq=False)
class _Consumer:
    """What one layer reads: inverse Gram matrix ``(c, c)``, weights ``(c, taps * outputs)``, and the memberships of its channels."""

    inverse: Tensor
    weight: Tensor
    energy: float
    memberships: list[tuple[tuple[str, int], ...]]


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
    brain surgeon for a whole row), after which ``B`` and ``H^-1`` are brought up to date. All taps of a convolution share one Gram matrix.

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
        of elimination. The best ``w`` units by it are what a width of ``w`` keeps. A group that nothing with weights reads has ones.
    """
    if images < 1 or rows < 1 or not ridge >= 0:
        raise InvalidArgumentError(f"images (={images}) and rows (={rows}) must be at least 1 and ridge (={ridge}) at least 0")
    device = next((p.device for p in dense.parameters()), torch.device("cpu"))
    only = dense.only_batch if isinstance(dense, ProgramModule) else None
    fitted, held = calibration_batches(data, images, device, size=only, whole=only is not None, model=dense, shapes=graph.input_shapes)
    batches = [*fitted, *held]
    consumers = _consumers(dense, graph, batches, rows, ridge, seed)
    return {name: _eliminate(name, graph, consumers) for name in graph.groups}


def _consumers(dense: nn.Module, graph: ModelGraph, batches: list[Any], rows: int, ridge: float, seed: int) -> list[_Consumer]:
    within = str(graph.plan.within or "")
    run = record_operations(dense, batches[0], within)
    if [str(op.func) for op in run.operations] != [call.op for call in graph.calls]:
        raise InvalidArgumentError(
            "the network takes another course on this data than when it was traced; trace it with a batch like these"
        )
    stepper = Stepper(dense, batches, within, run)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for site in find_sites(run, dense):
        fields = graph.calls[site.index].all_fields[site.inputs] if not site.reason else ()
        field = next((f for f in fields if sum(n > 1 for n in f.shape) == 1), None)
        if field is None or (site.convolution and int(site.options[5]) > 1):
            continue
        memberships = [graph.class_units[c] if c >= 0 else () for c in field.reshape(-1).tolist()]
        if not any(memberships):
            continue
        with stepper.ready():
            for k in range(len(stepper)):
                stepper.advance(k, site.index)
        gram = _gram([stepper.arguments(k)[site.inputs] for k in range(len(stepper))], site, rows, generator)
        gram.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(1e-12))
        weight = to_matrix(site)[0].reshape(gram.shape[0], -1)
        energy = float((weight * (gram @ weight)).sum())
        if energy > 0:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
            found.append(_Consumer(inverse=inverse, weight=weight, energy=energy, memberships=memberships))
    return found


def _gram(inputs: list[Tensor], site: Site, rows: int, generator: torch.Generator) -> Tensor:
    """``(channels, channels)`` float64, mean over the places."""
    total, count = None, 0
    for x in inputs:
        flat = x.flatten(2).transpose(1, 2).reshape(-1, x.shape[1]) if site.convolution else x.reshape(-1, x.shape[-1])
        wanted = max(256, rows * flat.shape[1] // len(inputs))
        if flat.shape[0] > wanted:
            flat = flat[torch.randperm(flat.shape[0], generator=generator)[:wanted].to(flat.device)]
        here = (flat.T @ flat).double()
        total = here if total is None else total + here
        count += flat.shape[0]
    assert total is not None
    return total / count


def _eliminate(name: str, graph: ModelGraph, consumers: list[_Consumer]) -> Scores:
    units = graph.groups[name].units
    work: list[tuple[Tensor, Tensor, float, list[list[int]]]] = []
    for c in consumers:
        places: list[list[int]] = [[] for _ in range(units)]
        for place, members in enumerate(c.memberships):
            for group, unit in members:
                if group == name:
                    places[unit].append(place)
        if any(places):
            work.append((c.inverse.clone(), c.weight.clone(), c.energy, places))
    if not work:
        return np.ones(units)
    scores = np.zeros(units)
    alive = np.ones(units, dtype=bool)
    level = 0.0
    for step in range(units):
        losses = np.zeros(units)
        for inverse, weight, energy, places in work:
            losses += _losses(inverse, weight, places, alive) / energy
        losses[~alive] = np.inf
        unit = int(losses.argmin())
        # The error never falls as more goes; a small step keeps the order where it is flat.
        level = max(level * (1 + 1e-9) + 1e-15 * (step + 1), float(losses[unit]))
        scores[unit] = level
        alive[unit] = False
        for inverse, weight, _, places in work:
            _remove(inverse, weight, places[unit])
    return scores


def _losses(inverse: Tensor, weight: Tensor, places: list[list[int]], alive: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    if all(len(p) == 1 for p in places):
        at = torch.tensor([p[0] for p in places], device=weight.device)
        values = weight[at].square().sum(1) / inverse.diagonal()[at].clamp_min(1e-30)
        return np.asarray(values.cpu().numpy(), dtype=np.float64)
    found = np.zeros(len(places))
    for unit, mine in enumerate(places):
        if alive[unit] and mine:
            rows = weight[mine]
            found[unit] = float((rows * torch.linalg.solve(inverse[mine][:, mine], rows)).sum())
    return found


def _remove(inverse: Tensor, weight: Tensor, places: list[int]) -> None:
    """Take channels out: the remaining weights are refitted, their rows and those of the inverse become 0."""
    if not places:
        return
    block = torch.linalg.inv(inverse[places][:, places])
    across = inverse[:, places]
    weight -= across @ (block @ weight[places])
    inverse -= across @ block @ across.T
    weight[places] = 0
    inverse[places, :] = 0
    inverse[:, places] = 0
    inverse[places, places] = 1.0
