"""The pruner: four verbs (accumulate, propose, mask, cut), and the step that is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import nn

from latprune.argument_rules import check_instance
from latprune.errors import InvalidArgumentError, LatpruneError, SurgeryError
from latprune.graph.types import Selection
from latprune.importance import LossFunction, cross_entropy_loss, needs_gradients
from latprune.latency import LatencyTables, Measurement
from latprune.latency.measuring.held_types import settled_target, type_note
from latprune.latency.tabulating.build import require_same_network
from latprune.methods import SoftMasks, get_method, get_schedule
from latprune.progress import listener_of, speaker
from latprune.pruning.advice import with_advice
from latprune.pruning.budget import Budget
from latprune.pruning.checking import check_cut, check_present, in_evaluation
from latprune.pruning.clock import Clock
from latprune.pruning.latency_source import LatencySources, MeasuredNetwork
from latprune.pruning.limits import Limits
from latprune.pruning.maskable import UNMASKED, check_masked_scores, maskable
from latprune.pruning.options import Options, PruningOptions, check_together, with_options
from latprune.pruning.proposal import StageProposal
from latprune.pruning.proposing import ProposalSearch
from latprune.pruning.scoring import Scorer
from latprune.pruning.stage import StageReport
from latprune.pruning.stage_search import propose_stage, stage_reached
from latprune.pruning.state import PrunerState, dense_digest
from latprune.pruning.subject import admitted
from latprune.pruning.trials import Trial, Trials
from latprune.resources import TabulatedLatency
from latprune.surgery import ArchitectureEdits, EqualityReport, TrainingMask, replay
from latprune.surgery import prune as cut_model

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from latprune.graph import ModelGraph
    from latprune.graph.folding import Fold
    from latprune.pruning.exploration import Exploration
    from latprune.pruning.result import Result
    from latprune.pruning.soft_training import MaskedTraining
    from latprune.recovery import RecoveryReport
    from latprune.recovery.contract import Recovery

__all__ = ["Pruner", "StageReport"]


class Pruner:
    """Prunes ``model`` in place to a budget, with the training in the caller's hands.

    Four verbs: :meth:`accumulate` adds the gradients of the moment to the scores, :meth:`propose` finds a network under the limit and
    changes nothing, :meth:`mask` makes the model, until its first cut, train and run as if the rest were gone, :meth:`cut` removes it.
    :meth:`step` proposes and then cuts or masks, as the method's schedule has it; :meth:`result` gives what :func:`latprune.prune` returns.

    A stage is through once the network was cut to a proposal under its limit, by :meth:`step` or by :meth:`cut`; what :meth:`step` masks
    counts as well, and what is proposed or masked to be looked at does not.

    Everything is said of the dense network: units, widths, blocks and tables keep their names from the first step to the last, and nothing
    is traced again.

    Args:
        model: The model; it keeps its class, only smaller layers (and removed blocks) are put in place. Of ``torch.compile`` and
            ``DataParallel`` the module inside is pruned, with an :class:`~latprune.errors.UnwrappedWarning`.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword inputs.
        **options: :class:`~latprune.pruning.options.Options`, such as ``budget``, ``target``, ``method``, ``keep``. With ``form="program"``
            or folded weights :attr:`model` is a program or copy, and the model given stays as it is.

    Example:
        >>> pruner = Pruner(model, x, budget="50%", method="sp_lamp")  # doctest: +SKIP
        >>> while not pruner.done:  # doctest: +SKIP
        ...     pruner.step(optimizers=optimizer)
        ...     train(model, optimizer)
        >>> pruner.result().save("pruned")  # doctest: +SKIP
    """

    @with_options(PruningOptions)
    def __init__(self, model: nn.Module, example_inputs: Any, **options: Unpack[PruningOptions]) -> None:
        self.options = given = Options(**options)
        """What was asked for."""
        placed = given.placed()
        self.target, budgets, tables = placed.target, placed.budgets, given.tables
        self.method = get_method(given.method)
        self.schedule = get_schedule(given.schedule) if given.schedule is not None else self.method.schedule
        self.picked = given.pick
        """The network of an exploration that is proposed; None searches for one."""
        check_together(given, method=self.method, schedule=self.schedule, placed=placed)
        listener = listener_of(given.progress)
        self.clock = Clock(listener)
        subject = admitted(model, example_inputs, given, self.clock)
        self.model, self.dense_model = subject.model, subject.dense
        self.graph, whole = maskable(self.model, subject.graph, self.schedule)
        self.method.check_model(self.model)
        self.folds = subject.folds
        """Weights that were made plain ones."""
        self.norms: tuple[Fold, ...] = ()
        """Weight norms that the result has back."""
        self.wrappers = subject.wrappers
        """What was taken off the model, in words."""
        self.dense_tensors = subject.tensors
        asked = self.target
        self.target = settled_target(self.dense_model, asked)
        self.type_note = type_note(self.dense_model, asked) if given.measure_latency else ""
        """What people are told where the model is held in another type than float32."""
        self.example_inputs = example_inputs
        self.seed = given.seed
        self.reports: list[StageReport] = []
        self.edits: list[ArchitectureEdits] = []
        self.selection = Selection(kept={})
        """What the network is now, cut or masked: units and blocks of the dense one."""
        self.cut_to = Selection(kept={})
        """What the model was cut to, of the dense network."""
        self.recovery: RecoveryReport | None = None
        """What recovery did to the network as it was cut last; None where there was none since."""
        self.fresh: Trial | None = None
        """Fresh measurement of the network that was cut last, where the search made one."""
        self._progress = speaker(listener)
        if placed.said:
            self._progress(placed.said)
        if self.type_note:
            self._progress(self.type_note)
        blind = check_masked_scores(self.model, self.graph, self.schedule, self.method.importance)
        self.mask_notes = tuple(note for note in (whole, blind) if note)
        """What people are told of masks in training: what they cannot hold, and what does not come back."""
        for note in (*self.graph.notes, *self.mask_notes):
            self._progress(note)
        self._stages_done = 0
        self._masks: TrainingMask | None = None
        self._masked: StageProposal | StageReport | None = None
        if tables is not None:
            require_same_network(tables, self.graph, example_inputs, self.target, kept=bool(given.keep))
            TabulatedLatency(self.graph, tables)  # a layer without an entry is told before anything is measured
        if given.predictor is not None and given.predictor.context.target != self.target:
            raise InvalidArgumentError(
                f"predictor holds for {given.predictor.context.target}, but the target is {self.target}: latencies of one say nothing of "
                "the other. Ask for the predictor's own target, or train one for this target"
            )
        if given.pick is not None:
            given.pick.check(self.graph, self.dense_tensors)
        self.scorer = Scorer(self.model, self.graph, self.method.importance)
        network = MeasuredNetwork(
            model=self.dense_model,
            graph=self.graph,
            example_inputs=example_inputs,
            target=self.target,
            store=given.store,
            seed=given.seed,
            say=self._progress,
            clock=self.clock,
        )
        self._latency = LatencySources(network, given=tables, predictor=given.predictor, asked=asked)
        self._trials = Trials(self.dense_model, example_inputs, target=self.target, budget=budgets[0], seed=given.seed)
        self.limits = Limits(budgets, self.graph, self.target, self._latency, self._trials, self.clock, measures=given.measure_latency)
        if batched := self.limits.told_of_batch(example_inputs):
            self._progress(batched)
        with with_advice():
            # A picked network is judged by its budget at the end.
            self.limits.check_counted(self.method, given.widths, floor=given.pick is None)
        self.settings = given.settings(method=self.method, placed=placed, folded=bool(self.folds))
        """All that decides which network comes out; a saved state is resumed only under the same."""
        self._search = ProposalSearch(
            graph=self.graph,
            dense_model=self.dense_model,
            method=self.method,
            limits=self.limits,
            latency=self._latency.own,
            trial=self.trial,
            clock=self.clock,
            say=self._progress,
            rules=given.widths,
            strategy=given.strategy.stand_in if given.strategy is not None else None,
            solver=given.solver,
            time_limit=given.time_limit,
            seed=given.seed,
            slack=given.slack,
        )

    def __repr__(self) -> str:
        """One line: what is pruned, how, and where it stands."""
        budgets = " and ".join(entry.text for entry in self.limits.budgets)
        return f"Pruner({type(self.model).__name__}, {self.method.name}, budget {budgets}, stage {self.stage} of {self.stages})"

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
        return self._latency.own.tables()

    @property
    def tables_used(self) -> LatencyTables | None:
        """The latency tables as far as they were needed so far."""
        return self._latency.own.known

    @cached_property
    def dense_digest(self) -> str:
        """What identifies the dense network's weights: a saved state is resumed, and masks in training go on, only of the same."""
        return dense_digest(self.dense_model)

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
        limit: float | str | Budget | None = None,
        *,
        data: Iterable[Any] | None = None,
        loss: LossFunction = cross_entropy_loss,
        batches: int | None = None,
        measure: bool | None = None,
    ) -> StageProposal:
        """Find the best network under a limit; nothing is changed.

        Args:
            limit: A number in the resource's unit, or a budget's text on the pruner's first budget's resource (``"70%"``,
                ``"flops=1.2G"``), beside which further budgets are at their final limits; by default the next stage's, for each budget.
            data: Batches for a criterion that needs them, unless gradients were accumulated.
            loss: Scalar loss of ``(model, batch)``.
            batches: Score so many batches of ``data``; None takes all.
            measure: Whether to measure candidates; by default what the schedule says of the next stage.

        Raises:
            InvalidArgumentError: ``limit`` is no positive number and no budget on the resource, or lies above the dense network.
            BudgetInfeasibleError: The limit cannot be met; the error carries the lowest value.
        """
        limit = self.limits.asked(limit) if limit is not None else None
        return propose_stage(self, limit=limit, data=data, loss=loss, batches=batches, measure=measure)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """What may come back is scored with its own weights; under masks that stay, what is masked counts as gone."""
        returns = isinstance(self.schedule, SoftMasks)
        shown = self._masks.dense_values() if returns and self._masks is not None else nullcontext()
        with self.evaluating(), shown, self.clock.timed("score"):
            yield

    def mask(self, proposal: StageProposal | Selection | None) -> None:
        """Train and run as if what ``proposal`` leaves out were gone; None takes the mask off, and what was masked is back.

        Args:
            proposal: A proposal, or units and blocks of the dense network by themselves.

        Raises:
            InvalidArgumentError: ``proposal`` is neither.
            SurgeryError: A group or block of the proposal cannot be masked while training, the message names it; or the model was cut.
        """
        if proposal is not None:
            rule = "what propose() gave, a latprune.Selection of the dense network's units and blocks, or None to take the mask off"
            check_instance("proposal", proposal, (StageProposal, Selection), rule)
        if proposal is None:
            if self._masks is not None:
                self._masks.set(None)
            self.selection, self._masked = self.cut_to, None
            return
        if self._masks is None:
            if self.cut_to.removed_blocks or widths_of(self.graph, self.cut_to) != self.graph.dense_widths():
                raise SurgeryError(
                    f"masks need a model that was never cut, and this one was (stage {self.stage} of {self.stages}): go on without mask(), "
                    "by cut(propose()) or step(); for masks in every stage build the dense model anew, and call step() under a schedule "
                    'that masks, Stages(between="mask"), which cuts once at the end'
                )
            soft = self.schedule if isinstance(self.schedule, SoftMasks) else None
            self._masks = TrainingMask(
                self.model,
                self.graph,
                straight_through=soft.straight_through if soft is not None else False,
                weight_decay=soft.weight_decay if soft is not None else None,
                norm_scaling=soft.norm_scaling if soft is not None else False,
                example_inputs=self.example_inputs,
            )
        selection = proposal if isinstance(proposal, Selection) else proposal.selection
        self._masks.set(selection)
        self.selection = selection
        self._masked = proposal if isinstance(proposal, StageProposal) else None

    @property
    def masks(self) -> TrainingMask | None:
        """The masks at work, once :meth:`mask` was called; hand them your optimizers (``masks.attach(optimizer)``)."""
        return self._masks

    def cut(
        self,
        proposal: StageProposal | None = None,
        *,
        optimizers: Optimizer | Sequence[Optimizer] = (),
        averages: nn.Module | Sequence[nn.Module] = (),
        check: bool = True,
    ) -> EqualityReport | None:
        """Remove what ``proposal`` (or the present mask) leaves out, in place; masks are taken off.

        The stages whose limits it was proposed under are through then. Units and blocks that were masked by themselves, and a proposal
        under a limit above the next stage's (one's own, or another pruner's), count for none.

        Args:
            proposal: The network to cut to; None takes the present mask.
            optimizers: Optimizers of the model; their state is cut along, and they train the smaller parameters afterwards.
            averages: A running average of the model (an EMA copy) or several, cut alike.
            check: Compare the cut network with the masked one first. False leaves it to a later cut: where no weight changes in between,
                that one's comparison with the masked dense network covers this cut as well.

        Returns:
            How closely the cut network equals the masked one; the model is changed only if it does. None where nothing was compared.

        Raises:
            InvalidArgumentError: ``proposal`` is none; nothing was changed.
        """
        if proposal is not None:
            rule = "what propose() gave, or None for the present mask; give a selection of your own to mask() first"
            check_instance("proposal", proposal, StageProposal, rule)
        selection = proposal.selection if proposal is not None else self.selection
        report = self._report_of(proposal if proposal is not None else self._masked)
        with self.evaluating():
            if self._masks is not None:
                self._masks.close()
                self._masks = None
            equality = check_cut(self, selection) if check else None
            with self.clock.timed("surgery"):
                self.edits.append(cut_model(self.model, self.graph, selection, since=self.cut_to, optimizers=optimizers, averages=averages))
        self.selection = self.cut_to = selection
        self._masked = None
        self.scorer.reset()
        self.recovery, self.fresh = None, proposal.fresh if proposal is not None else None
        if report is not None:
            self._count(replace(report, equality=(equality.max_abs, equality.max_rel) if equality is not None else None))
        return equality

    def _report_of(self, masked: StageProposal | StageReport | None) -> StageReport | None:
        """What is said of a network once it counts for a stage; None for one that counts for none."""
        if masked is None:
            return None
        if isinstance(masked, StageProposal):
            # A proposal of another pruner counts stages and limits of its own.
            masked = replace(masked, stage=min(masked.stage, stage_reached(self, masked)))
        if masked.stage < max(1, self._stages_done):
            return None
        if isinstance(masked, StageReport):
            return masked
        gone = frozenset(block for earlier in self.reports if earlier.stage < masked.stage for block in earlier.removed_blocks)
        return StageReport.of(masked, gone=gone)

    def _count(self, report: StageReport) -> None:
        """The stages up to the report's are through; a report of the same stage before, of a network that is no more, gives way."""
        left = not self.done
        self.reports = [*(earlier for earlier in self.reports if earlier.stage < report.stage), report]
        self._stages_done = report.stage
        if left and self.done:
            self.method.finish(self.model, seed=self.seed)

    def step(
        self,
        data: Iterable[Any] | None = None,
        *,
        loss: LossFunction = cross_entropy_loss,
        batches: int | None = None,
        optimizers: Optimizer | Sequence[Optimizer] = (),
        averages: nn.Module | Sequence[nn.Module] = (),
        choose: Callable[[StageProposal], StageProposal] | None = None,
        check: bool = True,
    ) -> StageReport:
        """Do the next stage: propose, then cut the model in place or mask it, as the schedule has it.

        Args:
            data: Batches for a criterion that needs them, unless gradients were accumulated.
            loss: Scalar loss of ``(model, batch)``.
            batches: Score so many batches of ``data``; None takes all.
            optimizers: Optimizers of the model: their state is cut along.
            averages: A running average of the model or several, cut alike.
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
        # What is masked comes back while it trains; at the end the network is the one that trained under the mask, or less of it.
        proposal = propose_stage(self, data=data, loss=loss, batches=batches, trained=True)
        last = self._stages_done + 1 == self.schedule.count
        if isinstance(self.schedule, SoftMasks) and self._masks is None:
            self._progress(UNMASKED)
            proposal = replace(proposal, note=f"{proposal.note}; {UNMASKED}" if proposal.note else UNMASKED)
        if last and choose is not None:
            proposal = replace(choose(proposal), stage=proposal.stage)
        if last or self.schedule.after_stage == "cut":
            self.cut(proposal, optimizers=optimizers, averages=averages, check=check or last)
        else:
            self.mask(proposal)
            assert self._masks is not None
            self._masks.attach(*([optimizers] if isinstance(optimizers, torch.optim.Optimizer) else optimizers))
            self.scorer.reset()
            report = self._report_of(proposal)
            assert report is not None
            self._count(report)
        return self.reports[-1]

    def recover(self, data: Iterable[Any] | None, *, strategy: str | Recovery | None = None, images: int = 2048) -> RecoveryReport:
        """Bring the network that was cut back towards what the dense one computes, from unlabelled inputs, without training.

        Only values of weights and biases change; the network that comes out is compared with the masked network of the same weights.

        Args:
            data: Batches of inputs; labels are ignored.
            strategy: See :func:`latprune.recovery.recover`; None: that of the options (``recover``), else the default.
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
                strategy=strategy or self.options.strategy or "refit",
                images=images,
                seed=self.seed,
                progress=self._progress,
                accept=lambda: check_present(self),
            )
        # Its weights are others now, so what was gathered of the ones before says nothing of them.
        self.scorer.reset()
        self.recovery = report
        return report

    def evaluating(self) -> AbstractContextManager[None]:
        """The model in evaluation mode for the while; then each module gets its own mode back (a norm that stays in ``eval``)."""
        return in_evaluation(self.model)

    def masked_training(self, *, steps: int, optimizers: Optimizer | tuple[Optimizer, ...], memory: float = 0.9) -> MaskedTraining:
        """Drive this pruner's soft masks through a training run; see :class:`~latprune.pruning.soft_training.MaskedTraining`."""
        from latprune.pruning.soft_training import MaskedTraining

        return MaskedTraining(self, steps=steps, optimizers=optimizers, memory=memory)

    # -- measuring -----------------------------------------------------------------------------------------------------------------------

    def trial(self, network: nn.Module, *, fresh: bool = False, window: tuple[float, float] | None = None) -> Trial:
        """Measure a network beside the dense one; see :meth:`~latprune.pruning.trials.Trials.trial`."""
        with self.clock.timed("final measurement" if fresh else "measure candidates"):
            return self._trials.trial(network, fresh=fresh, window=window)

    def final_measurement(self) -> tuple[Measurement, Measurement]:
        """Measure dense and pruned network afresh, both converted and compiled anew: ``(dense, pruned)``."""
        with self.clock.timed("final measurement"):
            trial = self._trials.final(self.model, limit=self.limit if self.budget.on_latency else None)
        return trial.dense, trial.pruned

    def result(self, **options: Any) -> Result:
        """What :func:`latprune.prune` returns, of the network as it is: saves, exports and reports itself.

        Args:
            **options: What the record has of the run beside: ``accuracies`` (:class:`~latprune.export.record.AccuracyRecord`, in order of
                time) and ``training`` (``TrainingRecord``); ``recovery``, a report's ``to_dict()``, where another one counts than what
                :meth:`recover` did since the last cut; ``name``, ``constructor`` and ``arguments`` of the model, as for
                :func:`latprune.prune`; ``measured``, ``(dense, pruned)``, in place of a final measurement of both.

        Raises:
            LatpruneError: Stages are left, the last of which cuts: nothing final can be said.
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
        self._latency.close()

    # -- state ---------------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The pruner's progress as a JSON object; the model's weights are saved apart, like any model's.

        Accumulated gradients of a stage that is not through are not part of it.
        """
        # A masked network whose stage is through has its report among the others.
        masked = self._report_of(self._masked) if self._masked is not None and self._masked.stage > self._stages_done else None
        return PrunerState.of(self, dense_ms=self._trials.dense_ms, masked=masked).data

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring a freshly built pruner (and its dense model) to a saved state; then load the model's weights.

        Raises:
            CheckpointError: The state is of other settings, other dense weights, inputs of other shapes, or another version.
        """
        saved = PrunerState(state)
        saved.require_fits(PrunerState(self.state_dict()))
        for edits in saved.edits:
            replay(self.model, edits)
            self.edits.append(edits)
        self.selection, self.cut_to = saved.selection, saved.cut_to
        self.reports = saved.reports
        self._stages_done = saved.stages_done
        self.recovery = saved.recovery
        self._trials.dense_ms = saved.dense_ms
        self.clock.seconds = saved.seconds
        self.scorer.reset()
        if saved.masked:
            self.mask(self.selection)
            self._masked = saved.masked_report


def widths_of(graph: ModelGraph, selection: Selection) -> dict[str, int]:
    """Group -> width that a selection leaves."""
    dense = graph.dense_widths()
    return {**dense, **{name: kept.size // graph.groups[name].rows for name, kept in selection.kept.items()}}
