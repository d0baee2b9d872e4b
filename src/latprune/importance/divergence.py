"""Measured divergence: how far the model's output moves when a group alone is cut to a few widths.

Scores of weights or gradients rank the units of one group well and say little about how groups compare: a first-order term is of another
size behind a norm than behind none, in a wide expansion than in a narrow projection, and it says nothing of a deep cut. Here the groups'
common scale is measured. A run costs one forward pass over a few examples for each group and width, and for each block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.tensors import tensors_in
from latprune.graph.types import ChannelGroup, Selection
from latprune.importance.activations import call, inputs_of
from latprune.importance.core import Blocks, GroupedModel, Importance, LossFunction, Scores, cross_entropy_loss, needs_data, register, score
from latprune.importance.outputs import JUDGES, MEASURES, Measure
from latprune.importance.ranking import layer_importance, rank_units
from latprune.importance.silenced import batch_statistics, silenced_block, silenced_units
from latprune.importance.sp_lamp import SpLampConfig
from latprune.importance.taylor import TaylorConfig
from latprune.importance.tensors import check_finite, named_tensors, present_units
from latprune.progress import counted

__all__ = ["DivergenceConfig", "Divergences", "width_curve"]

_LEAST = 1e-9
"""A divergence of nothing still needs a logarithm."""
_WORK = 5e12
"""Multiply-adds that all measurements together may take where the number of examples is left open: some minutes of two cores."""
_FEWEST, _MOST = 32, 256
"""Examples at least, for the norms' statistics, and at most."""
_PART = 16
"""Examples of a part whose divergence counts as one observation."""
_IMAGE = 8
"""Rows and columns from which on an input counts as images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceConfig:
    """Output divergence of each group's widths, measured; units are ranked by another criterion.

    Attributes:
        rank: Criterion that orders the units of a group (it gets the same data and loss).
        removed: Shares of a group's width that are taken away and measured, rising, between 0 and 1.
        examples: Examples that each measurement runs, from the first batches. Norms use their statistics: some dozens at least. None: 32 to
            256, as many as all measurements together can run within 5e12 multiply-adds (of the model as it was traced).
        prior: How far a measured curve is drawn to SP-LAMP's, between 0 and 1 (on a logarithmic scale, all groups' on one common scale).
            A group's measured curve says what it costs alone; the prior, the share of the signal that survives, keeps the many groups that
            are cut together from being cut deeply where each alone is cheap. 0 takes the measured curves as they are.
        priors: Further priors to read the same measurement with: a pruner solves with each, measures the divergence of the whole networks
            that come out, and takes the least. None of them is right for every network, because single effects do not add up.
        rivals: Other criteria whose networks are compared along. One whose loss the batches cannot feed (they have no labels, say) is left
            out, and the run says so; a loss of the caller's own that fails is an error.
        measure: ``kl``: mean Kullback-Leibler divergence of the class probabilities. ``error``: squared error of all outputs relative to
            their variance, for models that do not classify. ``auto``: the first where the outputs are class scores, else the second.
    """

    rank: object = field(default_factory=SpLampConfig)
    removed: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75)
    examples: int | None = None
    prior: float = 0.5
    priors: tuple[float, ...] = (0.0, 0.25, 0.75, 1.0)
    rivals: tuple[object, ...] = (SpLampConfig(), TaylorConfig())
    measure: str = "auto"

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.removed))
        if not self.removed or not rising or not 0 < self.removed[0] or not self.removed[-1] < 1:
            raise InvalidArgumentError(f"removed (={self.removed}) must be rising shares between 0 and 1, at least one")
        if self.examples is not None and self.examples < 2:
            raise InvalidArgumentError(f"examples (={self.examples}) must be at least 2: norms need the statistics of a batch")
        for prior in (self.prior, *self.priors):
            if not 0 <= prior <= 1:
                raise InvalidArgumentError(f"prior (={prior}) must be between 0 and 1")
        if self.measure not in MEASURES:
            raise InvalidArgumentError(f"measure (={self.measure!r}) must be one of {', '.join(MEASURES)}")


class _Reference:
    """The dense outputs on a few examples, and how far the model's present ones are from them."""

    def __init__(self, model: nn.Module, data: Iterable[Any], measure: Measure, examples: int, *, moved: bool = False) -> None:
        self._model = model
        self._measure = measure
        self._inputs = [_moved(inputs) for inputs in _examples(data, examples)] if moved else _examples(data, examples)
        self._outputs = [call(model, inputs) for inputs in self._inputs]
        if not self._inputs:
            raise InvalidArgumentError("data holds no batch: the divergence is measured on its inputs")
        own = self._distance(self._outputs)
        if not np.isfinite(own):
            raise InvalidArgumentError("the model's outputs hold NaN or infinite values; a divergence needs finite ones")

    def distance(self) -> float:
        """Divergence of the model as it is now from the dense one, at least 0."""
        return self._distance([call(self._model, inputs) for inputs in self._inputs])

    def distances(self) -> Scores:
        """``(parts,)`` the same for every few examples."""
        now = [call(self._model, inputs) for inputs in self._inputs]
        pairs = ((dense, mine) for whole in zip(self._outputs, now, strict=True) for dense, mine in zip(*map(_parts, whole), strict=True))
        values = np.array([self._measure(dense, mine)[0] for dense, mine in pairs])
        return np.where(np.isfinite(values), np.maximum(values, 0.0), np.inf)

    def _distance(self, outputs: list[Any]) -> float:
        total, count = 0.0, 0
        for dense, now in zip(self._outputs, outputs, strict=True):
            value, examples = self._measure(dense, now)
            total += value * examples
            count += examples
        # An output that overflows is as far away as can be told.
        return max(total / count, 0.0) if np.isfinite(total) else float("inf")


