"""``prune()``: the whole way from a dense model to a pruned, recovered, fine-tuned, measured and checked one."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from latprune.errors import CheckpointError, InvalidArgumentError
from latprune.export.record import AccuracyRecord
from latprune.importance import LossFunction, cross_entropy_loss
from latprune.methods import Method, SoftMasks
from latprune.pruning.budget import Budget
from latprune.pruning.fitting import Evaluate, Fit, FitContext, TrainingDriver, driver_of, evaluation_of
from latprune.pruning.lock import locked
from latprune.pruning.picking import pick
from latprune.pruning.preflight import (
    check_batches,
    check_evaluation,
    check_repeatable,
    check_solver,
    check_training_data,
)
from latprune.pruning.proposal import StageProposal
from latprune.pruning.pruner import Pruner
from latprune.pruning.result import Result
from latprune.recovery import RecoveryReport, kept_channels, reconstruction_ranking, reselected
from latprune.storage import decode_tensors, encode_tensors, write_atomic
from latprune.train.contracts import calling

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from latprune.latency import KernelPredictor, LatencyTables, Measurement, Store, Target
    from latprune.methods.width_rules import WidthRules
    from latprune.pruning.picked import PickedNetwork
    from latprune.recovery.contract import Recovery
    from latprune.train import KeptChannels, Recipe

__all__ = ["Evaluate", "Fit", "FitContext", "prune"]

STATE = "state.json"


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    budget: str | float | Budget | Sequence[str | Budget] | None = None,
    pick: PickedNetwork | None = None,
    target: Target | str | None = None,
    method: str | Method = "mdp",
    data: Iterable[Any] | None = None,
    loss: LossFunction = cross_entropy_loss,
    recover: bool | str | Recovery = True,
    recovery_images: int = 2048,
    fit: Fit | Recipe | None = None,
    evaluate: Evaluate | Iterable[Any] | None = None,
    candidates: int = 1,
    units: Literal["score", "reconstruction"] = "score",
    importance_batches: int | None = 16,
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
    narrow: bool = False,
    form: str = "class",
    fold: bool = False,
    folder: str | Path | None = None,
    name: str | None = None,
    constructor: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Prune ``model`` in place to a budget and prove it.

    First a preflight of seconds tells what can be known before anything is measured. Then, per stage of the method's schedule: score,
    solve, cut a copy, measure it, correct and solve again until it is under the budget, compare it with the masked network, cut ``model``
    (or mask it), and ``fit`` it. At the end dense and pruned network are measured afresh, in turns.

    Args:
        model: A PyTorch module; it keeps its class and gets smaller layers.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword inputs.
        budget: ``"50%"`` of the dense latency (or ``0.5``), ``"8.5ms"``, ``"2000/s"``, ``"flops=45%"``, ``"params=1.2M"``; or a list of
            several, all of which are met. With ``pick``, what the network that was picked is judged by; that which it was picked by, by
            default.
        pick: A network of an exploration (:meth:`Exploration.pick`), cut with the widths and blocks that were shown; nothing is searched.
        target: Engine, device, threads, batch size and precision, or an engine's name; those of ``tables``, else OpenVINO on one CPU
            thread, by default.
        method: A registered method's name, or a method object with its options.
        data: Training batches: for scores that need gradients (``mdp``'s do), for recovery, and for training where ``fit`` is a recipe.
            Each is handed to ``loss``; recovery looks at the inputs alone.
        loss: Scalar loss of ``(model, batch)``.
        recover: After each cut, bring accuracy back without training and without labels, where there is ``data``: True for the default
            strategy, a strategy's name or object (:mod:`latprune.recovery`), or False.
        recovery_images: Inputs of ``data`` to recover with, at most.
        fit: Fine-tunes the model after each stage: a :class:`~latprune.train.Recipe` to train on ``data`` by, or a function (see
            :class:`FitContext`); None leaves it untrained.
        evaluate: Accuracy of a model: a function, or test batches.
        candidates: Of so many near-optimal answers of the solver the most accurate one is taken, norms measured again (EagleEye); needs
            ``data`` and ``evaluate``, on data that is not the test set.
        units: Which channels of a group stay once its width is known: the best by the method's ``score``, or those from which what reads
            them is ``reconstruction``-ed best (:func:`latprune.recovery.reconstruction_ranking`; needs ``data``, and one stage).
        importance_batches: Batches of ``data`` to score with; None takes all.
        keep: Modules or globs to leave whole.
        blocks_keep: Blocks that must stay.
        min_widths: Group name or glob -> smallest width.
        widths: Further rules for the widths on offer.
        within: Path of a sub-module: only what lies inside it is pruned.
        tables: Latency tables of this model on ``target``, measured earlier; None builds them.
        predictor: A kernel predictor in place of tables; the end is measured all the same.
        store: Where measurements are kept between runs; None uses the default store.
        solver: Solver's name; None leaves it to the method.
        time_limit: Seconds that one solve may take.
        seed: Seed of everything random.
        slack: The delivered network is accepted within ``[1 - slack, 1]`` of the budget.
        measure_latency: False measures nothing. A budget on multiply-adds or parameters is counted all the same; one on latency takes the
            word of ``tables``, for a device that is not at hand, and leaves room for their error.
        narrow: Where the final measurement lies over the budget, narrow the network once more, without training, and measure again.
        form: ``"class"``: the pruned model is the user's own class. ``"program"``: it is a captured program, in which sizes that the
            class's code holds can shrink too and which reloads without the class; ``model`` stays as it is, ``result.model`` is pruned.
        fold: Weights that are computed of others (weight norm, spectral norm, masks of ``torch.nn.utils.prune``) are made plain ones, which
            changes no output, in a copy that is pruned; ``model`` stays as it is, ``result.model`` is pruned.
        folder: Keeps the run's progress; the same call with the same folder goes on where an interrupted one stopped.
        name: Name of the model for people; its class by default.
        constructor: ``package.module:callable`` that builds the dense model, recorded so that ``latprune verify`` can rebuild it.
        arguments: Keyword arguments of the constructor, recorded too.
        progress: Called with one line of text as the work goes on.

    Returns:
        The pruned model with all that is known about it. Where the final measurement lies over the budget, ``result.verdict`` says so, and
        so do its notes: nothing that was trained is lost.

    Raises:
        InvalidArgumentError: An argument breaks its rule; nothing was changed.
        BudgetInfeasibleError: The budget cannot be met; carries the lowest latency, measured.
        CheckpointError: ``folder`` holds the progress of another run, or is in use by one.
    """
    say = progress or (lambda text: None)
    home = Path(folder) if folder is not None else None
    with locked(home) if home is not None else nullcontext():
        pruner = Pruner(
            model,
            example_inputs,
            budget=budget,
            pick=pick,
            target=target,
            method=method,
            keep=keep,
            blocks_keep=blocks_keep,
            min_widths=min_widths,
            widths=widths,
            within=within,
            tables=tables,
            predictor=predictor,
            store=store,
            solver=solver,
            time_limit=time_limit,
            seed=seed,
            slack=slack,
            measure_latency=measure_latency,
            progress=progress,
            form=form,
            fold=fold,
        )
        batches = _again(data, importance_batches)
        run = _Run(
            pruner=pruner,
            folder=home,
            data=batches,
            loss=loss,
            importance_batches=importance_batches,
            fit=_fit_of(fit, batches, evaluate),
            evaluate=evaluation_of(evaluate),
            strategy=_strategy_of(recover, batches),
            recovery_images=recovery_images,
            candidates=candidates,
            units=units,
            say=say,
        )
        try:
            run.resume()
            if not pruner.done:
                run.preflight(trains=fit is not None)
            run.stages()
            if narrow:
                run.narrow()
            result = pruner.result(
                measured=run.measured(),
                accuracies=run.accuracies,
                recovery=pruner.recovery.to_dict() if pruner.recovery is not None else None,
                name=name or type(model).__name__,
                constructor=constructor,
                arguments=arguments,
            )
        finally:
            pruner.close()
        if result.verdict == "over":
            say(f"the final measurement lies at {result.record.budget_share or 0.0:.2%} of the budget; see the notes of the result")
        if run.folder is not None:
            result.save(run.folder / "result")
    return result


