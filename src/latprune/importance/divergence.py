"""Measured divergence: how far the model's output moves when a group alone is cut to a few widths.

Scores of weights or gradients rank the units of one group well and say little about how groups compare: a first-order term is of another
size behind a norm than behind none, in a wide expansion than in a narrow projection, and it says nothing of a deep cut. Here the groups'
common scale is measured. A run costs one forward pass over a few examples for each group and width, and for each block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup
from latprune.importance.activations import call, inputs_of
from latprune.importance.core import Blocks, GroupedModel, Importance, LossFunction, Scores, register, score
from latprune.importance.outputs import MEASURES, Measure
from latprune.importance.ranking import rank_units
from latprune.importance.silenced import batch_statistics, silenced_block, silenced_units
from latprune.importance.sp_lamp import SpLampConfig
from latprune.importance.tensors import check_finite, named_tensors, present_units

__all__ = ["DivergenceConfig", "width_curve"]

_LEAST = 1e-9
"""A divergence of nothing still needs a logarithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceConfig:
    """Output divergence of each group's widths, measured; units are ranked by another criterion.

    Attributes:
        rank: Criterion that orders the units of a group (it gets the same data and loss).
        removed: Shares of a group's width that are taken away and measured, rising, between 0 and 1.
        examples: Examples that each measurement runs, from the first batches. Norms use their statistics: some dozens at least.
        measure: ``kl``: mean Kullback-Leibler divergence of the class probabilities. ``error``: squared error of all outputs relative to
            their variance, for models that do not classify.
    """

    rank: object = field(default_factory=SpLampConfig)
    removed: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75)
    examples: int = 64
    measure: str = "kl"

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.removed))
        if not self.removed or not rising or not 0 < self.removed[0] or not self.removed[-1] < 1:
            raise InvalidArgumentError(f"removed (={self.removed}) must be rising shares between 0 and 1, at least one")
        if self.examples < 2:
            raise InvalidArgumentError(f"examples (={self.examples}) must be at least 2: norms need the statistics of a batch")
        if self.measure not in MEASURES:
            raise InvalidArgumentError(f"measure (={self.measure!r}) must be one of {', '.join(MEASURES)}")


class _Reference:
    """The dense outputs on a few examples, and how far the model's present ones are from them."""

    def __init__(self, model: nn.Module, data: Iterable[Any], config: DivergenceConfig) -> None:
        self._model = model
        self._measure: Measure = MEASURES[config.measure]
        self._inputs = _examples(data, config.examples)
        self._outputs = [call(model, inputs) for inputs in self._inputs]
        if not self._inputs:
            raise InvalidArgumentError("data holds no batch: the divergence is measured on its inputs")
        own = self._distance(self._outputs)
        if not np.isfinite(own):
            raise InvalidArgumentError("the model's outputs hold NaN or infinite values; a divergence needs finite ones")

    def distance(self) -> float:
        """Divergence of the model as it is now from the dense one, at least 0."""
        return self._distance([call(self._model, inputs) for inputs in self._inputs])

    def _distance(self, outputs: list[Any]) -> float:
        total, count = 0.0, 0
        for dense, now in zip(self._outputs, outputs, strict=True):
            value, examples = self._measure(dense, now)
            total += value * examples
            count += examples
        # An output that overflows is as far away as can be told.
        return max(total / count, 0.0) if np.isfinite(total) else float("inf")


def _examples(data: Iterable[Any], count: int) -> list[Any]:
    """Inputs of the first batches, trimmed to ``count`` examples; a last batch of one example is left out."""
    found: list[Any] = []
    for batch in data:
        inputs = inputs_of(batch)
        tensors = [value for value in (inputs.values() if isinstance(inputs, dict) else [inputs]) if isinstance(value, Tensor)]
        size = int(tensors[0].shape[0]) if tensors else count
        taken = min(size, count)
        if taken >= 2 or not found:
            found.append(_first(inputs, taken, size))
        count -= taken
        if count < 1:
            break
    return found


def _first(inputs: Any, count: int, size: int) -> Any:
    if isinstance(inputs, Mapping):
        return {key: _first(value, count, size) for key, value in inputs.items()}
    return inputs[:count] if isinstance(inputs, Tensor) and inputs.ndim and inputs.shape[0] == size else inputs


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
    values = np.log(np.maximum.accumulate([max(value, _LEAST) for _, value in points]))
    slopes = np.diff(values) / np.diff(removed) if len(points) > 1 else np.array([2.0])  # a small cut's divergence is quadratic
    at = np.log(1.0 - np.arange(columns) / columns)
    inner = np.interp(at, removed, values)
    below = values[0] + max(float(slopes[0]), 1.0) * (at - removed[0])
    above = values[-1] + max(float(slopes[-1]), 1.0) * (at - removed[-1])
    curve = np.exp(np.where(at < removed[0], below, np.where(at > removed[-1], above, inner)))
    return np.append(curve, 0.0)


