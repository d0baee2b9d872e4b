"""The ready-made ``fit`` function of ``prune()``: fine-tuning by a recipe, checkpointed in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latprune.argument_rules import check_whole
from latprune.errors import InvalidArgumentError
from latprune.latency.machine import usable_processors
from latprune.train.batches import length_of

if TYPE_CHECKING:
    from latprune.importance import LossFunction
    from latprune.pruning.fitting import Fit, FitContext
    from latprune.train import Batches, Recipe, TrainProgress

__all__ = ["RecipeFit", "check_training_data", "fit_with", "training_threads"]


@contextmanager
def training_threads(threads: int | None = None) -> Iterator[None]:
    """Let PyTorch use ``threads`` threads (all cores by default) for a while: measuring pins one, training wants all."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or usable_processors())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecipeFit:
    """Fine-tunes by a recipe after each stage; a ``fit`` function, see :func:`fit_with`, whose arguments these are."""

    data: Batches
    recipe: Recipe
    stage_epochs: int | None = None
    evaluate: Any = None
    loss: LossFunction | None = None
    threads: int | None = None
    progress: Callable[[TrainProgress], None] | None = None
    logs: Sequence[str] = ()

    def __call__(self, model: nn.Module, context: FitContext) -> list[tuple[float, float]]:
        """Train ``model`` in place; ``(epoch, accuracy)`` pairs of what was evaluated on the way."""
        from latprune.train import finetune
        from latprune.train.logs import open_log

        recipe, batches = self._of_stage(context)
        distillation = recipe.distillation
        if distillation is not None and distillation.features == "streams":
            streams = context.streams()
            found = f"at {len(streams)} modules" if streams else "nowhere, for it has no residual branches"
            context.say(f"fine-tuning: learns the dense network's outputs, and its streams {found}")
            distillation = distillation.at(streams)
            recipe = replace(recipe, distillation=distillation)
        place = context.folder.parent / "logs" if context.folder is not None else Path("logs")
        run = f"fit-{context.stage}"
        with training_threads(self.threads), ExitStack() as open_logs:
            opened = [open_logs.enter_context(closing(open_log(name, place, run=run, settings=recipe.to_dict()))) for name in self.logs]

            def tell(moment: TrainProgress) -> None:
                for each in (self.progress, *opened):
                    if each is not None:
                        each(moment)

            report = finetune(
                model,
                batches,
                recipe,
                evaluate=self.evaluate,
                loss=self.loss,
                teacher=context.dense if distillation is not None else None,
                kept=context.kept(distillation.features) if distillation is not None else None,
                driver=context.attach if context.masked else None,
                checkpoint_dir=context.folder,
                progress=tell,
            )
        context.trained(report.epochs)
        return [(float(entry.epoch + 1), entry.accuracy) for entry in report.epochs if entry.accuracy is not None]

    def _of_stage(self, context: FitContext) -> tuple[Recipe, Batches]:
        """The recipe and the batches of one stage."""
        from latprune.train.batches import FirstBatches

        last = context.stage == context.stages
        chosen, batches = self.recipe, self.data
        if not last and context.batches is not None:
            chosen, batches = chosen.with_epochs(1), FirstBatches(self.data, context.batches)
        elif not last and self.stage_epochs is not None:
            chosen = chosen.with_epochs(self.stage_epochs)
        if context.recovered:
            chosen = chosen.after_recovering(context.error_left)
            if chosen.learning_rate != self.recipe.learning_rate:
                context.say(
                    f"peak learning rate {chosen.learning_rate:.3g} in place of {self.recipe.learning_rate:.3g}: the network was "
                    "recovered before (the recipe's after_recovery)"
                )
        return chosen, batches


def fit_with(
    data: Batches,
    recipe: Recipe,
    *,
    stage_epochs: int | None = None,
    evaluate: Any = None,
    loss: LossFunction | None = None,
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
        loss: ``loss(model, batch)`` in place of the classification loss, for other tasks.
        threads: Threads of PyTorch while training; all cores by default.
        progress: Called after each batch.
        logs: Names of logs (:func:`latprune.train.logs.open_log`) that take each stage's curves, in ``logs`` beside its checkpoints.

    Raises:
        InvalidArgumentError: There is no data, it has no length, no log has that name, or ``threads`` is below 1.
        MissingExtraError: The package of a log is not installed.

    Example:
        >>> fit = fit_with(loader, Recipe(epochs=3, learning_rate=0.02), evaluate=test_loader)  # doctest: +SKIP
        >>> result = latprune.prune(model, x, budget="50%", data=loader, fit=fit)  # doctest: +SKIP
    """
    from latprune.train.logs import require_log

    check_training_data(data)
    if threads is not None:
        check_whole("threads", threads, least=1)
    for name in logs:
        require_log(name)
    return RecipeFit(
        data=data,
        recipe=recipe,
        stage_epochs=stage_epochs,
        evaluate=evaluate,
        loss=loss,
        threads=threads,
        progress=progress,
        logs=tuple(logs),
    )


def check_training_data(data: Iterable[Any] | None) -> None:
    """Training needs data with a length.

    Raises:
        InvalidArgumentError: There is none, or it has none.
    """
    if data is None:
        raise InvalidArgumentError("fit is a recipe, and there is no data= to train on; give the training batches")
    length = length_of(data)
    if length is None:
        raise InvalidArgumentError(
            f"data (a {type(data).__name__}) has no len(), which training needs for its schedule; give a DataLoader or a list of batches"
        )
    if length < 1:
        raise InvalidArgumentError("data holds no batch")
