"""The ready-made ``fit`` function of ``prune()``: fine-tuning by a recipe, checkpointed in the run's folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from latprune.pruning.fitting import Fit, FitContext
    from latprune.train import Batches, Recipe, TrainProgress

__all__ = ["fit_with", "training_threads"]


@contextmanager
def training_threads(threads: int | None = None) -> Iterator[None]:
    """Let PyTorch use ``threads`` threads (all cores by default) for a while: measuring pins one, training wants all."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads or os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_with(
    data: Batches,
    recipe: Recipe,
    *,
    stage_epochs: int | None = None,
    evaluate: Any = None,
    threads: int | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
    logs: Sequence[str] = (),
) -> Fit:
    """A ``fit`` function for :func:`latprune.prune` that fine-tunes by ``recipe`` after each stage.

    Args:
        data: Training batches.
        recipe: How to train; with a distillation the dense network teaches. After a recovery the learning rate is multiplied by
            its ``after_recovery`` (:meth:`latprune.train.Recipe.after_recovering`).
        stage_epochs: Epochs after every stage but the last; None trains the whole recipe each time.
        evaluate: Evaluates after each epoch: a function of the model, or batches.
        threads: Threads of PyTorch while training; all cores by default.
        progress: Called after each batch.
        logs: Names of logs (:func:`latprune.train.logs.open_log`) that take each stage's curves, in ``logs`` beside its checkpoints.

    Raises:
        InvalidArgumentError: No log has that name.

    Example:
        >>> fit = fit_with(loader, Recipe(epochs=3, learning_rate=0.02), evaluate=test_loader)  # doctest: +SKIP
        >>> result = latprune.prune(model, x, budget="50%", data=loader, fit=fit)  # doctest: +SKIP
    """
    from latprune.train import finetune
    from latprune.train.batches import FirstBatches
    from latprune.train.logs import LOGS, open_log

    for name in logs:
        LOGS.get(name)  # a wrong name is told before anything runs

    def fit(model: nn.Module, context: FitContext) -> list[tuple[float, float]]:
        teacher = context.dense if recipe.distillation is not None else None
        last = context.stage == context.stages
        chosen, batches = recipe, data
        if not last and context.batches is not None:
            chosen, batches = recipe.with_epochs(1), FirstBatches(data, context.batches)
        elif not last and stage_epochs is not None:
            chosen = recipe.with_epochs(stage_epochs)
        if context.recovered:
            chosen = chosen.after_recovering(context.error_left)
            if chosen.learning_rate != recipe.learning_rate:
                context.say(
                    f"peak learning rate {chosen.learning_rate:.3g} in place of {recipe.learning_rate:.3g}: the network was "
                    "recovered before (the recipe's after_recovery)"
                )
        place = context.folder.parent / "logs" if context.folder is not None else Path("logs")
        run = f"fit-{context.stage}"
        with training_threads(threads), ExitStack() as open_logs:
            opened = [open_logs.enter_context(closing(open_log(name, place, run=run, settings=chosen.to_dict()))) for name in logs]

            def tell(moment: TrainProgress) -> None:
                for each in (progress, *opened):
                    if each is not None:
                        each(moment)

            report = finetune(
                model,
                batches,
                chosen,
                evaluate=evaluate,
                teacher=teacher,
                kept=context.kept(recipe.distillation.features) if recipe.distillation is not None else None,
                driver=context.attach,
                checkpoint_dir=context.folder,
                progress=tell,
            )
        return [(float(entry.epoch + 1), entry.accuracy) for entry in report.epochs if entry.accuracy is not None]

    return fit
