"""Pruning inside a ``transformers.Trainer``: gradients are gathered from its steps, cuts are made between its epochs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.importance import LossFunction, cross_entropy_loss
from latprune.integrations.huggingface.library import transformers
from latprune.methods import SoftMasks
from latprune.pruning.pruner import Pruner

__all__ = ["pruning_callback"]


def pruning_callback(pruner: Pruner, *, start: int = 1, data: Iterable[Any] | None = None, loss: LossFunction = cross_entropy_loss) -> Any:
    """A ``TrainerCallback`` that does a stage of the pruner after each epoch from ``start`` on, until the budget is reached.

    A criterion that needs gradients takes them from the Trainer's own backward passes, unless ``data`` is given. The optimizer's state is
    cut with the parameters; learning rate and schedule go on. The callback keeps each stage's report in ``reports``.

    Args:
        pruner: Of the model that is trained.
        start: Epoch (1-based) after which the first stage comes.
        data: Batches to score with in place of the gradients of the training.
        loss: Scalar loss of ``(model, batch)`` for ``data``.

    Raises:
        InvalidArgumentError: The method's schedule trains under masks; or, once the training begins, it cannot hold a model that changes
            its shape: it runs in several processes, or is to reload an earlier checkpoint at its end.
        MissingExtraError: ``transformers`` is not installed.

    Example:
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[pruning_callback(pruner)])  # doctest: +SKIP
    """
    if isinstance(pruner.schedule, SoftMasks):
        raise InvalidArgumentError(
            f"method {pruner.method.name!r} trains under masks, which need a call around each step: use Pruner.masked_training in a loop "
            "of your own, or a method that cuts in stages"
        )
    if start < 1:
        raise InvalidArgumentError(f"start (={start}) must be an epoch from 1 on")

    class PruningCallback(transformers().TrainerCallback):  # type: ignore[misc]
        """See :func:`pruning_callback`."""

        def __init__(self) -> None:
            self.reports: list[Any] = []

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Refuse a training that a cut would break."""
            _check(pruner, args, kwargs.get("model"), gathers=pruner.needs_gradients and data is None)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Gather the gradients of the step."""
            if not pruner.done and pruner.needs_gradients and data is None:
                pruner.accumulate()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Do the next stage."""
            if pruner.done or round(state.epoch) < start:
                return
            optimizer = kwargs["optimizer"]
            self.reports.append(pruner.step(data, loss=loss, optimizers=getattr(optimizer, "optimizer", optimizer)))

    return PruningCallback()


def _check(pruner: Pruner, args: Any, model: nn.Module | None, *, gathers: bool) -> None:
    if model is not None and all(module is not pruner.model for module in model.modules()):
        raise InvalidArgumentError(
            "the Trainer's model does not hold the pruner's: give the Trainer pruner.model (with form='program' or fold=True that is "
            "another module than the one the pruner was built of)"
        )
    if getattr(args, "world_size", 1) > 1:
        raise InvalidArgumentError(
            f"the training runs in {args.world_size} processes, each of which would cut by its own measurements, and their wrapper holds "
            "the dense parameters: prune in one process, and train the saved model in several"
        )
    if args.load_best_model_at_end:
        raise InvalidArgumentError(
            "load_best_model_at_end=True loads a checkpoint of before a cut into the pruned model: leave it out while pruning"
        )
    if gathers and args.fp16:
        raise InvalidArgumentError("fp16=True scales the gradients that the scores are made of: use bf16=True, or give batches as data=")
