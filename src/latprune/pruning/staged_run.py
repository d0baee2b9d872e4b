"""The stages of one call of ``prune()``: cut or mask, recover, train, evaluate, and keep the progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latprune.errors import LatpruneError
from latprune.export.record import AccuracyRecord, TrainingRecord
from latprune.graph.moved_buffers import preserved_shapes
from latprune.importance import LossFunction
from latprune.methods import SoftMasks
from latprune.pruning.checking import in_evaluation
from latprune.pruning.code_names import code_name
from latprune.pruning.finetuning import RecipeFit
from latprune.pruning.fitting import Evaluate, Fit
from latprune.pruning.picking import pick
from latprune.pruning.proposal import StageProposal
from latprune.pruning.run_state import RunState
from latprune.pruning.stage_training import history_of, train_stage
from latprune.pruning.state import plain_settings
from latprune.recovery import reconstruction_ranking, reselected
from latprune.train.contracts import accuracy_of

if TYPE_CHECKING:
    from torch import nn

    from latprune.latency import Measurement
    from latprune.pruning.pruner import Pruner
    from latprune.recovery.contract import Recovery
    from latprune.train import EpochRecord

__all__ = ["StagedRun"]


@dataclass(slots=True, kw_only=True)
class StagedRun:
    """The stages of one run.

    Attributes:
        pruner: The pruner.
        folder: Where the progress is kept; None keeps none.
        data: Batches for scores, recovery and picking.
        loss: Scalar loss of ``(model, batch)``.
        importance_batches: Batches to score with; None takes all.
        fit: Trains after each stage; None leaves it.
        evaluate: Accuracy of a model; None where nobody asks.
        strategy: Recovery after each cut; None for none.
        recovery_images: Inputs to recover with, at most.
        candidates: Near-optimal networks to pick among by accuracy.
        units: What chooses the units of a group of known width: ``score`` or ``reconstruction``.
        say: Takes a line of text as the work goes on.
        trains: Whether training has begun in this call.
        state: Where the run stands.
    """

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
    trains: bool = False
    state: RunState = field(default_factory=RunState)

    def resume(self) -> None:
        """Go on where the folder's run stopped."""
        settings = self._settings()
        self.state = RunState(settings=settings)
        if self.folder is not None:
            plain_settings(self.pruner)  # what cannot be kept is told now
            _ = self.pruner.dense_digest  # taken before anything runs: a run of some models moves their buffers on
        found = RunState.load(self.folder, self.pruner, settings) if self.folder is not None else None
        if found is not None:
            self.state = found
            self.say(f"resuming after stage {self.pruner.stage} of {self.pruner.stages}")

    def _settings(self) -> dict[str, Any]:
        """What decides the outcome beside the pruner's own settings."""
        recovery = None if self.strategy is None else {"strategy": self.strategy.name, **self.strategy.settings()}
        return {
            "recover": recovery,
            "recovery_images": self.recovery_images if recovery is not None else None,
            "candidates": self.candidates,
            "units": self.units,
            "loss": code_name(self.loss),
            "importance_batches": self.importance_batches,
            "trained by": self.fit.recipe.to_dict() if isinstance(self.fit, RecipeFit) else "fit" if self.fit is not None else None,
        }

    def run(self) -> None:
        """All stages that are left; what was cut, recovered or trained is kept before the caller's code is asked about it."""
        pruner, state = self.pruner, self.state
        if not state.accuracies:
            # A run that had no evaluation before is resumed with one: its model is cut by now.
            self._evaluate("dense", pruner.dense_model if pruner.stage else pruner.model)
        if isinstance(pruner.schedule, SoftMasks) and not pruner.done:
            self._train_masked()
        while not pruner.done or state.judged < pruner.stage:
            if state.judged == pruner.stage:
                choose = self._choose if self.candidates > 1 or self.units == "reconstruction" else None
                # Where nothing changes the weights between stages, the comparison of the last one covers them all.
                changes = self.fit is not None or self.strategy is not None
                pruner.step(self.data, loss=self.loss, batches=self.importance_batches, choose=choose, check=changes)
                if self.evaluate is not None or self._recovers:
                    self._save()
            if state.settled < pruner.stage:
                self._evaluate("pruned")
                self._recover()
                state.settled = pruner.stage
                if self.fit is not None or self._owes("recovered"):
                    self._save()
            if self._recovers and self._owes("recovered") and not (self._trains_after and state.fitted == pruner.stage):
                self._evaluate("recovered")
            self._fit(pruner.stage)
            self._save()
        self._judge_final()

    def _judge_final(self) -> None:
        """Evaluate the network that is delivered where the run that is resumed ended without an evaluation."""
        moment = "fine-tuned" if self._trains_after else "recovered" if self._recovers else "pruned"
        moment = "narrowed" if self.state.narrowed else moment
        if self._owes(moment):
            self._evaluate(moment)
            self._save()

    def narrow(self) -> None:
        """Where the final network is measured over the limit, by however little, cut it once more; nothing that was trained is lost."""
        pruner = self.pruner
        self._judge_narrowed()
        if not pruner.limits.measured or self.fit is None or self.state.narrowed:
            return
        found = pruner._trials.final(pruner.model, limit=pruner.limit)
        if found.value <= pruner.limit:
            return
        self.say(f"measured at {found.value:.4g} ms, over the limit of {pruner.limit:.4g} ms: narrowing once more")
        try:
            proposal = pruner.propose(pruner.limit, data=self.data, loss=self.loss, batches=self.importance_batches, measure=True)
        except LatpruneError as error:
            self.say(f"not narrowed, the network stays as it is: {error}")
            return
        recovered = pruner.recovery
        pruner.cut(proposal)
        pruner.recovery = recovered  # what trained came from it, and is cut as it trained
        self.state.narrowed = True
        self._save()
        self._judge_narrowed()

    def _judge_narrowed(self) -> None:
        if self.state.narrowed and self._owes("narrowed"):
            self._evaluate("narrowed")
            self._save()

    def _owes(self, moment: str) -> bool:
        """Whether the network of this moment is still to be evaluated."""
        label = self._moment(moment)
        return self.evaluate is not None and all(entry.stage != label for entry in self.state.accuracies)

    def measured(self) -> tuple[Measurement, Measurement] | None:
        """The final measurement where one was made already: the network is the one that the search turned in."""
        fresh = self.pruner.fresh
        if self.pruner.limits.measured and self.fit is None and fresh is not None:
            return fresh.dense, fresh.pruned
        return None

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
        unread = [name for name in pruner.graph.groups if name not in ranking]
        if unread:
            self.say(f"no layer reads {', '.join(unread)}: their units are the method's")
        return replace(chosen, selection=reselected(pruner.graph, chosen.selection, ranking))

    def _picked(self, proposal: StageProposal) -> StageProposal:
        assert self.data is not None and self.evaluate is not None
        with self.pruner.clock.timed("pick"):
            chosen, seen = pick(self.pruner, proposal, self.data, self.evaluate, count=self.candidates)
        compared = [candidate.accuracy for candidate in seen if candidate.accuracy is not None]
        if compared:
            self.say(f"{len(compared)} near-optimal networks compared: accuracy {min(compared):.4f} to {max(compared):.4f}")
        return chosen

    @property
    def _recovers(self) -> bool:
        """Whether the stage is recovered from; one that only masked has nothing to recover, nor have fresh weights at the end."""
        pruner = self.pruner
        return self.strategy is not None and pruner.masks is None and (pruner.method.keeps_weights or not pruner.done)

    def _recover(self) -> None:
        """Recover what the stage cut."""
        pruner = self.pruner
        if not self._recovers:
            return
        assert self.strategy is not None
        self.say(f"stage {pruner.stage} of {pruner.stages}: recovering without training ({self.strategy.name})")
        report = pruner.recover(self.data, strategy=self.strategy, images=self.recovery_images)
        self.say(str(report))

    def _train_masked(self) -> None:
        """The training that soft masks move in; what comes after it is the cut, and no further training."""
        self.say("training under masks")
        self._train(1, masked=True)
        self.state.fitted = 1

    @property
    def _trains_after(self) -> bool:
        """Whether the network is trained after a stage; under soft masks it was before."""
        return self.fit is not None and not isinstance(self.pruner.schedule, SoftMasks)

    def _fit(self, stage: int) -> None:
        judged = False
        if self._trains_after and self.state.fitted < stage:
            self.say(f"stage {stage} of {self.pruner.stages}: fine-tuning")
            found = self._train(stage, masked=self.pruner.masks is not None)
            self.state.fitted = stage
            if self.evaluate is not None or found is not None:
                self._save()
            history = history_of(found)
            label = self._moment("fine-tuned")
            trained = (AccuracyRecord(stage=label, accuracy=accuracy, epoch=epoch) for epoch, accuracy in history)
            self.state.accuracies = (*self.state.accuracies, *trained)
            judged = bool(history)
        if self._trains_after and not judged:
            self._evaluate("fine-tuned")
        self.state.fitted = self.state.judged = stage

    def _train(self, stage: int, *, masked: bool) -> Any:
        assert self.fit is not None
        self.trains = True

        def trained(epochs: Iterable[EpochRecord]) -> None:
            # A diverged loss is an error before it comes here, so these are numbers that JSON has.
            told = (TrainingRecord(stage=stage, epoch=one.epoch, loss=one.loss, learning_rate=one.learning_rate) for one in epochs)
            self.state.training = (*self.state.training, *told)

        with preserved_shapes(self.pruner.model):
            return train_stage(
                self.pruner,
                self.fit,
                stage=stage,
                masked=masked,
                recovers=self.strategy is not None,
                folder=self.folder,
                say=self.say,
                trained=trained,
            )

    def _moment(self, moment: str) -> str:
        """``moment`` with the number of the stage where there are several."""
        stage = self.pruner.stage
        return f"{moment} {stage}" if stage and self.pruner.stages > 1 and moment != "narrowed" else moment

    def _evaluate(self, moment: str, model: nn.Module | None = None) -> None:
        """Evaluate ``model``; None is the pruner's."""
        if self.evaluate is None:
            return
        model = model if model is not None else self.pruner.model
        label = self._moment(moment) if moment != "dense" else moment
        with self.pruner.clock.timed("evaluate"):
            with in_evaluation(model), preserved_shapes(model):
                accuracy = accuracy_of(self.evaluate, model)
        self.say(f"accuracy, {label}: {accuracy:.4f}")
        self.state.accuracies = (*self.state.accuracies, AccuracyRecord(stage=label, accuracy=accuracy))

    def _save(self) -> None:
        if self.folder is not None:
            self.state.save(self.folder, self.pruner)
