"""The pruner: four verbs (accumulate, propose, mask, cut), and the step that is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latprune.copying import copied, laid_out_as
from latprune.errors import InvalidArgumentError, LatpruneError
from latprune.graph import ModelGraph, trace
from latprune.graph.admission import check_derived_weights, check_kind, check_state
from latprune.graph.folding import Fold, folded
from latprune.graph.trace import FORMS
from latprune.graph.types import Selection
from latprune.importance import LossFunction, cross_entropy_loss, needs_gradients
from latprune.latency import LatencyTables, Measurement, Store, Target, get_engine
from latprune.latency.tabulating.build import require_same_network
from latprune.methods import Method, SoftMasks, get_method
from latprune.pruning.budget import Budget
from latprune.pruning.clock import Clock
from latprune.pruning.latency_source import LatencySource
from latprune.pruning.limits import Limits
from latprune.pruning.proposal import StageProposal
from latprune.pruning.proposing import ProposalSearch
from latprune.pruning.scoring import Scorer
from latprune.pruning.stage import StageReport
from latprune.pruning.state import PrunerState
from latprune.pruning.trials import Trial, Trials
from latprune.resources import TabulatedLatency
from latprune.surgery import ArchitectureEdits, EqualityReport, TrainingMask, check_equal, masked, replay, widened
from latprune.surgery import prune as cut_model

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from latprune.latency import KernelPredictor
    from latprune.methods.width_rules import WidthRules
    from latprune.pruning.exploration import Exploration
    from latprune.pruning.picked import PickedNetwork
    from latprune.pruning.result import Result
    from latprune.pruning.soft_training import MaskedTraining
    from latprune.recovery import RecoveryReport
    from latprune.recovery.contract import Recovery

__all__ = ["Pruner", "StageReport"]

Progress = Callable[[str], None]


class Pruner:
    """Prunes ``model`` in place to a budget, with the training in the caller's hands.

    Four verbs: :meth:`accumulate` adds the gradients of the moment to the scores, :meth:`propose` finds a network under the limit and
    changes nothing, :meth:`mask` makes the model train and run as if the rest were gone, :meth:`cut` removes it. :meth:`step` proposes and
    then cuts or masks, as the method's schedule has it; :meth:`result` gives what :func:`latprune.prune` returns.

    Everything is said of the dense network: units, widths, blocks and tables keep their names from the first step to the last, and nothing
    is traced again.

    Args:
        model: The model; it keeps its class, only smaller layers (and removed blocks) are put in place.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword inputs.
        budget: For instance ``"50%"``, ``"8.5ms"``, ``"2000/s"``, ``"flops=45%"``, ``"params=1.2M"``, ``0.5`` (a share of the latency), or
            a list of several, all of which are met. With ``pick``: what it was picked by, by default.
        pick: A network of an exploration, proposed in place of a search; its method must go to its budget in one pass.
        target: Engine and conditions of all measurements, or an engine's name; those of ``tables`` by default.
        method: A method's name or object.
        keep: Modules or globs to leave whole.
        blocks_keep: Blocks (module names or globs) that must stay.
        min_widths: Group name or glob -> smallest width.
        widths: Further rules for the widths on offer (multiples, largest widths, shares).
        within: Path of a sub-module: only what lies inside it is pruned.
        tables: Latency tables of this model on ``target``, measured earlier; None builds them.
        predictor: A kernel predictor of ``target`` in place of tables; the last stage is measured all the same.
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
        fold: Weights that are computed of others (weight norm, spectral norm, masks) are made plain ones in a copy, which is pruned and is
            :attr:`model` then; the model itself stays as it is.

    Example:
        >>> pruner = Pruner(model, x, budget="50%", method="sp_lamp")  # doctest: +SKIP
        >>> while not pruner.done:  # doctest: +SKIP
        ...     pruner.step(optimizers=optimizer)
        ...     train(model, optimizer)
        >>> pruner.result().save("pruned")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        budget: str | float | Budget | Sequence[str | Budget] | None = None,
        pick: PickedNetwork | None = None,
        target: Target | str | None = None,
        method: str | Method = "mdp",
        keep: Iterable[str] = (),
        blocks_keep: Iterable[str] = (),
        min_widths: Mapping[str, int] | None = None,
        widths: WidthRules | None = None,
        within: str | None = None,
        tables: LatencyTables | None = None,
        predictor: KernelPredictor | None = None,
        store: Store | None = None,
        solver: str | None = None,
        time_limit: float | None = 60.0,
        seed: int = 0,
        slack: float = 0.03,
        measure_latency: bool = True,
        progress: Progress | None = None,
        form: str = "class",
        fold: bool = False,
    ) -> None:
        asked = budget if budget is not None else pick.budget if pick is not None else None
        if asked is None:
            raise InvalidArgumentError("budget (=None) must be given, for instance '50%', or a network to take as pick=")
        budgets = Budget.parse_all(asked)
        self.target = Target.of(target) if target is not None else tables.target if tables is not None else Target()
        self.method = get_method(method)
        self.schedule = self.method.schedule
        if pick is not None and (self.schedule.count != 1 or isinstance(self.schedule, SoftMasks)):
            raise InvalidArgumentError(
                f"pick is cut in one pass, and method {self.method.name!r} has {self.schedule.count} stages or masks; use stages=1, or mdp"
            )
        self.picked = pick
        """The network of an exploration that is proposed; None searches for one."""
        if tables is None and not measure_latency and budgets[0].resource == "latency":
            raise InvalidArgumentError(
                f"budget (={budgets[0].text!r}) is on latency, and measure_latency=False measures nothing: give the tables of the device"
            )
        check_kind(model)
        check_state(model)
        keep, blocks_keep = tuple(keep), tuple(blocks_keep)
        dense = model
        self.folds: tuple[Fold, ...] = ()
        """Weights that were made plain ones."""
        if fold:
            model, self.folds = folded(model, example_inputs)
        check_derived_weights(model, keep)
        self.model = self._in_form(model if self.folds else dense, example_inputs, form)
        self.example_inputs = example_inputs
        self.seed = seed
        self.clock = Clock()
        self.reports: list[StageReport] = []
        self.edits: list[ArchitectureEdits] = []
        self.selection = Selection(kept={})
        """What the network is now, cut or masked: units and blocks of the dense one."""
        self.cut_to = Selection(kept={})
        """What the model was cut to, of the dense network."""
        self._progress = progress or (lambda text: None)
        self._stages_done = 0
        self._masks: TrainingMask | None = None
        self.recovery: RecoveryReport | None = None
        """What the last recovery did."""
        self.fresh: Trial | None = None
        """Fresh measurement of the network that was cut last, where the search made one."""
        _check_finite(model)
        for entry in budgets[1:]:
            if entry.engine is not None:
                get_engine(entry.engine)
        if measure_latency or budgets[0].resource != "latency":
            get_engine(self.target.engine)  # a missing engine is told before anything is computed
        with self.clock.timed("trace"):
            self.graph = trace(
                self.model, example_inputs, keep=keep, blocks_keep=blocks_keep, min_widths=dict(min_widths or {}) or None, within=within
            )
        if not self.graph.groups and not any(block.removable for block in self.graph.blocks.values()):
            raise InvalidArgumentError(f"nothing in this model can be pruned{_reasons(self.graph)}; `latprune inspect` lists each layer's")
        if tables is not None:
            require_same_network(tables, self.graph, example_inputs, self.target, kept=bool(keep))
            TabulatedLatency(self.graph, tables)  # a layer without an entry is told before anything is measured
        stated = dense if self.folds and form == "class" else self.model
        self.dense_tensors = {name: tuple(value.shape) for name, value in stated.state_dict().items()}
        if pick is not None:
            pick.check(self.graph, self.dense_tensors)
        self.dense_model = copied(self.model).eval()
        self.scorer = Scorer(self.model, self.graph, self.method.importance)
        self._latency = LatencySource(
            self.dense_model,
            self.graph,
            example_inputs,
            self.target,
            given=tables,
            predictor=predictor,
            store=store,
            seed=seed,
            say=self._progress,
            clock=self.clock,
        )
        self._trials = Trials(self.dense_model, example_inputs, target=self.target, budget=budgets[0], seed=seed)
        self._other_engines: dict[str, LatencySource] = {}
        self._store = store
        self.limits = Limits(
            budgets, self.graph, self.target, self._latency, self._on_engine, self._trials, self.clock, measures=measure_latency
        )
        self.settings = {
            "method": self.method.name,
            "options": self.method.options(),
            "budget": [entry.to_dict() for entry in budgets],
            "target": self.target.to_dict(),
            "keep": sorted(keep),
            "blocks_keep": sorted(blocks_keep),
            "min_widths": dict(sorted((min_widths or {}).items())),
            "widths": widths.to_dict() if widths is not None else None,
            "within": within,
            "predictor": predictor is not None,
            "solver": solver,
            "seed": seed,
            "slack": slack,
            "measure_latency": measure_latency,
            "form": form,
            **({"fold": True} if self.folds else {}),
        }
        """All that decides which network comes out; a saved state is resumed only under the same."""
        if pick is not None:
            self.settings["pick"] = pick.to_dict()
        self._search = ProposalSearch(
            graph=self.graph,
            dense_model=self.dense_model,
            method=self.method,
            limits=self.limits,
            latency=self._latency,
            trial=self.trial,
            clock=self.clock,
            say=self._progress,
            rules=widths,
            solver=solver,
            time_limit=time_limit,
            seed=seed,
            slack=slack,
        )

    def _on_engine(self, engine: str) -> LatencySource:
        """Where tables of another engine, under the target's conditions, come from."""
        if engine not in self._other_engines:
            self._other_engines[engine] = LatencySource(
                self.dense_model,
                self.graph,
                self.example_inputs,
                replace(self.target, engine=engine),
                given=None,
                store=self._store,
                seed=self.seed,
                say=self._progress,
                clock=self.clock,
            )
        return self._other_engines[engine]

    @staticmethod
    def _in_form(model: nn.Module, example_inputs: Any, form: str) -> nn.Module:
        if form not in FORMS:
            raise InvalidArgumentError(f"form (={form!r}) must be one of {', '.join(FORMS)}")
        if form == "class":
            return model
        from latprune.program import capture

        return capture(model, example_inputs)

    # -- where it stands -----------------------------------------------------------------------------------------------------------------

    @property
    def budget(self) -> Budget:
        """The budget; the first where there are several."""
        return self.limits.budgets[0]

    @property
    def done(self) -> bool:
        """Whether all stages are through."""
        return self._stages_done >= self.schedule.count

    @property
    def stage(self) -> int:
        """Stages that are through."""
        return self._stages_done

    @property
    def stages(self) -> int:
        """Number of stages of the method's schedule."""
        return self.schedule.count

    @property
    def widths(self) -> dict[str, int]:
        """Group -> width of the network as it is now, cut or masked."""
        return widths_of(self.graph, self.selection)

    @property
    def stages_seconds(self) -> dict[str, float]:
        """Seconds by phase."""
        return self.clock.seconds

    @property
    def limit(self) -> float:
        """The budget's limit in its resource's unit."""
        return self.limits.limit

    @property
    def dense_ms(self) -> float | None:
        """Latency of the dense network as it was measured, which shares of it refer to, milliseconds; None where it was not yet."""
        return self._trials.dense_ms

    @dense_ms.setter
    def dense_ms(self, value: float | None) -> None:
        self._trials.dense_ms = value

    @property
    def measure_latency(self) -> bool:
        """Whether latency is measured."""
        return self.limits.measures

    def tables(self) -> LatencyTables:
        """Latency tables of the dense network; built at first use."""
        return self._latency.tables()

    @property
    def tables_used(self) -> LatencyTables | None:
        """The latency tables as far as they were needed so far."""
        return self._latency.known

    # -- the verbs -----------------------------------------------------------------------------------------------------------------------

    @property
    def needs_gradients(self) -> bool:
        """Whether the method's scores are made of gradients: of batches given, or of the caller's own (:meth:`accumulate`)."""
        return self.method.importance is not None and needs_gradients(self.method.importance)

    def accumulate(self) -> None:
        """Add the gradients that the model's parameters hold now to the scores; call it after ``loss.backward()``.

        Under masks the gradients are those at the masked values, and the weights that they are multiplied with the dense ones.
        """
        with self._masks.dense_values() if self._masks is not None else nullcontext():
            self.scorer.accumulate(self.cut_to)

    def propose(
        self,
        limit: float | None = None,
        *,
        data: Iterable[Any] | None = None,
        loss: LossFunction = cross_entropy_loss,
        batches: int | None = None,
        measure: bool | None = None,
    ) -> StageProposal:
        """Find the best network under a limit; nothing is changed.

        Args:
            limit: Limit in the resource's unit; the next stage's by default.
            data: Batches for a criterion that needs them, unless gradients were accumulated.
            loss: Scalar loss of ``(model, batch)``.
            batches: Score so many batches of ``data``; None takes all.
            measure: Whether to measure candidates; by default what the schedule says of the next stage.

        Raises:
            BudgetInfeasibleError: The limit cannot be met; the error carries the lowest value.
        """
        stage = min(self._stages_done + 1, self.schedule.count)
        dense = self.limits.dense
        wanted = limit if limit is not None else self.schedule.limit(stage=stage, dense=dense, limit=self.limit)
        returns = isinstance(self.schedule, SoftMasks)
        since = self.cut_to if returns else self.selection
        self._progress(f"stage {stage} of {self.schedule.count}: scoring")
        # What may come back is scored with its own weights; under masks that stay, what is masked counts as gone.
        shown = self._masks.dense_values() if returns and self._masks is not None else nullcontext()
        with self.evaluating(), shown, self.clock.timed("score"):
            importance = self.scorer.importance(self.cut_to, data, loss, batches)
            picked = self.picked if not self.edits else None
            if picked is not None and self.scorer.readings is not None:
                importance = self.scorer.readings.importances.get(picked.reading or "", importance)
            elif self.scorer.readings is not None:
                importance = self._search.best_reading(self.scorer.readings, since, limit=wanted)
        if picked is not None:
            return self._search.picked(importance, picked, limit=wanted)
        return self._search.find(
            importance,
            since,
            limit=wanted,
            measure=self.schedule.measured(stage) if measure is None else measure,
            last=stage == self.schedule.count or limit is not None,
            measure_alone=partial(self._latency.alone, since),
        )

    def mask(self, proposal: StageProposal | Selection | None) -> None:
        """Train and run as if what ``proposal`` leaves out were gone; None takes the mask off, and what was masked is back.

        Args:
            proposal: A proposal, or units and blocks of the dense network by themselves.

        Raises:
            SurgeryError: A group or block of the proposal cannot be masked while training; the message names it.
        """
        if proposal is None:
            if self._masks is not None:
                self._masks.set(None)
            self.selection = self.cut_to
            return
        if self._masks is None:
            soft = self.schedule if isinstance(self.schedule, SoftMasks) else None
            self._masks = TrainingMask(
                self.model,
                self.graph,
                straight_through=soft.straight_through if soft is not None else False,
                weight_decay=soft.weight_decay if soft is not None else None,
                example_inputs=self.example_inputs,
            )
        selection = proposal if isinstance(proposal, Selection) else proposal.selection
        self._masks.set(selection)
        self.selection = selection

    @property
    def masks(self) -> TrainingMask | None:
        """The masks at work, once :meth:`mask` was called; hand them your optimizers (``masks.attach(optimizer)``)."""
        return self._masks

    def cut(
        self,
        proposal: StageProposal | None = None,
        *,
        optimizers: Optimizer | Sequence[Optimizer] = (),
        averages: Sequence[nn.Module] = (),
        check: bool = True,
    ) -> EqualityReport | None:
        """Remove what ``proposal`` (or the present mask) leaves out, in place; masks are taken off.

        Args:
            proposal: The network to cut to; None takes the present mask.
            optimizers: Optimizers of the model; their state is cut along, and they train the smaller parameters afterwards.
            averages: Running averages of the model (EMA copies), cut alike.
            check: Compare the cut network with the masked one first. False leaves it to a later cut: where no weight changes in between,
                that one's comparison with the masked dense network covers this cut as well.

        Returns:
            How closely the cut network equals the masked one; the model is changed only if it does. None where nothing was compared.
        """
        selection = proposal.selection if proposal is not None else self.selection
        with self.evaluating():
            if self._masks is not None:
                self._masks.close()
                self._masks = None
            equality = self._check(selection) if check else None
            with self.clock.timed("surgery"):
                self.edits.append(cut_model(self.model, self.graph, selection, since=self.cut_to, optimizers=optimizers, averages=averages))
        self.selection = self.cut_to = selection
        self.scorer.reset()
        return equality

    def step(
        self,
        data: Iterable[Any] | None = None,
        *,
        loss: LossFunction = cross_entropy_loss,
        batches: int | None = None,
        optimizers: Optimizer | Sequence[Optimizer] = (),
        averages: Sequence[nn.Module] = (),
        choose: Callable[[StageProposal], StageProposal] | None = None,
        check: bool = True,
    ) -> StageReport:
        """Do the next stage: propose, then cut the model in place or mask it, as the schedule has it.

        Args:
            data: Batches for a criterion that needs them, unless gradients were accumulated.
            loss: Scalar loss of ``(model, batch)``.
            batches: Score so many batches of ``data``; None takes all.
            optimizers: Optimizers of the model: their state is cut along.
            averages: Running averages of the model, cut alike.
            choose: Called with the proposal of the last stage; what it returns is cut instead (:func:`latprune.pruning.picking.pick`).
            check: Compare what is cut with the masked network. False, where no weight changes before the next stage, leaves it to that
                one; the last stage always compares.

        Returns:
            What was done. The model is changed only if everything went well.

        Raises:
            BudgetInfeasibleError: The limit cannot be met; the error carries the lowest value.
            LatpruneError: All stages are through already.
        """
        if self.done:
            raise LatpruneError(f"all {self.schedule.count} stages are through; make a new Pruner to prune further")
        proposal = self.propose(data=data, loss=loss, batches=batches)
        last = self._stages_done + 1 == self.schedule.count
        if last and choose is not None:
            proposal = choose(proposal)
        equality: EqualityReport | None = None
        if last or self.schedule.after_stage == "cut":
            equality = self.cut(proposal, optimizers=optimizers, averages=averages, check=check or last)
        else:
            self.mask(proposal)
            assert self._masks is not None
            self._masks.attach(*([optimizers] if isinstance(optimizers, torch.optim.Optimizer) else optimizers))
            self.scorer.reset()
        if last:
            self.method.finish(self.model, seed=self.seed)
        self.fresh = proposal.fresh
        self._stages_done += 1
        gone = frozenset(block for earlier in self.reports for block in earlier.removed_blocks)
        report = StageReport.of(proposal, stage=self._stages_done, gone=gone, equality=equality)
        self.reports.append(report)
        return report

    def recover(self, data: Iterable[Any] | None, *, strategy: str | Recovery = "refit", images: int = 2048) -> RecoveryReport:
        """Bring the network that was cut back towards what the dense one computes, from unlabelled inputs, without training.

        Only values of weights and biases change; the network that comes out is compared with the masked network of the same weights.

        Args:
            data: Batches of inputs; labels are ignored.
            strategy: See :func:`latprune.recovery.recover`.
            images: Inputs to take, at most.

        Raises:
            LatpruneError: Nothing was cut, or masks are at work.
        """
        from latprune.recovery import recover

        if self._masks is not None or not self.edits:
            raise LatpruneError("recover() works on a network that was cut: call step() or cut() first")
        with self.clock.timed("recover"):
            report = recover(
                self.model,
                self.dense_model,
                data,
                graph=self.graph,
                selection=self.cut_to,
                strategy=strategy,
                images=images,
                seed=self.seed,
                progress=self._progress,
            )
            with self.evaluating():
                check_equal(self.model, masked(self._now(), self.graph, self.cut_to), self.example_inputs, seed=self.seed)
        # Its weights are others now, so what was gathered of the ones before says nothing of them.
        self.scorer.reset()
        self.recovery = report
        return report

    # -- checking ------------------------------------------------------------------------------------------------------------------------

    def _check(self, selection: Selection) -> EqualityReport:
        """Cut a copy and compare it with the masked network before the user's model is touched."""
        with self.clock.timed("check"):
            trial = copied(self.model)
            cut_model(trial, self.graph, selection, since=self.cut_to)
            hidden = masked(self._now(), self.graph, selection)
            return check_equal(trial, hidden, self.example_inputs, seed=self.seed)

    def _now(self) -> nn.Module:
        """The dense network with the weights that the model has now."""
        if not self.cut_to.kept and not self.cut_to.removed_blocks:
            return laid_out_as(self.model, self.dense_model)
        return widened(self.dense_model, self.model, self.graph, self.cut_to)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in evaluation mode for the while; then each module gets its own mode back (a norm that stays in ``eval``)."""
        modes = {module: module.training for module in self.model.modules()}
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)  # what a cut put in has the model's mode
            for module in self.model.modules():
                module.training = modes.get(module, module.training)

    def masked_training(self, *, steps: int, optimizers: Optimizer | tuple[Optimizer, ...], memory: float = 0.9) -> MaskedTraining:
        """Drive this pruner's soft masks through a training run; see :class:`~latprune.pruning.soft_training.MaskedTraining`."""
        from latprune.pruning.soft_training import MaskedTraining

        return MaskedTraining(self, steps=steps, optimizers=optimizers, memory=memory)

    # -- measuring -----------------------------------------------------------------------------------------------------------------------

    def trial(self, network: nn.Module, *, fresh: bool = False, window: tuple[float, float] | None = None) -> Trial:
        """Measure a network beside the dense one; see :meth:`~latprune.pruning.trials.Trials.trial`."""
        with self.clock.timed("final measurement" if fresh else "measure candidates"):
            return self._trials.trial(network, fresh=fresh, window=window)

    def measured_elsewhere(self) -> list[tuple[Budget, Trial]]:
        """For each budget on another engine's latency a fresh measurement of the network there, beside the dense one."""
        found = []
        for budget in self.limits.budgets[1:]:
            if budget.engine is not None and self.measure_latency:
                target = replace(self.target, engine=budget.engine)
                trials = Trials(self.dense_model, self.example_inputs, target=target, budget=budget, seed=self.seed)
                with self.clock.timed("final measurement"):
                    found.append((budget, trials.final(self.model, limit=budget.limit(dense=trials.dense_latency(), batch=target.batch))))
                trials.close()
        return found

    def final_measurement(self) -> tuple[Measurement, Measurement]:
        """Measure dense and pruned network afresh, both converted and compiled anew: ``(dense, pruned)``."""
        with self.clock.timed("final measurement"):
            trial = self._trials.final(self.model, limit=self.limit if self.budget.resource == "latency" else None)
        return trial.dense, trial.pruned

    def result(self, **options: Any) -> Result:
        """What :func:`latprune.prune` returns, of the network as it is: saves, exports and reports itself.

        Args:
            **options: ``accuracies``, ``name``, ``constructor``, ``arguments`` of the record; ``measured`` to take a final measurement that
                was made already.

        Raises:
            LatpruneError: Stages are left, or masks are at work: nothing final can be said.
        """
        from latprune.pruning.finishing import result_of

        return result_of(self, **options)

    def explore(self, data: Iterable[Any] | None = None, **options: Any) -> Exploration:
        """Solve for every budget at once; nothing is changed. Before the first step, of a method that goes to its budget in one pass.

        Args:
            data: Batches for a criterion that needs them, unless gradients were accumulated.
            **options: ``points``, ``measure``, ``evaluate``, ``time_limit`` and ``loss``, as for :func:`latprune.explore`; ``batches``
                scores with so many batches of ``data``.

        Returns:
            The networks from the smallest one to the dense one; the pruner's further budgets hold for all of them.
        """
        from latprune.pruning.exploring import explore_with

        return explore_with(self, data=data, **options)

    def close(self) -> None:
        """Free the engine's copy of the dense network, and close the store that was opened here."""
        self._trials.close()
        for source in (self._latency, *self._other_engines.values()):
            source.close()

    # -- state ---------------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The pruner's progress as a JSON object; the model's weights are saved apart, like any model's.

        Accumulated gradients of a stage that is not through are not part of it.
        """
        return PrunerState.of(self, dense_ms=self._trials.dense_ms).data

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring a freshly built pruner (and its dense model) to a saved state; then load the model's weights.

        Raises:
            CheckpointError: The state is of other settings, or of another version.
        """
        saved = PrunerState(state)
        saved.require_fits(PrunerState(self.state_dict()))
        for edits in saved.edits:
            replay(self.model, edits)
            self.edits.append(edits)
        self.selection, self.cut_to = saved.selection, saved.cut_to
        self.reports = saved.reports
        self._stages_done = saved.stages_done
        self._trials.dense_ms = saved.dense_ms
        self.clock.seconds = saved.seconds
        self.scorer.reset()
        if saved.masked:
            self.mask(self.selection)


def widths_of(graph: ModelGraph, selection: Selection) -> dict[str, int]:
    """Group -> width that a selection leaves."""
    dense = graph.dense_widths()
    return {**dense, **{name: kept.size // graph.groups[name].rows for name, kept in selection.kept.items()}}


def _reasons(graph: ModelGraph) -> str:
    """What keeps most of a model whole, in words."""
    parameters: dict[str, int] = {}
    for kept in graph.kept_whole:
        parameters[kept.reason] = parameters.get(kept.reason, 0) + kept.parameters
    most = sorted(parameters, key=lambda reason: -parameters[reason])[:3]
    return f" ({'; '.join(most)})" if most else ""


def _check_finite(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise InvalidArgumentError(f"tensor {name!r} holds {count} NaN or infinite values; load sound weights before pruning")
