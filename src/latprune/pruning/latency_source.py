"""What a pruner knows of its network's latency: tables and whole networks, made when they are first asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from latprune.copying import copied
from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, trace
from latprune.graph.types import Selection
from latprune.latency import (
    FixedRuns,
    KernelPredictor,
    LatencyTables,
    Store,
    Target,
    build_tables,
    measure_unary_contributions,
)
from latprune.latency.measuring.held_types import settled_target, type_note
from latprune.pruning.clock import Clock
from latprune.resources import PredictedLatency, Resource, TabulatedLatency
from latprune.surgery import prune as cut

__all__ = ["LatencySource", "LatencySources", "MeasuredNetwork"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredNetwork:
    """A dense network, and how its latency is measured.

    Attributes:
        model: The dense model.
        graph: Its trace.
        example_inputs: What networks are run on.
        target: Engine and conditions.
        store: Where measurements are kept; None opens the default store where one is needed.
        seed: Seed of the networks that are measured.
        say: Takes a line of text as the work goes on.
        clock: Where its seconds count.
    """

    model: nn.Module
    graph: ModelGraph
    example_inputs: Any
    target: Target
    store: Store | None
    seed: int
    say: Callable[[str], None]
    clock: Clock


class LatencySource:
    """Latency tables of a dense network on its target, and contributions of whole networks.

    Args:
        network: The dense network, and how it is measured; :meth:`close` closes a store that was opened for it.
        given: Tables that were measured earlier; None builds them.
        predictor: A kernel predictor in place of tables.
    """

    def __init__(self, network: MeasuredNetwork, *, given: LatencyTables | None = None, predictor: KernelPredictor | None = None) -> None:
        self._network = network
        self.known = given
        """The tables, as far as they were needed so far."""
        self._predictor = predictor
        self._own_store: Store | None = None

    def tables(self) -> LatencyTables:
        """The tables; built at first use."""
        if self.known is None:
            network = self._network
            with network.clock.timed("tables"):
                self.known = build_tables(
                    network.model,
                    network.graph,
                    network.example_inputs,
                    network.target,
                    store=self._samples(),
                    seed=network.seed,
                )
                self._say_tables(self.known)
        return self.known

    def resource(self) -> Resource:
        """Latency as the tables, or the predictor, have it."""
        if self._predictor is not None:
            return PredictedLatency(self._network.graph, self._predictor)
        return TabulatedLatency(self._network.graph, self.tables())

    def room(self) -> float:
        """What predictions are multiplied by to stay under a limit that cannot be checked."""
        room = self.tables().residual.room
        if math.isnan(room):
            raise InvalidArgumentError(
                "the tables were not checked on any network, so nothing says how much room their error needs; measure more networks, or "
                "prune where the engine is at hand"
            )
        return room

    def alone(
        self, since: Selection, choices: Mapping[str, Sequence[int]], fixed_runs: FixedRuns | None = None
    ) -> dict[str, npt.NDArray[np.float64]]:
        """What each group contributes at each width, from whole networks (``measure_unary_contributions``).

        Args:
            since: What is left of the dense network: contributions are around that.
            choices: Group -> widths.
            fixed_runs: Time each network by itself, that many times; None times it beside the current one until it is known closely.
        """
        network = self._network

        def say(group: str, width: int, ratio: float) -> None:
            network.say(f"whole networks: {group} at {width} takes {ratio:.1%}")

        model, graph = network.model, network.graph
        if since.kept or since.removed_blocks:
            # Whole networks are cut and timed as they are, so the one that they are compared with is traced as it is.
            model = copied(model)
            cut(model, graph, since)
            graph = trace(model, network.example_inputs)
            choices = {name: options for name, options in choices.items() if name in graph.groups}
        with network.clock.timed("whole networks"):
            found = measure_unary_contributions(
                model,
                graph,
                network.example_inputs,
                network.target,
                choices,
                store=self._samples(),
                fixed_runs=fixed_runs,
                progress=say,
            )
        for group, widths in found.unconverged.items():
            network.say(
                f"whole networks: {group} at {', '.join(map(str, widths))} is not known as closely as asked; the machine was disturbed"
            )
        return found

    def _samples(self) -> Store:
        if self._network.store is not None:
            return self._network.store
        if self._own_store is None:
            self._own_store = Store()
        return self._own_store

    def _say_tables(self, tables: LatencyTables) -> None:
        stats, residual = tables.stats, tables.residual
        if not stats.measured_networks:
            return
        error = f", mean error {residual.mean_absolute:.1%} on {residual.networks} that they had not seen" if residual.networks else ""
        measured = f"{stats.networks} networks, {stats.measured_networks} measured now in {stats.seconds:.0f} s"
        self._network.say(f"latency tables: {measured}{error}")

    def close(self) -> None:
        """Close the store that was opened here."""
        if self._own_store is not None:
            self._own_store.close()
            self._own_store = None


class LatencySources:
    """The target's own source, and one for each further engine that a budget is on, under the target's conditions.

    Args:
        network, given, predictor: See :class:`LatencySource`; tables and predictor are the target's.
        asked: The target as it was asked for, whose precision further engines start from.
    """

    def __init__(self, network: MeasuredNetwork, *, given: LatencyTables | None, predictor: KernelPredictor | None, asked: Target) -> None:
        self._network, self._asked = network, asked
        self.own = LatencySource(network, given=given, predictor=predictor)
        """The target's."""
        self._others: dict[str, LatencySource] = {}

    def on(self, engine: str | None) -> LatencySource:
        """The source of an engine's latency; None is the target's."""
        if engine is None:
            return self.own
        if engine not in self._others:
            if note := type_note(self._network.model, replace(self._asked, engine=engine)):
                self._network.say(note)
            self._others[engine] = LatencySource(replace(self._network, target=self.target_on(engine)))
        return self._others[engine]

    def target_on(self, engine: str) -> Target:
        """The target's conditions on another engine, in the precision that the model runs in there."""
        return settled_target(self._network.model, replace(self._asked, engine=engine))

    def close(self) -> None:
        """Close the stores that were opened here."""
        for source in (self.own, *self._others.values()):
            source.close()
