"""Kernels whose cost changes when the block beside them is removed, because the engine then fuses them another way.

OpenVINO, for instance, moves the stride of a projection up into the convolutions before it once the block that shared their output is gone;
those then compute a quarter of their places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from latprune.graph.types import Kernel

__all__ = ["Condition", "Neighbour", "Observation", "active_factor", "candidate_conditions", "find_neighbours"]

FloatArray = npt.NDArray[np.float64]

REACH = 2
"""Blocks that one condition may name: the neighbour, and those between that are gone too."""
_FEWEST = 4
_SURE, _LARGE = 4.0, 0.05
_MOST = 8
_LEAST_FACTOR = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A kernel costs ``factor`` times its table where all of ``removed`` are gone."""

    removed: tuple[str, ...]
    factor: float


def active_factor(neighbours: Iterable[Neighbour], removed: Collection[str]) -> float:
    """What the conditions that hold make of a kernel's cost: ``1 + sum (factor - 1)``. Sums keep the cost linear for the solvers."""
    return 1.0 + sum(item.factor - 1.0 for item in neighbours if all(block in removed for block in item.removed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A kernel stands beside ``met`` in the place of what was there: all of ``removed``, up to ``met`` itself, are gone.

    ``side`` is ``after`` where ``met`` runs after the kernel; ``place`` counts the kernels of its unit that stand between it and that side.
    """

    met: str
    side: str
    place: int
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One sample of a kernel: the logarithm of measured over fitted time, and the blocks that its network lacked."""

    kernel: str
    residual: float
    removed: frozenset[str]


def candidate_conditions(kernels: Sequence[Kernel]) -> dict[str, list[Condition]]:
    """Kernel name -> conditions under which it stands beside something new, from the order in which ``kernels`` run.

    Consecutive kernels inside the same blocks are one unit. A unit meets what lies behind the next blocks once these are gone; kernels in
    no block always run, so nothing is met across them.
    """
    units = [(blocks, [kernel.name for kernel in part]) for blocks, part in groupby(kernels, key=lambda kernel: kernel.blocks)]
    found: dict[str, list[Condition]] = defaultdict(list)
    for index, (own, names) in enumerate(units):
        for side, others in (("after", range(index + 1, len(units))), ("before", range(index - 1, -1, -1))):
            chain: tuple[str, ...] = ()
            for other in others:
                # Inside a nest, the innermost block that the kernel does not lie in itself goes first.
                outside = [block for block in units[other][0] if block not in own]
                if not outside or len(chain) == REACH:
                    break
                if outside[-1] not in chain:
                    chain = (*chain, outside[-1])
                    facing = names[::-1] if side == "after" else names
                    for place, name in enumerate(facing):
                        found[name].append(Condition(met=outside[-1], side=side, place=place, removed=chain))
    return dict(found)


def find_neighbours(
    observations: Mapping[str, Sequence[Observation]], conditions: Mapping[str, Sequence[Condition]]
) -> dict[str, tuple[Neighbour, ...]]:
    """What the removal of blocks does to the kernels beside them.

    Equal kernels at equal places that meet the same block on the same side share one factor, whichever blocks between are gone too: what
    counts is what they stand beside. Conditions are taken strongest first, each judged on the samples that the ones before it leave
    alone; one counts where the medians with and without it differ by more than four standard errors and 5 %.

    Args:
        observations: Kind of kernel (surface key) -> samples of all kernels of that kind.
        conditions: Kernel name -> conditions to try (``candidate_conditions``).

    Returns:
        Kernel name -> its neighbours; a kernel that none matters to is not in it.
    """
    found: dict[str, list[Neighbour]] = defaultdict(list)
    for samples in observations.values():
        values = np.asarray([sample.residual for sample in samples])
        names = sorted({sample.kernel for sample in samples})
        # Per condition: 1 where it holds, 0 where it does not, -1 for kernels that it is not about.
        holds: dict[tuple[str, str, int], npt.NDArray[np.int8]] = {}
        for row, sample in enumerate(samples):
            for condition in conditions.get(sample.kernel, ()):
                state = holds.setdefault((condition.met, condition.side, condition.place), np.full(len(samples), -1, dtype=np.int8))
                state[row] = sample.removed.issuperset(condition.removed)
        taken = np.zeros(len(samples), dtype=bool)
        for _ in range(_MOST):
            judged = [(key, *_shift(values[(state == 1) & ~taken], values[(state == 0) & ~taken])) for key, state in holds.items()]
            sure = [(abs(shift) / error, shift, key) for key, shift, error in judged if abs(shift) > max(_SURE * error, _LARGE)]
            if not sure:
                break
            _, shift, chosen = max(sure)
            factor = float(np.exp(shift))
            for name in names:
                for condition in conditions.get(name, ()):
                    # What all conditions take off together must leave something.
                    room = 1.0 + sum(min(item.factor, 1.0) - 1.0 for item in found[name]) - _LEAST_FACTOR
                    if (condition.met, condition.side, condition.place) == chosen and 1.0 - factor < room:
                        found[name].append(Neighbour(removed=condition.removed, factor=factor))
            taken |= holds.pop(chosen) == 1
    return {name: tuple(items) for name, items in found.items() if items}


def _shift(with_it: FloatArray, without: FloatArray) -> tuple[float, float]:
    """Difference of the medians and its standard error; none where either side has too few samples."""
    if len(with_it) < _FEWEST or len(without) < _FEWEST:
        return 0.0, 1.0
    centres = float(np.median(with_it)), float(np.median(without))
    spread = 1.4826 * float(np.median(np.abs(without - centres[1])))
    # A handful of samples may lie close together by chance; they vary at least as the others do.
    own = max(1.4826 * float(np.median(np.abs(with_it - centres[0]))), spread, 0.01)
    return centres[0] - centres[1], 1.2533 * float(np.sqrt(own**2 / len(with_it) + spread**2 / len(without)))
