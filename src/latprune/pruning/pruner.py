"""The pruner: prunes a model stage by stage, driven by ``prune()`` or by a training loop of the user's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latprune.errors import InvalidArgumentError, LatpruneError
from latprune.graph import ModelGraph, trace
from latprune.graph.trace import FORMS
from latprune.importance import GradientAccumulator, LossFunction, accumulator_for, cross_entropy_loss, needs_data
from latprune.importance import score as score_importance
from latprune.latency import (
    LatencyTables,
    Measurement,
    Store,
    Target,
    get_engine,
)
from latprune.latency.build import require_same_network
from latprune.methods import Method, Proposal, StageContext, get_method, selection_of
from latprune.pruning.budget import Budget
from latprune.pruning.clock import Clock, TimedProposer
from latprune.pruning.correction import LimitSearch
from latprune.pruning.latency_source import LatencySource
from latprune.pruning.search import CandidateSearch
from latprune.pruning.search_counted import search_counted
from latprune.pruning.stage import StageReport
from latprune.pruning.state import PrunerState
from latprune.pruning.trials import Trial, Trials
from latprune.surgery import ArchitectureEdits, EqualityReport, check_equal, masked, replay
from latprune.surgery import prune as cut

if TYPE_CHECKING:
    from latprune.importance import Importance

__all__ = ["Pruner", "StageReport"]

Progress = Callable[[str], None]


@dataclass(slots=True)
class _Stage:
    """The stage at hand: its graph and, once asked for, its scores."""

    graph: ModelGraph
    importance: Importance | None = None
    accumulator: GradientAccumulator | None = None


class Pruner:
    """Prunes ``model`` in place to a budget, one stage per :meth:`step`.

    Between steps the caller trains as it likes; parameters are new objects after a step, so optimizers are built anew. A method whose
    importance needs gradients takes them from the caller's own backward passes (:meth:`accumulate`) or from batches given to
    :meth:`step`.

    Args:
        model: The model; it keeps its class, only smaller layers (and removed blocks) are put in place.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword inputs.
        budget: For instance ``"50%"``, ``"8.5ms"``, ``"2000/s"``, ``"flops=45%"``, ``"params=1.2M"``.
        target: Engine and conditions of all measurements; those of ``tables`` by default.
        method: A method's name or object.
        keep: Modules or globs to leave whole.
        blocks_keep: Blocks (module names or globs) that must stay.
        min_widths: Group name or glob -> smallest width.
        tables: Latency tables of this model on ``target``, measured earlier; None builds them.
        store: Where measurements are kept between runs; None uses the default store.
        solver: Solver's name; None leaves it to the method.
        time_limit: Seconds that one solve may take.
        seed: Seed of everything random.
        slack: The delivered network is accepted within ``[1 - slack, 1]`` of the budget.
        measure_latency: False measures nothing. A budget on multiply-adds or parameters is counted all the same; one on latency takes the
            word of ``tables``, for a device that is not at hand, and leaves room for their error.
        progress: Called with one line of text as the work goes on.
        form: ``"class"``: the model is pruned in place. ``"program"``: a captured program of it is (:func:`latprune.capture`), which is
            :attr:`model` then; the model itself stays as it is.

    Example:
        >>> pruner = Pruner(model, x, budget="50%", method="sp_lamp")  # doctest: +SKIP
        >>> while not pruner.done:  # doctest: +SKIP
        ...     pruner.step()
        ...     train(model)
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        budget: str | Budget,
        target: Target | None = None,
        method: str | Method = "mdp",
        keep: Iterable[str] = (),
        blocks_keep: Iterable[str] = (),
        min_widths: Mapping[str, int] | None = None,
        tables: LatencyTables | None = None,
        store: Store | None = None,
        solver: str | None = None,
        time_limit: float | None = 60.0,
        seed: int = 0,
        slack: float = 0.03,
        measure_latency: bool = True,
        progress: Progress | None = None,
        form: str = "class",
    ) -> None:
        self.model = self._in_form(model, example_inputs, form)
        self.budget = Budget.parse(budget)
        self.target = target or (tables.target if tables is not None else Target())
        self.method = get_method(method)
        self.example_inputs = example_inputs
        self.seed = seed
        self.solver = solver
        self.time_limit = time_limit
        self.slack = slack
        self.measure_latency = measure_latency
        if tables is None and self._predicts:
            raise InvalidArgumentError(
                f"budget (={self.budget.text!r}) is on latency, and measure_latency=False measures nothing: give the tables of the device"
            )
        self.clock = Clock()
        self.reports: list[StageReport] = []
        self.edits: list[ArchitectureEdits] = []
        self._keep = tuple(keep)
        self._blocks_keep = tuple(blocks_keep)
        self._min_widths = dict(min_widths or {})
        self._progress = progress or (lambda text: None)
        self._stages_done = 0
        _check_finite(model)
        if not self._predicts:
            get_engine(self.target.engine)  # a missing engine is told before anything is computed
        self._stage: _Stage | None = None
        self.dense_graph = self._traced().graph
        if tables is not None:
            require_same_network(tables, self.dense_graph, example_inputs, self.target, kept=bool(self._keep))
        self.dense_tensors = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
        self.dense_model = copy.deepcopy(self.model).eval()
        self._latency = LatencySource(
            self.dense_model,
            self.dense_graph,
            example_inputs,
            self.target,
            given=tables,
            store=store,
            seed=seed,
            say=self._progress,
            clock=self.clock,
        )
        self._trials = Trials(self.dense_model, example_inputs, target=self.target, budget=self.budget, seed=seed)
        self.fresh: Trial | None = None

    @staticmethod
    def _in_form(model: nn.Module, example_inputs: Any, form: str) -> nn.Module:
        if form not in FORMS:
            raise InvalidArgumentError(f"form (={form!r}) must be one of {', '.join(FORMS)}")
        if form == "class":
            return model
        from latprune.program import capture

        return capture(model, example_inputs)

    # -- progress and time ---------------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether all stages are through."""
        return self._stages_done >= self.method.stages

    @property
    def stage(self) -> int:
        """Stages that are through."""
        return self._stages_done

    @property
    def graph(self) -> ModelGraph:
        """Graph of the network as it is now."""
        return self._traced().graph

    @property
    def stages_seconds(self) -> dict[str, float]:
        """Seconds by kind of work."""
        return self.clock.seconds

    def _traced(self) -> _Stage:
        if self._stage is None:
            with self.clock.timed("trace"):
                graph = trace(
                    self.model, self.example_inputs, keep=self._keep, blocks_keep=self._blocks_keep, min_widths=self._min_widths or None
                )
            if not graph.groups and not any(block.removable for block in graph.blocks.values()):
                raise InvalidArgumentError("nothing in this model can be pruned; `latprune inspect` lists the reason for each layer")
            self._stage = _Stage(graph=graph)
        return self._stage

    # -- importance ----------------------------------------------------------------------------------------------------------------------

    @property
    def needs_gradients(self) -> bool:
        """Whether the method's importance is computed from gradients, so that :meth:`accumulate` or batches are needed before a step."""
        return self.method.importance is not None and needs_data(self.method.importance)

    def accumulate(self) -> None:
        """Add the gradients that the model's parameters hold now to the importance of this stage; call it after ``loss.backward()``."""
        stage = self._traced()
        if stage.accumulator is None:
            stage.accumulator = accumulator_for(self.model, stage.graph, self.method.importance)
        stage.accumulator.update()

    def _score(self, data: Iterable[Any] | None, loss: LossFunction) -> Importance | None:
        stage = self._traced()
        config = self.method.importance
        if config is None:
            return None
        with self.clock.timed("score"):
            if stage.accumulator is not None:
                return stage.accumulator.importance()
            return score_importance(self.model, stage.graph, config, data, loss=loss)

    @property
    def _predicts(self) -> bool:
        """Whether the budget is on a latency that nothing here can measure."""
        return self.budget.resource == "latency" and not self.measure_latency

    # -- latency -------------------------------------------------------------------------------------------------------------------------

    def _trial(self, network: nn.Module, *, fresh: bool = False, window: tuple[float, float] | None = None) -> Trial:
        with self.clock.timed("final measurement" if fresh else "measure candidates"):
            return self._trials.trial(network, fresh=fresh, window=window)

    def _dense_value(self) -> float:
        """The dense network's value of the budgeted resource."""
        if self.budget.resource == "flops":
            return self.dense_graph.macs(self.dense_graph.dense_widths())
        if self.budget.resource == "params":
            return float(self.dense_graph.parameters(self.dense_graph.dense_widths()))
        if self._predicts:
            return self.tables().dense_ms
        if self._trials.dense_ms is None:
            self._progress("measuring the dense network")
            with self.clock.timed("measure dense"):
                self._trials.dense_latency()
        return self._trials.dense_latency()

    @property
    def limit(self) -> float:
        """The budget's limit in its resource's unit."""
        return self.budget.limit(dense=self._dense_value(), batch=self.target.batch)

    @property
    def tables_used(self) -> LatencyTables | None:
        """The latency tables as far as they were needed so far; :meth:`tables` builds them."""
        return self._latency.known

    def tables(self) -> LatencyTables:
        """Latency tables of the dense network; built at first use."""
        return self._latency.tables()

    def _choices(self, graph: ModelGraph) -> dict[str, tuple[int, ...]]:
        offered: dict[str, tuple[int, ...]] = {}
        for name, group in graph.groups.items():
            steps: Sequence[int] = self.tables().choices(name) if self.budget.resource == "latency" else range(1, group.columns + 1)
            offered[name] = tuple(sorted({w for w in steps if group.min_width <= w < group.columns} | {group.columns}))
        return offered

    # -- the stage -----------------------------------------------------------------------------------------------------------------------

    def step(self, data: Iterable[Any] | None = None, *, loss: LossFunction = cross_entropy_loss) -> StageReport:
        """Do the next stage: score, build the problem, solve, check, cut the model in place.

        Args:
            data: Batches for an importance that needs gradients, unless they were accumulated already.
            loss: Scalar loss of ``(model, batch)``.

        Returns:
            What was done. The model is changed only if everything went well.

        Raises:
            BudgetInfeasibleError: The limit cannot be met; the error carries the lowest value, measured.
            LatpruneError: All stages are through already.
        """
        if self.done:
            raise LatpruneError(f"all {self.method.stages} stages are through; make a new Pruner to prune further")
        training = self.model.training
        self.model.eval()
        try:
            report = self._do_stage(data, loss)
        finally:
            self.model.train(training)
        self._stages_done += 1
        self._stage = None
        self.reports.append(report)
        return report

    def _do_stage(self, data: Iterable[Any] | None, loss: LossFunction) -> StageReport:
        number = self._stages_done + 1
        last = number == self.method.stages
        stage = self._traced()
        dense = self._dense_value()
        limit = self.method.stage_limit(stage=number, dense=dense, limit=self.limit)
        if self.budget.resource == "latency":
            self.tables()
        self._progress(f"stage {number} of {self.method.stages}: scoring")
        importance = self._score(data, loss)
        context = self._context(stage.graph, importance)
        proposer = self.method.prepare(context)
        ranking = self.method.rank(context)
        if self.budget.resource == "latency" and self.measure_latency:
            search = LimitSearch(budget=limit, start=self._current_value(number), start_predicted=context.dense, slack=self.slack)
            candidates = CandidateSearch(
                TimedProposer(proposer, self.clock),
                search,
                cut=lambda proposal: self._cut_copy(stage.graph, ranking, proposal),
                measure=self._trial,
                asked=self.budget.text,
                say=self._progress,
            )
            # The next stage starts from what this one measures; only the last has to meet its limit.
            candidate = candidates.run() if last else candidates.first()
            proposal, network, trial, note = candidate.proposal, candidate.network, candidate.trial, candidate.note
            self.fresh = candidate.fresh
        else:
            # What is counted needs no margin for a later measurement; what is predicted needs room for the tables' error.
            room = self._latency.room() if self._predicts else 1.0
            search = LimitSearch(budget=limit / room, start=context.dense, start_predicted=context.dense, slack=self.slack, margin=1e-9)
            with self.clock.timed("solve"):
                proposal = search_counted(proposer, search, context)
            network, trial, note = self._cut_copy(stage.graph, ranking, proposal), None, ""
            if self._predicts:
                # A method's own sum may be a linearisation; the tables' word counts.
                proposal = replace(proposal, predicted=context.predict(proposal.widths, proposal.removed_blocks))
                note = (
                    f"predicted, not measured: {proposal.predicted:.4g} ms; solved {1.0 - 1.0 / room:.1%} below the limit of {limit:.4g} "
                    "ms, because one in twenty of the networks that the tables were checked on took that much longer than predicted"
                )
        with self.clock.timed("check"):
            equality = self._check(stage.graph, ranking, proposal, network)
        with self.clock.timed("surgery"):
            edits = cut(self.model, stage.graph, selection_of(stage.graph, ranking, proposal))
        self.edits.append(edits)
        return StageReport(
            stage=number,
            limit=limit,
            widths=dict(proposal.widths),
            removed_blocks=proposal.removed_blocks,
            predicted=proposal.predicted * search.speed,
            problem=proposal.problem.to_dict() if proposal.problem is not None else None,
            solution=proposal.solution.to_dict() if proposal.solution is not None else None,
            measured=trial.pruned if trial is not None else None,
            rounds=tuple((r.limit * search.speed, r.predicted * search.speed, r.measured) for r in search.rounds if not self._predicts),
            equality=(equality.max_abs, equality.max_rel),
            note=note,
        )

    def _current_value(self, number: int) -> float:
        return self._dense_value() if number == 1 else self._trial(self.model).value

    def _context(self, graph: ModelGraph, importance: Importance | None) -> StageContext:
        context = StageContext(
            graph=graph,
            importance=importance,
            tables=self._latency.known if self.budget.resource == "latency" else None,
            resource=self.budget.resource,
            choices=self._choices(graph),
            dense=0.0,
            solver=self.solver,
            time_limit=self.time_limit,
            seed=self.seed,
            measure_alone=(lambda choices: self._latency.alone(self.model, graph, choices)) if self.measure_latency else None,
        )
        return replace(context, dense=context.predict(graph.dense_widths()))

    def _cut_copy(self, graph: ModelGraph, ranking: Mapping[str, Any], proposal: Proposal) -> nn.Module:
        network = copy.deepcopy(self.model)
        cut(network, graph, selection_of(graph, ranking, proposal))
        return network

    def _check(self, graph: ModelGraph, ranking: Mapping[str, Any], proposal: Proposal, network: nn.Module) -> EqualityReport:
        """Compare the cut copy with the masked network on random inputs before the user's model is touched."""
        selection = selection_of(graph, ranking, proposal)
        return check_equal(network, masked(self.model, graph, selection), self.example_inputs, seed=self.seed)

    # -- the end -------------------------------------------------------------------------------------------------------------------------

    def final_measurement(self) -> tuple[Measurement, Measurement]:
        """Measure dense and pruned network afresh, both converted and compiled anew: ``(dense, pruned)``."""
        with self.clock.timed("final measurement"):
            trial = self._trials.final(self.model, limit=self.limit if self.budget.resource == "latency" else None)
        return trial.dense, trial.pruned

    def close(self) -> None:
        """Free the engine's copy of the dense network, and close the store that was opened here."""
        self._trials.close()
        self._latency.close()

    # -- state ---------------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The pruner's progress as a JSON object; the model's weights are saved apart, like any model's.

        Accumulated gradients of a stage that is not through are not part of it.
        """
        return PrunerState.of(self, dense_ms=self._trials.dense_ms).data

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring a freshly built pruner (and its dense model) to a saved state; then load the model's weights.

        Raises:
            CheckpointError: The state belongs to another method, budget or target, or to another version.
        """
        saved = PrunerState(state)
        saved.require_fits(PrunerState(self.state_dict()))
        for edits in saved.edits:
            replay(self.model, edits)
            self.edits.append(edits)
        self.reports = saved.reports
        self._stages_done = saved.stages_done
        self._trials.dense_ms = saved.dense_ms
        self.clock.seconds = saved.seconds
        self._stage = None


def _check_finite(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise InvalidArgumentError(f"tensor {name!r} holds {count} NaN or infinite values; load sound weights before pruning")
