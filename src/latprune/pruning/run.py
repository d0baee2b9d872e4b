"""``prune()``: the whole way from a dense model to a pruned, fine-tuned, measured and checked one."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from latprune.errors import CheckpointError, OverBudgetError
from latprune.export.provenance import current_provenance
from latprune.export.record import AccuracyRecord, ResultRecord
from latprune.importance import LossFunction, cross_entropy_loss
from latprune.latency import LatencyTables, Store, Target
from latprune.methods import Method
from latprune.pruning.budget import Budget
from latprune.pruning.pruner import Pruner
from latprune.pruning.record import build_record
from latprune.pruning.result import Result
from latprune.storage import decode_tensors, encode_tensors, write_atomic

__all__ = ["Evaluate", "Fit", "FitContext", "prune"]

STATE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitContext:
    """What a ``fit`` function may want to know.

    Attributes:
        stage: 1-based stage that was just cut.
        stages: Number of stages.
        dense: The dense network in evaluation mode, for distillation.
        folder: Where this stage's training may keep its checkpoints; None where the run has no folder.
    """

    stage: int
    stages: int
    dense: nn.Module
    folder: Path | None


Fit = Callable[[nn.Module, FitContext], Iterable[tuple[float, float]] | None]
"""Trains the model in place; may return ``(epoch, accuracy)`` pairs that it evaluated on the way."""
Evaluate = Callable[[nn.Module], float]
"""Accuracy of a model, a fraction between 0 and 1."""


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    budget: str | Budget,
    target: Target | None = None,
    method: str | Method = "mdp",
    data: Iterable[Any] | None = None,
    loss: LossFunction = cross_entropy_loss,
    fit: Fit | None = None,
    evaluate: Evaluate | None = None,
    importance_batches: int | None = 16,
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
    form: str = "class",
    folder: str | Path | None = None,
    name: str | None = None,
    constructor: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Prune ``model`` in place to a budget and prove it.

    Per stage: trace, measure the engine (or read the tables), score, solve, cut a copy, measure it, correct and solve again until it is
    under the budget, compare it with the masked network, cut ``model``, and ``fit`` it. At the end dense and pruned network are measured
    afresh, in turns.

    Args:
        model: A PyTorch module; it keeps its class and gets smaller layers.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword inputs.
        budget: ``"50%"`` of the dense latency, ``"8.5ms"``, ``"2000/s"``, ``"flops=45%"``, ``"params=1.2M"``.
        target: Engine, device, threads, batch size and precision; those of ``tables``, else OpenVINO on one CPU thread, by default.
        method: ``"mdp"``, ``"sp_lamp"``, ``"uniform"``, ``"random"``, or a method object with its options.
        data: Batches for importance scores that need gradients (``mdp`` does); each is handed to ``loss``.
        loss: Scalar loss of ``(model, batch)``.
        fit: Fine-tunes the model after each stage; None leaves it untrained. See :class:`FitContext`.
        evaluate: Accuracy of a model.
        importance_batches: Batches of ``data`` to score with; None takes all.
        keep: Modules or globs to leave whole.
        blocks_keep: Blocks that must stay.
        min_widths: Group name or glob -> smallest width.
        tables: Latency tables of this model on ``target``, measured earlier; None builds them.
        store: Where measurements are kept between runs; None uses the default store.
        solver: Solver's name; None leaves it to the method.
        time_limit: Seconds that one solve may take.
        seed: Seed of everything random.
        slack: The delivered network is accepted within ``[1 - slack, 1]`` of the budget.
        measure_latency: False measures nothing. A budget on multiply-adds or parameters is counted all the same; one on latency takes the
            word of ``tables``, for a device that is not at hand, and leaves room for their error.
        form: ``"class"``: the pruned model is the user's own class. ``"program"``: it is a captured program, in which sizes that the
            class's code holds can shrink too and which reloads without the class; ``model`` stays as it is, ``result.model`` is pruned.
        folder: Keeps the run's progress; the same call with the same folder goes on where an interrupted one stopped.
        name: Name of the model for people; its class by default.
        constructor: ``package.module:callable`` that builds the dense model, recorded so that ``latprune verify`` can rebuild it.
        arguments: Keyword arguments of the constructor, recorded too.
        progress: Called with one line of text as the work goes on.

    Returns:
        The pruned model with all that is known about it.

    Raises:
        InvalidArgumentError: An argument breaks its rule; nothing was changed.
        BudgetInfeasibleError: The budget cannot be met; carries the lowest latency, measured.
        OverBudgetError: The final, fresh measurement lies above the budget; the model is pruned and saved state is kept.
        CheckpointError: ``folder`` holds the progress of another run.
    """
    say = progress or (lambda text: None)
    pruner = Pruner(
        model,
        example_inputs,
        budget=budget,
        target=target,
        method=method,
        keep=keep,
        blocks_keep=blocks_keep,
        min_widths=min_widths,
        tables=tables,
        store=store,
        solver=solver,
        time_limit=time_limit,
        seed=seed,
        slack=slack,
        measure_latency=measure_latency,
        progress=progress,
        form=form,
    )
    run = _Run(pruner=pruner, folder=Path(folder) if folder is not None else None, fit=fit, evaluate=evaluate, say=say)
    try:
        run.resume()
        run.stages(data, loss, importance_batches)
        measured = None
        if pruner.measure_latency and fit is None and pruner.fresh is not None:
            # The network is the one that the search turned in: its fresh measurement is the final one.
            measured = (pruner.fresh.dense, pruner.fresh.pruned)
        elif pruner.measure_latency:
            measured = pruner.final_measurement()
        record = build_record(
            pruner,
            measured=measured,
            accuracies=run.accuracies,
            provenance=current_provenance(seed=seed),
            name=name or type(model).__name__,
            constructor=constructor,
            arguments=dict(arguments or {}),
        )
    finally:
        pruner.close()
    result = Result(model=pruner.model, record=record, example_inputs=example_inputs)
    if run.folder is not None:
        result.save(run.folder / "result")
    _require_under_budget(record)
    return result


