"""Measured divergence: how far the model's output moves when a group alone is cut to a few widths.

Scores of weights or gradients rank the units of one group well and say little about how groups compare: a first-order term is of another
size behind a norm than behind none, in a wide expansion than in a narrow projection, and it says nothing of a deep cut. Here the groups'
common scale is measured. A run costs one forward pass over a few examples for each group and width, and for each block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.graph.types import Selection
from latprune.importance.compared import Compared, compared_at
from latprune.importance.core import (
    Blocks,
    GroupedModel,
    Importance,
    LossFunction,
    Scores,
    check_scorable,
    cross_entropy_loss,
    needs_data,
    register,
    score,
)
from latprune.importance.divergence_config import DivergenceConfig, example_count
from latprune.importance.measured_values import MeasuredValues, digest_of, measured_values
from latprune.importance.reference import KeptBatches, Reference, failed_reading, first_examples
from latprune.importance.silenced import batch_statistics, silenced_block, silenced_units
from latprune.importance.sp_lamp import SpLampConfig
from latprune.importance.tensors import check_finite, named_tensors, present_units
from latprune.importance.width_curves import LEAST, add_blocks, drawn_to_prior, group_curve, home_of, width_curve
from latprune.progress import counted

__all__ = ["DivergenceConfig", "Divergences", "width_curve"]

_FEW = 8
"""Examples that tell where the outputs can be compared."""


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
        batches = data if isinstance(data, (list, tuple)) else KeptBatches(data)
        self._model, self._graph, self._config, self.batches = model, graph, config, batches
        self.examples = 4 * example_count(graph, config)
        """Examples that judge whole networks: four times as many, for these differ by less than what the first ones tell apart."""
        self._judge: Reference | None = None
        self._deployed: Reference | None = None
        self._ranked = score(model, graph, config.rank, batches, loss=loss)
        self._ratios = score(model, graph, SpLampConfig()).units
        self.left_out: dict[str, str] = {}
        """Rivals that the data could not feed -> the reason, once :attr:`importances` was read."""
        self._loss = loss
        self._home = {name: home_of(group) for name, group in graph.groups.items()}
        self._at = _place(model, graph, config, batches)
        with batch_statistics(model):
            measure = self._at.measure(config.measure)
            self._reference = Reference(model, batches, measure, example_count(graph, config), at=self._at)
            with measured_values(self._question) as known:
                blocks = dict.fromkeys(block for kernel in graph.kernels.values() for block in kernel.blocks)
                named = counted(blocks, "divergence without each block", unit="blocks")
                self._blocks = {block: known.get(f"without {block}", partial(self._without, block)) for block in named}
                groups = counted(graph.groups, "divergence of narrower groups", unit="groups")
                self._lost = {name: self._curve(name, known) for name in groups}

    def _question(self) -> str:
        """Digest of all that a measured value depends on beside its name."""
        units = ((name, self._graph.groups[name].units, values.tolist()) for name, values in self._ranked.units.items())
        blocks = [(name, kernel.blocks) for name, kernel in self._graph.kernels.items()]
        return digest_of(
            repr((self._config.measure, list(units), blocks)), named_tensors(self._model).values(), self._reference.inputs_and_outputs()
        )

    def _without(self, block: str) -> float:
        with silenced_block(self._model, self._graph, block):
            return self._reference.distance()

    def _scored_rivals(self) -> Iterator[tuple[str, Importance]]:
        for rival in self._config.rivals:
            name = _name(rival)
            try:
                yield name, score(self._model, self._graph, rival, self.batches, loss=self._loss)
            except InvalidArgumentError as error:
                # The measurement itself needs no labels, so the default loss need not find any.
                if not needs_data(rival) or self._loss is not cross_entropy_loss or failed_reading(self.batches, error):
                    raise
                self.left_out[name] = str(error)

    def _curve(self, name: str, known: MeasuredValues) -> Scores:
        home = self._home[name]
        nothing = self._blocks[home[-1]] if home else None
        ranking, removed = self._ranked.units[name], self._config.removed
        return group_curve(self._model, self._graph.groups[name], ranking, removed, self._reference, nothing, known)

    @property
    def importances(self) -> dict[str, Importance]:
        """The scores with the configuration's prior, with each of its others, with narrowing made dearer, then those of its rivals."""
        priors = dict.fromkeys((self._config.prior, *self._config.priors))
        dearer = {_narrowed(factor): self.importance(self._config.prior, factor) for factor in self._narrowings}
        return {f"prior {prior:g}": self.importance(prior) for prior in priors} | dearer | dict(self._scored_rivals())

    @property
    def _narrowings(self) -> tuple[float, ...]:
        """Without blocks a common factor changes nothing."""
        return self._config.narrowings if self._blocks else ()

    def importance(self, prior: float, narrowing: float = 1.0) -> Importance:
        """Curves: what each width of a group is worth, as the divergence that it avoids; units: the ranking, scaled to the curve's height.

        A group whose layers all lie in one block hangs on it: with the block gone the groups inside lose, together, the block's own
        measured divergence, however much each alone would.

        Args:
            prior: How far the curves are drawn to SP-LAMP's.
            narrowing: Factor on the curves, not on what blocks cost.
        """
        lost, blocks = drawn_to_prior(self._ratios, self._graph, self._config.removed, prior, self._lost, self._home, self._blocks)
        lost = {name: narrowing * curve for name, curve in lost.items()}
        curves: dict[tuple[str, Blocks], Scores] = {}
        for name, curve in lost.items():
            inside = [other for other in self._home if self._home[other] == self._home[name]]
            whole = blocks[self._home[name][-1]] / len(inside) if self._home[name] else float(curve[0])
            curves[name, self._home[name]] = whole - curve
        add_blocks(curves, self._graph, blocks)
        ranked = self._ranked
        heights = {name: float(curve[0]) / max(float(ranked.units[name].sum()), LEAST) for name, curve in lost.items()}
        return Importance(
            units={name: values * heights[name] for name, values in ranked.units.items()},
            shares={(name, chain): values * heights[name] for (name, chain), values in ranked.shares.items()},
            curves=curves,
        )

    @property
    def caution(self) -> dict[str, float]:
        """The strength of a reading's prior; SP-LAMP's scores are the prior itself, and other criteria come last."""
        priors = {f"prior {prior:g}": prior for prior in (self._config.prior, *self._config.priors)}
        priors |= {_narrowed(factor): self._config.prior for factor in self._narrowings}
        return priors | {_name(rival): 1.0 if isinstance(rival, SpLampConfig) else -1.0 for rival in self._config.rivals}

    def divergences(self, selection: Selection, network: nn.Module | None = None) -> Scores:
        """``(parts,)`` Jensen-Shannon divergence (or error) of the network that ``selection`` leaves from the model as it was measured.

        Images are mirrored and moved by a sixteenth: on those that the widths were measured with, the network that they suit best wins.

        Args:
            selection: What is left.
            network: The network that was cut to it, and recovered, in evaluation mode: it is compared with the dense model as both run.
                None: the model itself with the rest silenced; the norms of both use the statistics of the batch.
        """
        if network is not None:
            with preserved_state(self._model), preserved_buffers(self._model), torch.no_grad():
                if self._deployed is None:
                    self._deployed = self._moved_reference()
                return self._deployed.distances(network)
        with ExitStack() as silenced:
            silenced.enter_context(batch_statistics(self._model))
            if self._judge is None:
                self._judge = self._moved_reference()
            for block in sorted(selection.removed_blocks & self._blocks.keys()):
                silenced.enter_context(silenced_block(self._model, self._graph, block))
            for name, kept in selection.kept.items():
                if name not in self._graph.groups:
                    continue  # gone with its block
                gone = present_units(self._graph.groups[name]).copy()
                gone[kept] = False
                silenced.enter_context(silenced_units(self._model, self._graph.groups[name], gone))
            return self._judge.distances()

    def _moved_reference(self) -> Reference:
        measure = self._at.measure(self._config.measure, judge=True)
        return Reference(self._model, self.batches, measure, self.examples, moved=True, at=self._at)


