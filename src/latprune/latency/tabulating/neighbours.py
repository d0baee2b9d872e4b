"""Kernels whose cost changes when the block beside them is removed, because the engine then fuses them another way.

OpenVINO, for instance, moves the stride of a projection up into the convolutions before it once the block that shared their output is gone;
those then compute a quarter of their places. ONNX Runtime runs a residual addition on its own once the norm that took it up is gone: a step
that costs the same after every kernel, however much that kernel itself computes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from latprune.graph.types import Kernel

__all__ = ["Condition", "Neighbour", "Observation", "active", "candidate_conditions", "find_neighbours", "written"]

FloatArray = npt.NDArray[np.float64]

REACH = 2
"""Blocks that one condition may name: the neighbour, and those between that are gone too."""
_FEWEST = 4
_SURE, _LARGE = 4.0, 0.05
_MOST = 8
_LEAST_FACTOR = 0.1
_CLEARLY = 0.7
"""An addition counts instead of a factor where it leaves at most this share of the factor's error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """Where all of ``removed`` are gone, a kernel costs ``factor`` times its table and ``added_ms`` more, in proportion to what it writes
    (``written``).
    """

    removed: tuple[str, ...]
    factor: float = 1.0
    added_ms: float = 0.0


def written(sizes: Sequence[npt.ArrayLike], dense: Sequence[int]) -> FloatArray:
    """What a kernel of ``sizes`` (one per axis) writes, relative to the dense one: the share of its last axis."""
    return np.asarray(sizes[-1], dtype=np.float64) / dense[-1] if len(sizes) else np.ones(())


def active(neighbours: Iterable[Neighbour], removed: Collection[str]) -> tuple[float, float]:
    """What the conditions that hold make of a kernel's cost: ``(1 + sum (factor - 1), sum added_ms)``. Sums keep the cost linear for the
    solvers.
    """
    held = [item for item in neighbours if all(block in removed for block in item.removed)]
    return 1.0 + sum(item.factor - 1.0 for item in held), sum(item.added_ms for item in held)


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
    """One sample of a kernel: measured and fitted milliseconds, what it wrote (``written``), and the blocks that its network lacked."""

    kernel: str
    spent: float
    fitted: float
    removed: frozenset[str]
    written: float = 1.0

    @property
    def residual(self) -> float:
        """Logarithm of measured over fitted time."""
        return float(np.log(self.spent / self.fitted))


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

    Equal kernels at equal places that meet the same block on the same side share one factor, or one addition where that explains their
    samples clearly better, whichever blocks between are gone too: what counts is what they stand beside. Conditions are taken strongest
    first, each judged on the samples that the ones before it leave alone; one counts where the medians with and without it differ by more
    than four standard errors and 5 %.

    Args:
        observations: Kind of kernel (surface key) -> samples of all kernels of that kind.
        conditions: Kernel name -> conditions to try (``candidate_conditions``).

    Returns:
        Kernel name -> its neighbours; a kernel that none matters to is not in it.
    """
    found: dict[str, list[Neighbour]] = defaultdict(list)
    for samples in observations.values():
        logs = np.asarray([sample.residual for sample in samples])
        # The same in milliseconds per output, in units of what such kernels take, where an addition stands out from small and large alike.
        excess = np.asarray([(sample.spent - sample.fitted) / sample.written for sample in samples])
        excess /= float(np.median([sample.fitted / sample.written for sample in samples]))
        names = sorted({sample.kernel for sample in samples})
        # Per condition: 1 where it holds, 0 where it does not, -1 for kernels that it is not about.
        holds: dict[tuple[str, str, int], npt.NDArray[np.int8]] = {}
        for row, sample in enumerate(samples):
            for condition in conditions.get(sample.kernel, ()):
                state = holds.setdefault((condition.met, condition.side, condition.place), np.full(len(samples), -1, dtype=np.int8))
                state[row] = sample.removed.issuperset(condition.removed)
        taken = np.zeros(len(samples), dtype=bool)
        for _ in range(_MOST):
            sure: list[tuple[float, tuple[str, str, int]]] = []
            for key, state in holds.items():
                for values in (logs, excess):
                    shift, error = _shift(values[(state == 1) & ~taken], values[(state == 0) & ~taken])
                    if abs(shift) > max(_SURE * error, _LARGE):
                        sure.append((abs(shift) / error, key))
            if not sure:
                break
            chosen = max(sure)[1]
            state = holds[chosen]
            shift, _ = _shift(logs[(state == 1) & ~taken], logs[(state == 0) & ~taken])
            change = _change([sample for sample, held in zip(samples, (state == 1) & ~taken, strict=True) if held], shift)
            for name in names:
                for condition in conditions.get(name, ()):
                    # What all conditions take off together must leave something.
                    room = 1.0 + sum(min(item.factor, 1.0) - 1.0 for item in found[name]) - _LEAST_FACTOR
                    if (condition.met, condition.side, condition.place) == chosen and 1.0 - change.factor < room:
                        found[name].append(replace(change, removed=condition.removed))
            taken |= holds.pop(chosen) == 1
    return {name: tuple(items) for name, items in found.items() if items}


def _change(samples: Sequence[Observation], shift: float) -> Neighbour:
    """A factor or an addition: which of them leaves less of the samples that a condition holds for, in the median."""
    spent, fitted, wrote = np.asarray([(item.spent, item.fitted, item.written) for item in samples]).T
    factor = float(np.exp(shift))
    added = float(np.median((spent - fitted) / wrote))
    if added > 0.0:
        by_factor, by_addition = (float(np.median(np.abs(np.log(spent / told)))) for told in (factor * fitted, fitted + added * wrote))
        if by_addition < _CLEARLY * by_factor:
            return Neighbour(removed=(), added_ms=added)
    return Neighbour(removed=(), factor=factor)


def _shift(with_it: FloatArray, without: FloatArray) -> tuple[float, float]:
    """Difference of the medians and its standard error; none where either side has too few samples."""
    if len(with_it) < _FEWEST or len(without) < _FEWEST:
        return 0.0, 1.0
    centres = float(np.median(with_it)), float(np.median(without))
    spread = 1.4826 * float(np.median(np.abs(without - centres[1])))
    # A handful of samples may lie close together by chance; they vary at least as the others do.
    own = max(1.4826 * float(np.median(np.abs(with_it - centres[0]))), spread, 0.01)
    return centres[0] - centres[1], 1.2533 * float(np.sqrt(own**2 / len(with_it) + spread**2 / len(without)))