def _require_under_budget(record: ResultRecord) -> None:
    share, latency = record.budget_share, record.pruned.latency
    if record.budget.resource == "latency" and share is not None and latency is not None and share > 1.0:
        limit = record.budget.limit or 0.0
        raise OverBudgetError(
            f"the final measurement lies at {share:.2%} of the budget {record.budget.text!r} ({limit:.4g} ms) although the candidates were "
            "under it: the machine was disturbed. Run again with the same folder when it is quieter, or ask for a smaller budget",
            budget_ms=limit,
            measured_ms=share * limit,
        )


@dataclass(slots=True)
class _Run:
    """The stages of one run, with their state on disk."""

    pruner: Pruner
    folder: Path | None
    fit: Fit | None
    evaluate: Evaluate | None
    say: Callable[[str], None]
    accuracies: Sequence[AccuracyRecord] = ()
    fitted: int = 0

    def stages(self, data: Iterable[Any] | None, loss: LossFunction, importance_batches: int | None) -> None:
        pruner = self.pruner
        if not self.accuracies:
            self._evaluate("dense")
        while not pruner.done or self.fitted < pruner.stage:
            if self.fitted == pruner.stage:
                batches = itertools.islice(iter(data), importance_batches) if data is not None else None
                pruner.step(batches, loss=loss)
                self._evaluate("pruned")
                self._save()
            self._fit(pruner.stage)
            self._save()

    def _fit(self, stage: int) -> None:
        if self.fit is not None:
            self.say(f"stage {stage} of {self.pruner.method.stages}: fine-tuning")
            folder = self.folder / f"fit-{stage}" if self.folder is not None else None
            context = FitContext(stage=stage, stages=self.pruner.method.stages, dense=self.pruner.dense_model, folder=folder)
            with self.pruner.clock.timed("fine-tune"):
                history = list(self.fit(self.pruner.model, context) or ())
            self.accuracies = (
                *self.accuracies,
                *(AccuracyRecord(stage=self._moment("fine-tuned"), accuracy=accuracy, epoch=epoch) for epoch, accuracy in history),
            )
            if not history:
                self._evaluate("fine-tuned")
        self.fitted = stage

    def _moment(self, moment: str) -> str:
        """``moment`` with the number of the stage where there are several."""
        stage = self.pruner.stage
        return f"{moment} {stage}" if stage and self.pruner.method.stages > 1 else moment

    def _evaluate(self, moment: str) -> None:
        if self.evaluate is None:
            return
        label = self._moment(moment)
        with self.pruner.clock.timed("evaluate"):
            training = self.pruner.model.training
            self.pruner.model.eval()
            accuracy = float(self.evaluate(self.pruner.model))
            self.pruner.model.train(training)
        self.say(f"accuracy, {label}: {accuracy:.4f}")
        self.accuracies = (*self.accuracies, AccuracyRecord(stage=label, accuracy=accuracy))

    def _save(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # Weights first, under a name of their own: the state file that names them is replaced last, so a crash leaves the older pair whole.
        weights = f"weights-{self.pruner.stage}-{self.fitted}.safetensors"
        write_atomic(self.folder / weights, encode_tensors(self.pruner.model.state_dict()))
        state = {
            "format": "latprune/run",
            "version": 1,
            "weights": weights,
            "fitted": self.fitted,
            "accuracies": [entry.model_dump(mode="json") for entry in self.accuracies],
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
            if state.get("format") != "latprune/run" or state.get("version") != 1:
                raise CheckpointError(f"{path} is not the progress of a run that this release can resume; use another folder")
            self.pruner.load_state_dict(state["pruner"])
            weights = self.folder / state["weights"]
            self.pruner.model.load_state_dict(decode_tensors(weights.read_bytes(), source=str(weights)))
            self.fitted = int(state["fitted"])
            self.accuracies = tuple(AccuracyRecord.model_validate(entry) for entry in state["accuracies"])
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be resumed ({error}); use another folder, or delete this one to start over") from error
        self.say(f"resuming after stage {self.pruner.stage} of {self.pruner.method.stages}")