def _again(data: Iterable[Any] | None, batches: int | None) -> Iterable[Any] | None:
    """``data`` that can be read again: what is left of an iterator is taken out of it once."""
    return list(itertools.islice(data, batches)) if isinstance(data, Iterator) else data


def _fit_of(fit: Fit | Recipe | None, data: Iterable[Any] | None, evaluate: Evaluate | Iterable[Any] | None) -> Fit | None:
    if fit is None or callable(fit):
        return fit
    from latprune.pruning.finetuning import fit_with
    from latprune.train import Recipe

    if not isinstance(fit, Recipe):
        raise InvalidArgumentError(f"fit (={fit!r}) must be a latprune.Recipe or a function fit(model, context)")
    check_training_data(data)
    return fit_with(data, fit, evaluate=evaluate)  # type: ignore[arg-type]


def _strategy_of(recover: bool | str | Recovery, data: Iterable[Any] | None) -> Recovery | None:
    """The strategy of recovery; None for none. One asked for by name needs its data; the default goes without."""
    from latprune.recovery import get_strategy

    if recover is False or (recover is True and data is None):
        return None
    found = get_strategy("refit" if recover is True else recover)
    if found.needs_data and data is None:
        raise InvalidArgumentError(f"recover (={recover!r}) needs data=: batches of inputs, without labels")
    return found