@register(DivergenceConfig, name="divergence", needs_data=True)
def score_divergence(
    model: nn.Module, graph: GroupedModel, config: DivergenceConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """Curves: what each width of a group is worth, as the divergence that it avoids; units: the ranking, scaled to the curve's height.

    A group whose layers all lie in one block hangs on it: with the block gone the groups inside lose, together, the block's own measured
    divergence, however much each alone would.
    """
    if data is None:
        raise InvalidArgumentError("data (=None) must be batches: the divergence is measured on their inputs (labels are not needed)")
    for name, tensor in named_tensors(model).items():
        if tensor.is_floating_point():
            check_finite(tensor.detach(), name, "parameter" if isinstance(tensor, nn.Parameter) else "buffer")
    batches = data if isinstance(data, (list, tuple)) else _Kept(data)
    ranked = score(model, graph, config.rank, batches, loss=loss)
    home = {name: _home(group) for name, group in graph.groups.items()}
    with batch_statistics(model):
        reference = _Reference(model, batches, config)
        blocks = {}
        for block in dict.fromkeys(block for kernel in graph.kernels.values() for block in kernel.blocks):
            with silenced_block(model, graph, block):
                blocks[block] = reference.distance()
        lost = {
            name: _group_curve(model, group, ranked.units[name], config, reference, blocks[home[name][-1]] if home[name] else None)
            for name, group in graph.groups.items()
        }
    curves: dict[tuple[str, Blocks], Scores] = {}
    for name, curve in lost.items():
        inside = [other for other in home if home[other] == home[name]]
        whole = blocks[home[name][-1]] / len(inside) if home[name] else float(curve[0])
        curves[name, home[name]] = whole - curve
    _add_blocks(curves, graph, blocks)
    heights = {name: float(curve[0]) / max(float(ranked.units[name].sum()), _LEAST) for name, curve in lost.items()}
    return Importance(
        units={name: values * heights[name] for name, values in ranked.units.items()},
        shares={(name, chain): values * heights[name] for (name, chain), values in ranked.shares.items()},
        curves=curves,
    )


def _add_blocks(curves: dict[tuple[str, Blocks], Scores], graph: GroupedModel, blocks: Mapping[str, float]) -> None:
    """Give each block what its own divergence exceeds that of the groups inside by, on all widths alike, of a group that it touches."""
    chains = {block: kernel.blocks[: level + 1] for kernel in graph.kernels.values() for level, block in enumerate(kernel.blocks)}
    for block, chain in sorted(chains.items(), key=lambda item: -len(item[1])):
        inside = sum(float(curve[-1]) for (_, gates), curve in curves.items() if block in gates)
        more = blocks[block] - inside
        carriers = [name for name, group in graph.groups.items() if any(block in member.blocks for member in group.members)]
        if more > 0 and carriers:
            key = (carriers[0], chain)
            curves[key] = curves.get(key, np.zeros(graph.groups[carriers[0]].columns + 1)) + more


class _Kept:
    """Batches that can be read twice, though they come from an iterator: those that were read stay in memory."""

    def __init__(self, data: Iterable[Any]) -> None:
        self._source = iter(data)
        self._read: list[Any] = []

    def __iter__(self) -> Any:
        yield from list(self._read)
        for batch in self._source:
            self._read.append(batch)
            yield batch


def _home(group: ChannelGroup) -> Blocks:
    """The blocks that hold all of the group's layers, outermost first."""
    shared: list[str] = []
    for level in zip(*(member.blocks for member in group.members), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return tuple(shared)


def _group_curve(
    model: nn.Module, group: ChannelGroup, ranking: Scores, config: DivergenceConfig, reference: _Reference, nothing: float | None
) -> Scores:
    """``(columns + 1,)`` divergence by width."""
    order = rank_units(group, ranking)  # (rows, columns), units that are gone last
    present = present_units(group)
    alive = int(present.reshape(group.rows, group.columns).sum(axis=1).max(initial=0))
    measured: dict[int, float] = {}
    for share in config.removed:
        width = min(max(group.min_width, round((1.0 - share) * alive)), alive - 1)
        if width < group.min_width or width in measured:
            continue
        gone = np.zeros(group.units, dtype=np.bool_)
        gone[order[:, width:]] = True
        with silenced_units(model, group, gone & present):
            measured[width] = reference.distance()
    if any(not np.isfinite(value) for value in measured.values()):
        worst = max([value for value in measured.values() if np.isfinite(value)], default=1.0)
        measured = {width: value if np.isfinite(value) else 2.0 * worst for width, value in measured.items()}
    curve = width_curve(alive, measured, nothing) if alive else np.zeros(1)
    return np.concatenate([curve, np.zeros(group.columns - alive)])  # widths that are gone already cost nothing