def _example_count(graph: GroupedModel, config: DivergenceConfig) -> int:
    if config.examples is not None:
        return config.examples
    widths = {name: group.columns for name, group in graph.groups.items()}
    one = sum(kernel.macs * math.prod(axis.size(widths, frozenset()) for axis in kernel.axes) for kernel in graph.kernels.values())
    blocks = {block for kernel in graph.kernels.values() for block in kernel.blocks}
    runs = len(graph.groups) * len(config.removed) + len(blocks) + 1
    return int(min(max(_WORK / max(one * runs, 1.0), _FEWEST), _MOST))


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


def _parts(output: Any) -> list[Any]:
    """A batch's output in pieces of a few examples each, of nearly the same size; whole where its tensors do not share their first size."""
    if not isinstance(output, (Tensor, Mapping, tuple, list)):
        return [output]
    tensors = tensors_in(output)
    sizes = {int(tensor.shape[0]) if tensor.ndim else 0 for tensor in tensors}
    if len(sizes) != 1 or 0 in sizes:
        return [output]
    size = sizes.pop()
    edges = np.linspace(0, size, max(1, round(size / _PART)) + 1).round().astype(int).tolist()
    return [_sliced(output, start, end) for start, end in pairwise(edges)]


def _sliced(value: Any, start: int, end: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:end]
    if isinstance(value, Mapping):
        return {key: _sliced(item, start, end) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_sliced(item, start, end) for item in value]
    return value


def _moved(inputs: Any) -> Any:
    """Images mirrored, and moved by a sixteenth of their size around their edges; anything else as it is."""
    if isinstance(inputs, Mapping):
        return {key: _moved(value) for key, value in inputs.items()}
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point() or min(inputs.shape[2:]) < _IMAGE:
        return inputs
    rows, columns = (max(1, round(size / 16)) for size in inputs.shape[2:])
    return inputs.flip(-1).roll((rows, -columns), (2, 3))


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


