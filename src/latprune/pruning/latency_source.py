"""What a pruner knows of its network's latency: tables and whole networks, made when they are first asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
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
from latprune.pruning.clock import Clock
from latprune.resources import PredictedLatency, Resource, TabulatedLatency
from latprune.surgery import prune as cut

__all__ = ["LatencySource", "LatencySources"]


class LatencySource:
    """Latency tables of a dense network on a target, and contributions of whole networks.

    Args:
        model: The dense model.
        graph: Its trace.
        example_inputs: What networks are run on.
        target: Engine and conditions.
        given: Tables that were measured earlier; None builds them.
        predictor: A kernel predictor in place of tables.
        store: Where measurements are kept; None opens the default store, which :meth:`close` closes.
        seed: Seed of the networks that are measured.
        say: Takes a line of text as the work goes on.
        clock: Where its seconds count.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ModelGraph,
        example_inputs: Any,
        target: Target,
        *,
        given: LatencyTables | None,
        predictor: KernelPredictor | None = None,
        store: Store | None,
        seed: int,
        say: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._model = model
        self._graph = graph
        self._example_inputs = example_inputs
        self._target = target
        self.known = given
        """The tables, as far as they were needed so far."""
        self._predictor = predictor
        self._store = store
        self._own_store: Store | None = None
        self._seed = seed
        self._say = say
        self._clock = clock

    def tables(self) -> LatencyTables:
        """The tables; built at first use."""
        if self.known is None:
            with self._clock.timed("tables"):
                self.known = build_tables(
                    self._model,
                    self._graph,
                    self._example_inputs,
                    self._target,
                    store=self._samples(),
                    seed=self._seed,
                )
                self._say_tables(self.known)
        return self.known

    def resource(self) -> Resource:
        """Latency as the tables, or the predictor, have it."""
        if self._predictor is not None:
            return PredictedLatency(self._graph, self._predictor)
        return TabulatedLatency(self._graph, self.tables())

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

        def say(group: str, width: int, ratio: float) -> None:
            self._say(f"whole networks: {group} at {width} takes {ratio:.1%}")

        model, graph = self._model, self._graph
        if since.kept or since.removed_blocks:
            # Whole networks are cut and timed as they are, so the one that they are compared with is traced as it is.
            model = copied(model)
            cut(model, graph, since)
            graph = trace(model, self._example_inputs)
            choices = {name: options for name, options in choices.items() if name in graph.groups}
        with self._clock.timed("whole networks"):
            found = measure_unary_contributions(
                model,
                graph,
                self._example_inputs,
                self._target,
                choices,
                store=self._samples(),
                fixed_runs=fixed_runs,
                progress=say,
            )
        for group, widths in found.unconverged.items():
            self._say(
                f"whole networks: {group} at {', '.join(map(str, widths))} is not known as closely as asked; the machine was disturbed"
            )
        return found

    def _samples(self) -> Store:
        if self._store is None:
            self._store = self._own_store = Store()
        return self._store

    def _say_tables(self, tables: LatencyTables) -> None:
        stats, residual = tables.stats, tables.residual
        if not stats.measured_networks:
            return
        error = f", mean error {residual.mean_absolute:.1%} on {residual.networks} that they had not seen" if residual.networks else ""
        self._say(f"latency tables: {stats.networks} networks, {stats.measured_networks} measured now in {stats.seconds:.0f} s{error}")

    def close(self) -> None:
        """Close the store that was opened here."""
        if self._own_store is not None:
            self._own_store.close()
            self._store = self._own_store = None


class LatencySources:
    """The target's own source, and one for each further engine that a budget is on, under the target's conditions.

    Args:
        model, graph, example_inputs, target, given, predictor, store, seed, say, clock: See :class:`LatencySource`.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ModelGraph,
        example_inputs: Any,
        target: Target,
        *,
        given: LatencyTables | None,
        predictor: KernelPredictor | None,
        store: Store | None,
        seed: int,
        say: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._target = target
        self._make = partial(LatencySource, model, graph, example_inputs, store=store, seed=seed, say=say, clock=clock)
        self.own = self._make(target, given=given, predictor=predictor)
        """The target's."""
        self._others: dict[str, LatencySource] = {}

    def on(self, engine: str | None) -> LatencySource:
        """The source of an engine's latency; None is the target's."""
        if engine is None:
            return self.own
        if engine not in self._others:
            self._others[engine] = self._make(replace(self._target, engine=engine), given=None)
        return self._others[engine]

    def close(self) -> None:
        """Close the stores that were opened here."""
        for source in (self.own, *self._others.values()):
            source.close()
