"""The fine-tuning loop over Accelerate: one function, resumable to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.extras import importing
from latprune.modes import preserved_modes
from latprune.train.batches import Batches, length_of
from latprune.train.driver import Driver
from latprune.train.evaluation import evaluate as evaluate_accuracy
from latprune.train.layout import lay_out
from latprune.train.precision import mixed_precision
from latprune.train.progress import TrainProgress
from latprune.train.random_state import RandomState
from latprune.train.recipe import Recipe
from latprune.train.run import Evaluate, Hooks, Loss, Run, Saving, TrainReport
from latprune.train.teaching import KeptChannels

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["finetune"]


def finetune(
    model: nn.Module,
    data: Batches,
    recipe: Recipe,
    *,
    evaluate: Evaluate | Sequence[Any] | Batches | None = None,
    teacher: nn.Module | None = None,
    kept: Mapping[str, KeptChannels] | None = None,
    loss: Loss | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    driver: Callable[[torch.optim.Optimizer, int], Driver] | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = True,
    checkpoint_seconds: float = 60.0,
    time_limit: float | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    accelerator: Accelerator | None = None,
) -> TrainReport:
    """Fine-tune ``model`` in place.

    With ``checkpoint_dir`` the run can be killed at any moment and called again with the same arguments: it goes on from the last
    checkpoint and ends with the same weights as an uninterrupted run, to the bit (where the device's kernels are deterministic). The
    learning rate is a function of the step, the data's order one of ``recipe.seed`` and the epoch. With several processes a resumed run is
    exact but for what the model itself draws (dropout) in processes other than the main one, and for the scores that these gathered since
    masks were last solved for.

    Args:
        model: The network; its training mode is put back at the end, and the teacher's, too.
        data: Sized iterable of ``(inputs, targets)`` batches or of mappings with ``labels``, such as a ``DataLoader``; see
            :class:`~latprune.train.batches.Batches`. With several processes each trains on its share of every batch.
        recipe: Epochs, learning rate, optimizer, schedule and the rest.
        evaluate: Called as ``evaluate(model) -> accuracy`` after each epoch, or data for :func:`~latprune.train.evaluation.evaluate`. This
            and all other callbacks run outside of an autocast that the caller has enabled.
        teacher: The dense network, for ``recipe.distillation``.
        kept: Which channels of the teacher's features the network kept, by module, where it did not keep all
            (:func:`latprune.recovery.kept_channels`).
        loss: ``loss(model, batch) -> scalar`` in place of the classification loss, for other tasks.
        after_step: Called with the model after each optimizer step; staged methods hold masked weights at zero with it.
        driver: Called once as ``driver(optimizer, steps)``; what it returns is called around each step (``FitContext.attach``), and its
            state is kept in the checkpoints where it has one (:class:`~latprune.train.driver.ResumableDriver`).
        checkpoint_dir: Folder for checkpoints; None writes none.
        resume: Take up the run found in ``checkpoint_dir``; False starts again.
        checkpoint_seconds: Seconds between checkpoints; one is also written after each epoch.
        time_limit: Stop after this many seconds of this call, with a checkpoint.
        progress: Called after each step.
        accelerator: Your own; by default one for this process's device.

    Returns:
        The report of the whole run, resumed parts included.

    Raises:
        MissingExtraError, BrokenPackageError: Accelerate is not installed, or cannot be imported.
        InvalidArgumentError: Arguments do not go together, or the data is not what it says.
        CheckpointError: ``checkpoint_dir`` holds a run of another model or recipe.
        TrainingError: The loss is not a finite number any more; the last checkpoint is from before.

    Example:
        >>> recipe = Recipe(epochs=3, learning_rate=0.01, weight_decay=5e-4)
        >>> report = finetune(model, batches, recipe, evaluate=batches, checkpoint_dir="run")
        >>> len(report.epochs), report.steps
        (3, 6)
    """
    if accelerator is None:
        with importing("accelerate", "train"):
            from accelerate import Accelerator
        # Mixed precision is the loop's own autocast: Accelerate's would leave a patched forward on the user's module.
        accelerator = Accelerator(mixed_precision="no")
    _check_arguments(model, data, recipe, teacher, loss, checkpoint_seconds, time_limit)
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    before = RandomState.capture()
    hooks = Hooks(
        evaluate=_evaluation(evaluate, recipe),
        teacher=teacher.to(accelerator.device) if teacher is not None else None,
        kept=kept or {},
        loss=loss,
        after_step=after_step,
        driver=driver,
        progress=progress,
    )
    saving = Saving(folder=Path(checkpoint_dir), every=checkpoint_seconds) if checkpoint_dir is not None else None
    # The gradients are computed outside of the steps' own contexts, and would be in a caller's.
    modes = preserved_modes(teacher) if teacher is not None else nullcontext()
    with preserved_modes(model), modes, mixed_precision(accelerator.device.type, "fp32"), torch.enable_grad():
        if teacher is not None:
            teacher.eval()
        try:
            run = Run(model, data, recipe, accelerator, hooks, saving)
            if resume:
                run.resume()
            return run.train(time_limit)
        finally:
            before.restore()
            torch.clear_autocast_cache()  # of a context that a caller has open: it has copies of the weights before
            model.to(home)
            if recipe.channels_last:
                lay_out(model, torch.contiguous_format)


def _check_arguments(
    model: nn.Module,
    data: Batches,
    recipe: Recipe,
    teacher: nn.Module | None,
    loss: Loss | None,
    checkpoint_seconds: float,
    time_limit: float | None,
) -> None:
    if not length_of(data):
        raise InvalidArgumentError("data must have a length (batches per epoch) of at least 1")
    if recipe.distillation is not None and teacher is None:
        raise InvalidArgumentError("recipe.distillation needs teacher=, the dense network")
    recipe.check_own_loss(loss)
    recipe.check_types(model.parameters())
    if teacher is not None and recipe.distillation is None:
        raise InvalidArgumentError("teacher was given, but recipe.distillation is None; set it, for instance to Distillation()")
    if not checkpoint_seconds >= 0.0:
        raise InvalidArgumentError(f"checkpoint_seconds (={checkpoint_seconds}) must be at least 0")
    if time_limit is not None and not time_limit > 0.0:
        raise InvalidArgumentError(f"time_limit (={time_limit}) must be positive, or None")


def _evaluation(evaluate: Evaluate | Sequence[Any] | Batches | None, recipe: Recipe) -> Evaluate | None:
    if evaluate is None or callable(evaluate):
        return evaluate
    batches = evaluate
    return lambda model: evaluate_accuracy(model, batches, precision=recipe.precision)
