"""Which width-varied networks to measure so that every kernel is seen at sizes all over its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latprune.graph.types import Block, ChannelGroup

__all__ = ["DesignPoint", "design_points", "pick_units"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DesignPoint:
    """One network to measure: ``widths`` (group name -> width) and the blocks to remove, sorted."""

    widths: Mapping[str, int]
    removed: tuple[str, ...] = ()


def design_points(groups: Sequence[ChannelGroup], blocks: Sequence[Block], *, seed: int = 0) -> Iterator[DesignPoint]:
    """An endless sequence of networks, the same for the same seed; the dense one comes first.

    Widths of each group go through its whole range evenly (a stratified sample, 32 networks to a pass, shuffled by group so that groups
    vary independently and every pair of sizes gets its turn). In every second network they follow a common level instead, as widths under
    one budget do. In two networks of five all widths are multiples of 16 (of a smaller power of two for narrow groups), where engines
    have the ends of their steps: so are the dense network and what solvers make, and a kernel can be faster there than at the same sizes in
    other company. In another one none is on purpose; in the rest three in four are multiples of 8, because an engine that blocks its
    channels converts between layouts where the two kinds meet. Every third network lacks some blocks.
    """
    random = np.random.default_rng(seed)
    removable = [block for block in blocks if block.removable]
    strata = 32
    # Latencies are asked for relative to the dense network, whose sizes meet nowhere else, so what its kernels cost must be known.
    yield DesignPoint(widths={group.name: group.columns for group in groups})
    while True:
        columns = {group.name: random.permutation(strata) for group in groups}
        for row in range(strata):
            common = row % 2 == 1
            level = random.uniform(0.15, 1.0)
            aligned, unit = {1: (1.0, 16), 3: (1.0, 16), 4: (0.0, 8)}.get(row % 5, (0.75, 8))
            widths = {}
            for group in groups:
                if common:
                    share = float(np.clip(level + random.normal(0.0, 0.2), 0.0, 1.0))
                else:
                    share = (columns[group.name][row] + random.uniform()) / strata
                widths[group.name] = _width(group, share, aligned, unit, random)
            removed: tuple[str, ...] = ()
            if removable and row % 3 == 2:
                probability = random.uniform(0.1, 0.6)
                removed = tuple(sorted(block.name for block in removable if random.uniform() < probability))
            yield DesignPoint(widths=widths, removed=removed)


def _width(group: ChannelGroup, share: float, aligned: float, unit: int, random: np.random.Generator) -> int:
    """The width at ``share`` of the way from the smallest to the largest; a multiple of ``unit`` with probability ``aligned``."""
    low, high = group.min_width, group.columns
    # Below a sixteenth of the dense width nothing is offered, so nothing is measured.
    low = min(high, max(low, -(-high // 16)))
    width = low + share * (high - low)
    if random.uniform() < aligned:
        while unit > 1 and unit * 4 > high:
            unit //= 2
        width = max(unit, round(width / unit) * unit)
    return int(np.clip(round(width), low, high))


def pick_units(group: ChannelGroup, width: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Units of the first ``width`` columns of each row: which ones are kept does not matter to the clock."""
    rows = np.arange(group.rows, dtype=np.int64)[:, None] * group.columns
    return (rows + np.arange(width, dtype=np.int64)[None, :]).reshape(-1)
