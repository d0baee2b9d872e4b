"""One fine-tuning run: where it stands, its steps, its checkpoints."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latprune.errors import CheckpointError, InvalidArgumentError, TrainingError
from latprune.graph.containers import rebuilt
from latprune.progress import Stretch, say, stretch
from latprune.train.average import RunningAverage
from latprune.train.batch_losses import BatchLosses
from latprune.train.batches import MODEL_STREAM, Batches, batches_of_epoch, first_size, move, shard, share
from latprune.train.calibration import statistics_keepers
from latprune.train.contracts import (
    as_tensors,
    calling,
    check_accuracy,
    named,
)
from latprune.train.driver import ResumableDriver
from latprune.train.example_weights import ExampleWeights
from latprune.train.hooks import Evaluate, Hooks, Loss, Saving
from latprune.train.layout import LEAST_CHANNELS, lay_out, strided_projection
from latprune.train.optimizer import build_optimizer, set_learning_rate
from latprune.train.precision import mixed_precision
from latprune.train.processes import take_buffers_of_first
from latprune.train.progress import TrainProgress
from latprune.train.random_state import RandomState
from latprune.train.recipe import Recipe
from latprune.train.report import TrainReport
from latprune.train.schedule import learning_rate
from latprune.train.state import EpochRecord, Position, TrainRecord, load_state, read_record, require_same_run, save_state
from latprune.train.teaching import Teaching

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

__all__ = ["Evaluate", "Hooks", "Loss", "Run", "Saving", "TrainReport"]


_END = object()
"""What stands for the end of the data, where a batch may be None."""

_LOOK_EVERY = 50
"""Steps between looks at the loss on a GPU, where each look waits for the device; on a CPU every step is looked at."""


class Run:
    """The prepared model and optimizer, and where the run stands."""

    def __init__(
        self, model: nn.Module, data: Batches, recipe: Recipe, accelerator: Accelerator, hooks: Hooks, saving: Saving | None
    ) -> None:
        self.model = model
        self.data = data
        self.recipe = recipe
        self.accelerator = accelerator
        self.hooks = hooks
        self.saving = saving
        self.steps_per_epoch = len(data)
        self.steps = recipe.epochs * self.steps_per_epoch
        self.updates_per_epoch = recipe.updates(self.steps_per_epoch)
        self.position = Position(epoch=0, batch=0)
        self.history: tuple[EpochRecord, ...] = ()
        self.resumed_from: int | None = None
        self.contiguous = False
        """Whether inputs are brought out of channels last, too."""
        model.to(accelerator.device)
        if recipe.channels_last:
            self._lay_out()
        self.wrapped, self.optimizer = accelerator.prepare(model, build_optimizer(model, recipe))
        if recipe.compile:
            self.wrapped = torch.compile(self.wrapped)
        self._plain = getattr(self.optimizer, "optimizer", self.optimizer)
        updates = recipe.epochs * self.updates_per_epoch
        self.driver = hooks.driver(self._plain, updates) if hooks.driver is not None else None
        if self._kept_driver() is not None:
            recipe.check_under_masks()
        self.average = RunningAverage(model, recipe.ema) if recipe.ema is not None else None
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=recipe.precision == "fp16")
        chosen, teacher = recipe.distillation, hooks.teacher
        beyond = chosen is not None and (chosen.loss is not None or bool(chosen.features))
        self.teaching = Teaching(chosen, model, teacher, hooks.kept) if beyond and chosen is not None and teacher is not None else None
        # Sums since the last look, on the device: loss times what it is the mean of, how much that is, correct answers, labels.
        exact = torch.float32 if accelerator.device.type == "mps" else torch.float64  # Apple's GPUs have no double precision
        self.sums = torch.zeros(4, dtype=exact, device=accelerator.device)
        self.losses = BatchLosses(
            model, self.wrapped, recipe, loss=hooks.loss, teacher=teacher, exact=exact, rank=accelerator.process_index
        )
        self.weights = ExampleWeights(accelerator.num_processes)
        self.trained = 0
        self.told: Stretch | None = None
        self.started = self.last_look = self.last_save = time.monotonic()
        RandomState.seed(recipe.seed, MODEL_STREAM, accelerator.process_index)

    def _lay_out(self) -> None:
        """Bring the weights to channels last, unless the network would not survive its backward pass."""
        narrow = None
        if self.accelerator.device.type == "cpu" and self.recipe.precision == "fp32":
            narrow = strided_projection(self.model)
        lay_out(self.model, torch.channels_last if narrow is None else torch.contiguous_format)
        self.contiguous = narrow is not None
        if narrow is not None and self.accelerator.is_main_process:
            say(
                f"training contiguous, not channels last: '{narrow}' is a 1x1 convolution with a stride and fewer than {LEAST_CHANNELS} "
                "input channels, which PyTorch cannot train channels last in fp32 on a processor"
            )

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.position.epoch * self.steps_per_epoch + self.position.batch

    def resume(self) -> None:
        """Take up the run in the checkpoint folder, if there is one.

        Raises:
            CheckpointError: It is a run of another recipe, data, model or driver.
        """
        record = read_record(self.saving.folder) if self.saving is not None else None
        if self.saving is not None:
            self._require_seen_by_all(record, self.saving.folder)
        if record is None or self.saving is None:
            return
        require_same_run(self.saving.folder, record, recipe=self.recipe, steps_per_epoch=self.steps_per_epoch)
        random = load_state(
            self.saving.folder, record, model=self.model, optimizer=self.optimizer, driver=self._kept_driver(), average=self.average
        )
        if record.scaler is not None:
            self.scaler.load_state_dict(record.scaler.model_dump(by_alias=True))
        if self.teaching is not None and record.variation is not None:
            self.teaching.variation.load_state(record.variation)
        self.position, self.history = record.position, record.history
        self.resumed_from = self.step
        if self.accelerator.is_main_process:
            random.restore()
        else:  # the main process has the sums of all, and its random state; the others begin with none, and a stream of their own
            self.position = self.position.model_copy(update={"loss_sum": 0.0, "correct": 0.0, "counted": 0.0, "labelled": 0})
            RandomState.seed(self.recipe.seed, MODEL_STREAM, self.accelerator.process_index, self.step)

    def _require_seen_by_all(self, record: TrainRecord | None, folder: Path) -> None:
        """Refuse to begin where some processes would go on from a checkpoint and others, on another machine, would not find it."""
        count = self.accelerator.num_processes
        if count == 1:
            return
        batches = 0 if record is None else 1 + record.position.epoch * record.steps_per_epoch + record.position.batch
        mine = torch.tensor([float(batches), float(batches) ** 2], dtype=torch.float64, device=self.accelerator.device)
        total, squares = (float(value) for value in self.accelerator.reduce(mine, "sum"))
        if count * squares != total**2:  # they differ
            raise CheckpointError(
                f"the {count} processes find different checkpoints in {folder}: all machines must see checkpoint_dir as one folder; give "
                "one that they share, or resume=False to start again"
            )

    def _kept_driver(self) -> ResumableDriver | None:
        """The driver, where it has a state that checkpoints keep."""
        return self.driver if isinstance(self.driver, ResumableDriver) else None

    def train(self, time_limit: float | None) -> TrainReport:
        """Train to the end of the recipe or to the time limit (seconds)."""
        deadline = self.started + time_limit if time_limit is not None else math.inf
        heard = self.accelerator.is_main_process
        with stretch("training", total=self.steps, unit="steps") if heard else nullcontext() as self.told:
            while self.position.epoch < self.recipe.epochs and self._train_epoch(deadline):
                self._end_epoch()
        finished = self.position.epoch == self.recipe.epochs
        if self.average is not None:  # at a time limit, too: the checkpoint has the weights that training goes on with
            self.average.copy_to(self.model)
        take_buffers_of_first(self.model, self.accelerator)
        return TrainReport(
            epochs=self.history,
            steps=self.position.epoch * self.updates_per_epoch + self.recipe.updates(self.position.batch),
            seconds=self.position.seconds,
            finished=finished,
            stopped="" if finished else "time limit",
            resumed_from=self.resumed_from,
        )

    def _train_epoch(self, deadline: float) -> bool:
        """Train the rest of the current epoch; False where the deadline stopped it."""
        epoch = self.position.epoch
        self.wrapped.train()
        if self.recipe.fixed_norms:
            for norm in statistics_keepers(self.model):
                norm.eval()
        batches = batches_of_epoch(self.data, epoch=epoch, start=self.position.batch, seed=self.recipe.seed)
        try:
            while self.position.batch < self.steps_per_epoch:
                batch = next(batches, _END)
                if batch is _END:
                    raise InvalidArgumentError(
                        f"data ended after {self.position.batch} batches of epoch {epoch + 1}, but its length is {self.steps_per_epoch}"
                    )
                self._train_step(batch)
                now = time.monotonic()
                last = self.position.batch == self.steps_per_epoch
                stop = self._agreed(now >= deadline) if deadline < math.inf else False
                whole = last or self.position.batch % self.recipe.accumulate == 0  # gradients that are half gathered are not kept
                stop = stop and whole
                due = self.saving is not None and (now - self.last_save >= self.saving.every or stop)
                save = self.saving is not None and not last and whole and self._agreed(due)
                if save or last or self.accelerator.device.type == "cpu" or self.step % _LOOK_EVERY == 0:
                    self._look()
                if save:
                    self._save()
                if stop and not last:
                    self._look()
                    return False
        finally:
            batches.close()
        return True

    def _agreed(self, wish: bool) -> bool:
        """Whether any process wishes to; all processes must stop, or save, at the same step."""
        if self.accelerator.num_processes == 1:
            return wish
        return bool(self.accelerator.reduce(torch.tensor(float(wish), device=self.accelerator.device), "sum") > 0)

    def _train_step(self, batch: Any) -> None:
        recipe, device = self.recipe, self.accelerator.device
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        whole = as_tensors(batch)
        total = first_size(whole)
        if not total:
            raise InvalidArgumentError(f"batch {self.position.batch} of data holds no example (its first dimension is 0); leave it out")
        here = share(total, rank, processes)
        batch = move(shard(whole, rank, processes), device)
        if self.contiguous:
            batch = rebuilt(batch, lambda leaf: leaf.contiguous() if isinstance(leaf, torch.Tensor) else leaf)
        first = self.position.batch - self.position.batch % recipe.accumulate
        gathered = min(recipe.accumulate, self.steps_per_epoch - first)
        if self.position.batch == first:
            set_learning_rate(self.optimizer, learning_rate(recipe, self.step, self.steps_per_epoch))
            if self.driver is not None:
                self.driver.before_forward()
            self.optimizer.zero_grad(set_to_none=True)
            self.weights.begin()
        with mixed_precision(device.type, recipe.precision):
            number, losses = self.position.batch, self.losses
            if self.teaching is None:
                given = losses.own(batch, number=number, step=self.step)
                loss, weight = given.loss, given.weight
            else:
                with self.teaching.watched():
                    labelled = self.teaching.needs_labels
                    given = losses.own(batch, number=number, step=self.step) if labelled else losses.unlabelled(batch, number=number)
                loss, weight = self.teaching.mixed(given.loss), given.examples  # every example has a teacher's answer
            assert loss is not None
        ends = self.position.batch + 1 == first + gathered
        share_here = self.weights.of(here=here, total=total)
        with nullcontext() if ends else self.accelerator.no_sync(self.wrapped):
            self.accelerator.backward(self.scaler.scale(loss * share_here / gathered))
        if ends:
            self._update()
        if here:  # else it took part with examples of others
            self.sums[0] += loss.detach().to(self.sums.dtype) * weight
            self.sums[1] += weight
            if given.judged is not None:
                self.sums[2:] += given.judged
            self.trained += given.examples
        self.position = self.position.model_copy(update={"batch": self.position.batch + 1})

    def _update(self) -> None:
        """One step of the optimizer with the gradients that were gathered."""
        self.scaler.unscale_(self._plain)
        if (correction := self.weights.correction()) != 1.0:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(correction)
        if self.driver is not None:
            self.driver.after_backward()
        if self.recipe.max_gradient_norm is not None:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.recipe.max_gradient_norm)
        self.scaler.step(self._plain)
        self.scaler.update()
        if self.hooks.after_step is not None:
            with calling(named(self.hooks.after_step, "(model)")):
                self.hooks.after_step(self.model)
        if self.average is not None:
            self.average.update(self.model)

    def _look(self) -> None:
        """Bring the sums from the device into the position, check the loss, and tell the progress."""
        now = time.monotonic()
        loss, counted, correct, labelled = (float(value) for value in self.sums)
        self.sums.zero_()
        position = self.position
        self.position = position.model_copy(
            update={
                "loss_sum": position.loss_sum + loss,
                "correct": position.correct + correct,
                "counted": position.counted + counted,
                "labelled": round(labelled + (position.counted if position.labelled is None else position.labelled)),
                "seconds": position.seconds + now - self.last_look,
                "epoch_seconds": position.epoch_seconds + now - self.last_look,
            }
        )
        self.last_look = now
        rate = learning_rate(self.recipe, self.step - 1, self.steps_per_epoch)
        if not math.isfinite(self.position.loss_sum):
            raise TrainingError(
                f"the loss is not a finite number any more at epoch {position.epoch + 1}, step {self.step} (learning rate {rate:.3g}); "
                "use a smaller learning_rate, a warm-up or max_gradient_norm, and check the data for NaN",
                epoch=position.epoch,
                step=self.step,
                learning_rate=rate,
            )
        if self.told is not None:
            moment = self._progress(rate)
            self.told.reached(
                self.step, epoch=moment.epoch + 1, loss=moment.loss, examples_per_second=moment.examples_per_second, **self._judged_last()
            )
            if self.hooks.progress is not None:
                self.hooks.progress(moment)

    def _progress(self, rate: float) -> TrainProgress:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        here = self.step - (self.resumed_from or 0)
        return TrainProgress(
            epoch=self.position.epoch,
            epochs=self.recipe.epochs,
            step=self.step,
            steps=self.steps,
            loss=self.position.mean_loss,
            learning_rate=rate,
            examples_per_second=self.trained / elapsed,
            seconds_left=(self.steps - self.step) * elapsed / max(here, 1),
        )

    def _evaluate(self) -> float:
        assert self.hooks.evaluate is not None
        what = named(self.hooks.evaluate, "(model)")
        with self.average.shown_in(self.model) if self.average is not None else nullcontext():
            take_buffers_of_first(self.model, self.accelerator)
            with calling(what):
                value = self.hooks.evaluate(self.model)
        return check_accuracy(value, what)

    def _end_epoch(self) -> None:
        """Evaluate, write the epoch into the history, and go to the next one."""
        rate = learning_rate(self.recipe, self.step - 1, self.steps_per_epoch)
        progress = self._progress(rate)
        accuracy = self._evaluate() if self.hooks.evaluate is not None else None
        done = self._position_of_all()
        loss, labelled = done.mean_loss, done.labelled
        self.history += (
            EpochRecord(
                epoch=done.epoch,
                loss=loss,
                train_accuracy=done.correct / labelled if labelled and self.hooks.loss is None and self.losses.judged else None,
                accuracy=accuracy,
                learning_rate=rate,
                seconds=done.epoch_seconds,
            ),
        )
        self.position = Position(epoch=done.epoch + 1, batch=0, seconds=done.seconds)
        self.last_look = time.monotonic()
        if self.saving is not None:
            self._save()
        if self.told is not None:
            shown = f", accuracy {accuracy:.2%}" if accuracy is not None else ""
            say(f"epoch {done.epoch + 1} of {self.recipe.epochs}: loss {loss:.4f}{shown}")
            if accuracy is not None and self.hooks.progress is not None:
                self.hooks.progress(replace(progress, accuracy=accuracy))

    def _position_of_all(self) -> Position:
        """The position with the sums of all processes; all of them must call this at the same step."""
        here = self.position
        if self.accelerator.num_processes == 1:
            return here
        mine = [here.loss_sum, here.correct, here.counted, here.labelled or 0]
        sums = torch.tensor(mine, dtype=self.sums.dtype, device=self.accelerator.device)
        loss, correct, counted, labelled = (float(value) for value in self.accelerator.reduce(sums, "sum"))
        return here.model_copy(update={"loss_sum": loss, "correct": correct, "counted": counted, "labelled": round(labelled)})

    def _judged_last(self) -> dict[str, float]:
        """The accuracy of the last epoch that was evaluated, by its name."""
        last = self.history[-1].accuracy if self.history else None
        return {"accuracy": last} if last is not None else {}

    def _save(self) -> None:
        assert self.saving is not None
        position = self._position_of_all()
        if self.accelerator.is_main_process:
            save_state(
                self.saving.folder,
                model=self.model,
                optimizer=self.optimizer,
                recipe=self.recipe.to_dict(),
                steps_per_epoch=self.steps_per_epoch,
                position=position,
                history=self.history,
                driver=self._kept_driver(),
                average=self.average,
                scaler=self.scaler.state_dict() if self.scaler.is_enabled() else None,
                variation=self.teaching.variation.state() if self.teaching is not None else None,
                finished=self.position.epoch == self.recipe.epochs,
            )
        self.last_save = time.monotonic()
