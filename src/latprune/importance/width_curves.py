"""Curves of divergence by width: measured at a few widths, read between them, drawn to a prior, with what each block adds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import nn

from latprune.graph.types import ChannelGroup
from latprune.importance.core import Blocks, GroupedModel, Scores
from latprune.importance.measured_values import MeasuredValues
from latprune.importance.ranking import layer_importance, rank_units
from latprune.importance.reference import Reference
from latprune.importance.silenced import silenced_units
from latprune.importance.tensors import present_units

__all__ = ["LEAST", "add_blocks", "drawn_to_prior", "group_curve", "home_of", "width_curve"]

LEAST = 1e-9
"""A divergence of nothing still needs a logarithm."""


def width_curve(columns: int, measured: Mapping[int, float], nothing: float | None = None) -> Scores:
    """The divergence at every width from that at some: a power law between neighbours, rising as the width falls.

    Args:
        columns: The full width, which diverges by 0.
        measured: Width below ``columns`` -> divergence.
        nothing: Divergence where nothing is kept; None continues the last stretch.

    Returns:
        ``(columns + 1,)`` divergence by width, falling to 0.

    Example:
        >>> width_curve(4, {3: 1.0, 2: 4.0}).round(6).tolist()
        [16.0, 9.0, 4.0, 1.0, 0.0]
    """
    points = sorted((1.0 - width / columns, value) for width, value in measured.items() if width < columns)
    if nothing is not None:
        points.append((1.0, nothing))
    if not points:
        return np.zeros(columns + 1)
    removed = np.log([share for share, _ in points])
    values = np.log(np.maximum.accumulate([max(value, LEAST) for _, value in points]))
    slopes = np.diff(values) / np.diff(removed) if len(points) > 1 else np.array([2.0])  # a small cut's divergence is quadratic
    at = np.log(1.0 - np.arange(columns) / columns)
    inner = np.interp(at, removed, values)
    below = values[0] + max(float(slopes[0]), 1.0) * (at - removed[0])
    above = values[-1] + max(float(slopes[-1]), 1.0) * (at - removed[-1])
    curve = np.exp(np.where(at < removed[0], below, np.where(at > removed[-1], above, inner)))
    return np.append(curve, 0.0)


def group_curve(
    model: nn.Module,
    group: ChannelGroup,
    ranking: Scores,
    removed: tuple[float, ...],
    reference: Reference,
    nothing: float | None,
    known: MeasuredValues,
) -> Scores:
    """``(columns + 1,)`` divergence by width, measured with each share of ``removed`` taken away in the order of ``ranking``."""

    def without(gone: npt.NDArray[np.bool_]) -> float:
        with silenced_units(model, group, gone):
            return reference.distance()

    order = rank_units(group, ranking)  # (rows, columns), units that are gone last
    present = present_units(group)
    alive = _alive(group)
    measured: dict[int, float] = {}
    for share in removed:
        width = min(max(group.min_width, round((1.0 - share) * alive)), alive - 1)
        if width < group.min_width or width in measured:
            continue
        gone = np.zeros(group.units, dtype=np.bool_)
        gone[order[:, width:]] = True
        measured[width] = known.get(f"{group.name} at {width}", partial(without, gone & present))
    if any(not np.isfinite(value) for value in measured.values()):
        worst = max([value for value in measured.values() if np.isfinite(value)], default=1.0)
        measured = {width: value if np.isfinite(value) else 2.0 * worst for width, value in measured.items()}
    curve = width_curve(alive, measured, nothing) if alive else np.zeros(1)
    return np.concatenate([curve, np.zeros(group.columns - alive)])  # widths that are gone already cost nothing


def drawn_to_prior(
    ratios: Mapping[str, Scores],
    graph: GroupedModel,
    removed: tuple[float, ...],
    strength: float,
    lost: Mapping[str, Scores],
    home: Mapping[str, Blocks],
    blocks: Mapping[str, float],
) -> tuple[dict[str, Scores], dict[str, float]]:
    """The weighted geometric mean of each measured curve and SP-LAMP's on one common scale; blocks move as the groups inside do."""
    if strength == 0:
        return dict(lost), dict(blocks)
    prior = {}
    for name, group in graph.groups.items():
        kept = layer_importance(group, ratios[name])
        prior[name] = kept[-1] - kept
    deep: dict[str, float] = {}
    logs: list[float] = []
    for name, curve in lost.items():
        for share in removed:
            width = round((1.0 - share) * _alive(graph.groups[name]))
            if curve[width] > LEAST and prior[name][width] > LEAST:
                deep[name] = float(np.log(prior[name][width] / curve[width]))
                logs.append(-deep[name])
    common = float(np.mean(logs)) if logs else 0.0
    found = {}
    for name, curve in lost.items():
        both = (curve > 0) & (prior[name] > 0)
        drawn = curve.copy()
        drawn[both] = curve[both] ** (1.0 - strength) * (prior[name][both] * np.exp(common)) ** strength
        found[name] = np.maximum.accumulate(drawn[::-1])[::-1]
    moved = {}
    for block, value in blocks.items():
        inside = [deep[name] + common for name in deep if home[name] and home[name][-1] == block]
        moved[block] = value * float(np.exp(strength * np.mean(inside))) if inside else value
    return found, moved


def add_blocks(curves: dict[tuple[str, Blocks], Scores], graph: GroupedModel, blocks: Mapping[str, float]) -> None:
    """Give each block what its own divergence exceeds that of the groups inside by, on all widths alike, of a group that it touches."""
    chains = {block: kernel.blocks[: level + 1] for kernel in graph.kernels.values() for level, block in enumerate(kernel.blocks)}
    for block, chain in sorted(chains.items(), key=lambda item: -len(item[1])):
        inside = sum(float(curve[-1]) for (_, gates), curve in curves.items() if block in gates)
        more = blocks[block] - inside
        carriers = [name for name, group in graph.groups.items() if any(block in member.blocks for member in group.members)]
        if more > 0 and carriers:
            key = (carriers[0], chain)
            curves[key] = curves.get(key, np.zeros(graph.groups[carriers[0]].columns + 1)) + more


def home_of(group: ChannelGroup) -> Blocks:
    """The blocks that hold all of the group's layers, outermost first."""
    shared: list[str] = []
    for level in zip(*(member.blocks for member in group.members), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return tuple(shared)


def _alive(group: ChannelGroup) -> int:
    """Columns that are left in the group's fullest row."""
    return int(present_units(group).reshape(group.rows, group.columns).sum(axis=1).max(initial=0))