def _check(model: nn.Module, graph: GroupedModel, config: DivergenceConfig, batch: Any) -> None:
    check_scorable(model, graph, config.rank, batch)
    if batch is not None:
        _place(model, graph, config, [batch])


def _place(model: nn.Module, graph: GroupedModel, config: DivergenceConfig, batches: Iterable[Any]) -> Compared:
    """Where the divergence is measured; a network that takes no few examples runs on all of a measurement's."""
    count = example_count(graph, config)
    few = first_examples(batches, min(count, _FEW), model)
    if not few:
        return Compared()  # data without a batch has its own error
    try:
        return compared_at(model, graph, few[0], config.measure)
    except InvalidArgumentError:
        return compared_at(model, graph, first_examples(batches, count, model)[0], config.measure)


@register(DivergenceConfig, name="divergence", needs_data=True, reader=Divergences, check=_check, reads_inputs=True)
def score_divergence(
    model: nn.Module, graph: GroupedModel, config: DivergenceConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """Scores with the configuration's own prior; see :meth:`Divergences.importance`."""
    return Divergences(model, graph, config, data, loss).importance(config.prior)


def _narrowed(factor: float) -> str:
    """What a reading with dearer narrowing is called."""
    return f"narrowing x{factor:g}"


def _name(criterion: object) -> str:
    """What a rival's reading is called."""
    return type(criterion).__name__.removesuffix("Config")