@dataclass(slots=True, kw_only=True)
class _Run:
    """The stages of one run, with their state on disk."""

    pruner: Pruner
    folder: Path | None
    data: Iterable[Any] | None
    loss: LossFunction
    importance_batches: int | None
    fit: Fit | None
    evaluate: Evaluate | None
    strategy: Recovery | None
    recovery_images: int
    candidates: int
    units: str
    say: Callable[[str], None]
    accuracies: Sequence[AccuracyRecord] = ()
    fitted: int = 0
    narrowed: bool = False

    def preflight(self, *, trains: bool) -> None:
        """Tell at second 0 what can be known then."""
        pruner = self.pruner
        with pruner.clock.timed("preflight"):
            if isinstance(pruner.schedule, SoftMasks) and not trains:
                raise InvalidArgumentError(
                    f"method {pruner.method.name!r} solves for masks while the network trains: give fit= (a Recipe or a function)"
                )
            check_repeatable(pruner.model, pruner.example_inputs)
            check_batches(pruner, self.data, self.loss)
            if self.candidates > 1 and (self.data is None or self.evaluate is None):
                raise InvalidArgumentError(f"candidates (={self.candidates}) picks by accuracy: it needs data= and evaluate=")
            if self.candidates > 1 and pruner.picked is not None:
                raise InvalidArgumentError(
                    f"candidates (={self.candidates}) compares other networks than the one of pick; leave one of them out"
                )
            if self.units not in ("score", "reconstruction"):
                raise InvalidArgumentError(f"units (={self.units!r}) must be score or reconstruction")
            if self.units == "reconstruction" and (self.data is None or pruner.stages > 1):
                raise InvalidArgumentError(
                    "units='reconstruction' chooses anew among all channels: it needs data=, and a method of one stage, because what an "
                    "earlier stage removed cannot come back"
                )
            check_solver(pruner)

    def stages(self) -> None:
        pruner = self.pruner
        if not self.accuracies:
            self._evaluate("dense")
        if isinstance(pruner.schedule, SoftMasks) and not pruner.done:
            self._train_masked()
        while not pruner.done or self.fitted < pruner.stage:
            if self.fitted == pruner.stage:
                choose = self._choose if self.candidates > 1 or self.units == "reconstruction" else None
                # Where nothing changes the weights between stages, the comparison of the last one covers them all.
                changes = self.fit is not None or self.strategy is not None
                pruner.step(self.data, loss=self.loss, batches=self.importance_batches, choose=choose, check=changes)
                self._evaluate("pruned")
                self._recover()
                self._save()
            self._fit(pruner.stage)
            self._save()

    def _choose(self, proposal: StageProposal) -> StageProposal:
        """The most accurate of the solver's near-optimal answers; its units by reconstruction where that is asked for."""
        assert self.data is not None
        chosen = self._picked(proposal) if self.candidates > 1 else proposal
        if self.units == "score":
            return chosen
        pruner = self.pruner
        self.say("choosing units by reconstruction")
        with pruner.clock.timed("reconstruction"):
            ranking = reconstruction_ranking(pruner.dense_model, pruner.graph, self.data, seed=pruner.seed)
        return replace(chosen, selection=reselected(pruner.graph, chosen.selection, ranking))

    def _picked(self, proposal: StageProposal) -> StageProposal:
        assert self.data is not None and self.evaluate is not None
        with self.pruner.clock.timed("pick"):
            chosen, seen = pick(self.pruner, proposal, self.data, self.evaluate, count=self.candidates)
        compared = [candidate.accuracy for candidate in seen if candidate.accuracy is not None]
        if compared:
            self.say(f"{len(compared)} near-optimal networks compared: accuracy {min(compared):.4f} to {max(compared):.4f}")
        return chosen

    def _recover(self) -> None:
        """Recover what the stage cut; a stage that only masked has nothing to recover."""
        pruner = self.pruner
        if self.strategy is None or pruner.masks is not None or not pruner.method.keeps_weights:
            return
        self.say(f"stage {pruner.stage} of {pruner.stages}: recovering without training ({self.strategy.name})")
        report = pruner.recover(self.data, strategy=self.strategy, images=self.recovery_images)
        self.say(str(report))
        self._evaluate("recovered")

    def _train_masked(self) -> None:
        """The training that soft masks move in; what comes after it is the cut, and no further training."""
        assert self.fit is not None
        self.say("training under masks")
        self._train(1, masked=True)
        self.fitted = 1

    def _fit(self, stage: int) -> None:
        soft = isinstance(self.pruner.schedule, SoftMasks)
        if self.fit is not None and not soft:
            self.say(f"stage {stage} of {self.pruner.stages}: fine-tuning")
            history = self._train(stage, masked=self.pruner.masks is not None)
            self.accuracies = (
                *self.accuracies,
                *(AccuracyRecord(stage=self._moment("fine-tuned"), accuracy=accuracy, epoch=epoch) for epoch, accuracy in history),
            )
            if not history:
                self._evaluate("fine-tuned")
        self.fitted = stage

    def _train(self, stage: int, *, masked: bool) -> list[tuple[float, float]]:
        assert self.fit is not None
        pruner, attached = self.pruner, []

        def attach(optimizer: Optimizer, steps: int) -> TrainingDriver:
            attached.append(optimizer)
            return driver_of(pruner, optimizer, steps)

        def kept(modules: Iterable[str]) -> Mapping[str, KeptChannels]:
            if masked or pruner.cut_to is None:
                return {}
            return kept_channels(pruner.dense_model, pruner.graph, pruner.cut_to, pruner.example_inputs, modules)

        recovered = pruner.recovery if self.strategy is not None and not masked else None
        recovered = recovered if recovered is not None and recovered.changed else None
        context = FitContext(
            stage=stage,
            stages=pruner.stages,
            dense=pruner.dense_model,
            folder=self.folder / f"fit-{stage}" if self.folder is not None else None,
            batches=pruner.schedule.batches if not pruner.done else None,
            masked=masked,
            attach=attach,
            recovered=recovered is not None,
            error_left=recovered.error_left if recovered is not None else None,
            say=self.say,
            kept=kept,
        )
        with pruner.clock.timed("fine-tune"), calling("fit(model, context)"):
            history = list(self.fit(pruner.model, context) or ())
        if masked and not attached:
            raise InvalidArgumentError(
                f"method {pruner.method.name!r} trains under masks, and fit(model, context) did not hand its optimizer to "
                "context.attach(optimizer, steps)"
            )
        return history

    def narrow(self) -> None:
        """Where the final network lies over the budget, cut it once more."""
        pruner = self.pruner
        if not pruner.limits.measured or self.fit is None or self.narrowed:
            return
        found = pruner._trials.final(pruner.model, limit=pruner.limit)
        if found.value <= pruner.limit:
            return
        self.say(f"measured at {found.value:.4g} ms, over the limit of {pruner.limit:.4g} ms: narrowing once more")
        proposal = pruner.propose(pruner.limit, data=self.data, loss=self.loss, batches=self.importance_batches, measure=True)
        pruner.cut(proposal)
        self.narrowed = True
        self._evaluate("narrowed")
        self._save()

    def measured(self) -> tuple[Measurement, Measurement] | None:
        """The final measurement where one was made already: the network is the one that the search turned in."""
        fresh = self.pruner.fresh
        if self.pruner.limits.measured and self.fit is None and fresh is not None:
            return fresh.dense, fresh.pruned
        return None

    def _moment(self, moment: str) -> str:
        """``moment`` with the number of the stage where there are several."""
        stage = self.pruner.stage
        return f"{moment} {stage}" if stage and self.pruner.stages > 1 and moment != "narrowed" else moment

    def _evaluate(self, moment: str) -> None:
        if self.evaluate is None:
            return
        label = self._moment(moment)
        with self.pruner.clock.timed("evaluate"):
            with self.pruner.evaluating(), calling("evaluate(model)"):
                found = self.evaluate(self.pruner.model)
            accuracy = check_evaluation(found)
        self.say(f"accuracy, {label}: {accuracy:.4f}")
        self.accuracies = (*self.accuracies, AccuracyRecord(stage=label, accuracy=accuracy))

    def _save(self) -> None:
        if self.folder is None:
            return
        # Weights first, under a name of their own: the state file that names them is replaced last, so a crash leaves the older pair whole.
        weights = f"weights-{self.pruner.stage}-{self.fitted}{'-narrowed' * self.narrowed}.safetensors"
        write_atomic(self.folder / weights, encode_tensors(self.pruner.model.state_dict()))
        state = {
            "format": "latprune/run",
            "version": 2,
            "weights": weights,
            "fitted": self.fitted,
            "narrowed": self.narrowed,
            "accuracies": [entry.model_dump(mode="json") for entry in self.accuracies],
            "recovery": self.pruner.recovery.to_dict() if self.pruner.recovery is not None else None,
            "pruner": self.pruner.state_dict(),
            "saved": time.time(),
        }
        write_atomic(self.folder / STATE, json.dumps(state).encode())
        for stale in self.folder.glob("weights-*.safetensors"):
            if stale.name != weights:
                stale.unlink()

    def resume(self) -> None:
        """Go on where the folder's run stopped."""
        if self.folder is None or not (self.folder / STATE).exists():
            return
        path = self.folder / STATE
        try:
            state = json.loads(path.read_text())
            if state.get("format") != "latprune/run" or state.get("version") != 2:
                raise CheckpointError(f"{path} is not the progress of a run that this release can resume; use another output folder")
            self.pruner.load_state_dict(state["pruner"])
            weights = self.folder / state["weights"]
            self.pruner.model.load_state_dict(decode_tensors(weights.read_bytes(), source=str(weights)))
            self.fitted = int(state["fitted"])
            self.pruner.recovery = RecoveryReport.from_dict(state["recovery"]) if state["recovery"] is not None else None
            self.narrowed = bool(state["narrowed"])
            self.accuracies = tuple(AccuracyRecord.model_validate(entry) for entry in state["accuracies"])
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be resumed ({error}); use another folder, or delete this one to start over") from error
        self.say(f"resuming after stage {self.pruner.stage} of {self.pruner.stages}")