class Divergences:
    """Measured divergences of a model's widths and blocks, read with one prior or another; see :class:`DivergenceConfig`.

    Args:
        model: The model; it is changed while this measures and put back, to the bit.
        graph: Its graph.
        config: What is measured.
        data: Batches; labels are ignored unless the ranking reads them.
        loss: Loss of the ranking's and the rivals' criteria.
    """

    def __init__(
        self, model: nn.Module, graph: GroupedModel, config: DivergenceConfig, data: Iterable[Any] | None, loss: LossFunction
    ) -> None:
        if data is None:
            raise InvalidArgumentError("data (=None) must be batches: the divergence is measured on their inputs (labels are not needed)")
        for name, tensor in named_tensors(model).items():
            if tensor.is_floating_point():
                check_finite(tensor.detach(), name, "parameter" if isinstance(tensor, nn.Parameter) else "buffer")
        batches = data if isinstance(data, (list, tuple)) else _Kept(data)
        self._model, self._graph, self._config, self._batches = model, graph, config, batches
        self._judge: _Reference | None = None
        self._ranked = score(model, graph, config.rank, batches, loss=loss)
        self._ratios = score(model, graph, SpLampConfig()).units
        self.left_out: dict[str, str] = {}
        """Rivals that the data could not feed -> the reason, once :attr:`importances` was read."""
        self._loss = loss
        self._home = {name: _home(group) for name, group in graph.groups.items()}
        with batch_statistics(model):
            self._reference = _Reference(model, batches, MEASURES[config.measure], _example_count(graph, config))
            self._blocks = {}
            blocks = dict.fromkeys(block for kernel in graph.kernels.values() for block in kernel.blocks)
            for block in counted(blocks, "divergence without each block", unit="blocks"):
                with silenced_block(model, graph, block):
                    self._blocks[block] = self._reference.distance()
            self._lost = {name: self._curve(name) for name in counted(graph.groups, "divergence of narrower groups", unit="groups")}

    def _scored_rivals(self) -> Iterator[tuple[str, Importance]]:
        for rival in self._config.rivals:
            name = _name(rival)
            try:
                yield name, score(self._model, self._graph, rival, self._batches, loss=self._loss)
            except InvalidArgumentError as error:
                # The measurement itself needs no labels, so the default loss need not find any.
                if not needs_data(rival) or self._loss is not cross_entropy_loss:
                    raise
                self.left_out[name] = str(error)

    def _curve(self, name: str) -> Scores:
        home = self._home[name]
        nothing = self._blocks[home[-1]] if home else None
        return _group_curve(self._model, self._graph.groups[name], self._ranked.units[name], self._config, self._reference, nothing)

    @property
    def importances(self) -> dict[str, Importance]:
        """The scores with the configuration's prior, then with each of its others, then those of its rivals."""
        priors = dict.fromkeys((self._config.prior, *self._config.priors))
        return {f"prior {prior:g}": self.importance(prior) for prior in priors} | dict(self._scored_rivals())

    def importance(self, prior: float) -> Importance:
        """Curves: what each width of a group is worth, as the divergence that it avoids; units: the ranking, scaled to the curve's height.

        A group whose layers all lie in one block hangs on it: with the block gone the groups inside lose, together, the block's own
        measured divergence, however much each alone would.
        """
        lost, blocks = _drawn_to_prior(self._ratios, self._graph, self._config.removed, prior, self._lost, self._home, self._blocks)
        curves: dict[tuple[str, Blocks], Scores] = {}
        for name, curve in lost.items():
            inside = [other for other in self._home if self._home[other] == self._home[name]]
            whole = blocks[self._home[name][-1]] / len(inside) if self._home[name] else float(curve[0])
            curves[name, self._home[name]] = whole - curve
        _add_blocks(curves, self._graph, blocks)
        ranked = self._ranked
        heights = {name: float(curve[0]) / max(float(ranked.units[name].sum()), _LEAST) for name, curve in lost.items()}
        return Importance(
            units={name: values * heights[name] for name, values in ranked.units.items()},
            shares={(name, chain): values * heights[name] for (name, chain), values in ranked.shares.items()},
            curves=curves,
        )

    @property
    def caution(self) -> dict[str, float]:
        """The strength of a reading's prior; SP-LAMP's scores are the prior itself, and other criteria come last."""
        priors = {f"prior {prior:g}": prior for prior in (self._config.prior, *self._config.priors)}
        return priors | {_name(rival): 1.0 if isinstance(rival, SpLampConfig) else -1.0 for rival in self._config.rivals}

    def divergences(self, selection: Selection) -> Scores:
        """``(parts,)`` Jensen-Shannon divergence (or error) of the network that ``selection`` leaves from the model as it was measured.

        Whole networks are few, so that four times the examples judge them: the best differ by less than what the first ones tell apart.
        Images are mirrored and moved by a sixteenth: on those that the widths were measured with, the network that they suit best wins.
        """
        with ExitStack() as silenced:
            silenced.enter_context(batch_statistics(self._model))
            if self._judge is None:
                examples = 4 * _example_count(self._graph, self._config)
                self._judge = _Reference(self._model, self._batches, JUDGES[self._config.measure], examples, moved=True)
            for block in sorted(selection.removed_blocks & self._blocks.keys()):
                silenced.enter_context(silenced_block(self._model, self._graph, block))
            for name, kept in selection.kept.items():
                if name not in self._graph.groups:
                    continue  # gone with its block
                gone = present_units(self._graph.groups[name]).copy()
                gone[kept] = False
                silenced.enter_context(silenced_units(self._model, self._graph.groups[name], gone))
            return self._judge.distances()


@register(DivergenceConfig, name="divergence", needs_data=True, reader=Divergences)
def score_divergence(
    model: nn.Module, graph: GroupedModel, config: DivergenceConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """Scores with the configuration's own prior; see :meth:`Divergences.importance`."""
    return Divergences(model, graph, config, data, loss).importance(config.prior)


def _drawn_to_prior(
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
            if curve[width] > _LEAST and prior[name][width] > _LEAST:
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


def _name(criterion: object) -> str:
    """What a rival's reading is called."""
    return type(criterion).__name__.removesuffix("Config")


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


def _alive(group: ChannelGroup) -> int:
    """Columns that are left in the group's fullest row."""
    return int(present_units(group).reshape(group.rows, group.columns).sum(axis=1).max(initial=0))


def _group_curve(
    model: nn.Module, group: ChannelGroup, ranking: Scores, config: DivergenceConfig, reference: _Reference, nothing: float | None
) -> Scores:
    """``(columns + 1,)`` divergence by width."""
    order = rank_units(group, ranking)  # (rows, columns), units that are gone last
    present = present_units(group)
    alive = _alive(group)
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
