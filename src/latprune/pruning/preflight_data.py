"""The first batch of what the caller handed over goes through all that will read it, before anything is measured or changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.importance import LossFunction, cross_entropy_loss, follows_dense, needs_gradients, reads_inputs
from latprune.pruning.finetuning import RecipeFit
from latprune.recovery.batches import run_on_few
from latprune.train.batches import labels_in, logits_of, split_batch
from latprune.train.contracts import batches_of, check_targets, function_name, inputs_of, takes_labels

if TYPE_CHECKING:
    from latprune.pruning.pruner import Pruner
    from latprune.pruning.staged_run import StagedRun

__all__ = ["Preview", "check_criterion_data", "check_handed_over", "check_stages", "first_batch"]


def first_batch(data: Iterable[Any]) -> Any:
    """The first batch, arrays made tensors.

    Raises:
        InvalidArgumentError: There is none, or the data's own code fails.
    """
    for batch in batches_of(data, 1):
        return batch
    raise InvalidArgumentError("data holds no batch")


class Preview:
    """Data whose first batch is read once for all checks: a loader with workers starts them anew each time.

    Args:
        data: Batches; None where there are none.
    """

    def __init__(self, data: Iterable[Any] | None) -> None:
        self.data = data

    @cached_property
    def first(self) -> Any:
        """The first batch, see :func:`first_batch`."""
        return first_batch(self.data if self.data is not None else ())


def check_handed_over(run: StagedRun) -> None:
    """The caller's functions can be called as they will be; the first batch of the recipe's ``evaluate`` goes through the model.

    Raises:
        InvalidArgumentError: ``fit`` or ``evaluate`` takes other arguments, or that batch fails.
    """
    if run.fit is not None and not isinstance(run.fit, RecipeFit):
        _check_arguments(run.fit, "fit", "model, context")
    if run.evaluate is not None:
        _check_arguments(run.evaluate, "evaluate", "model")
    if isinstance(run.fit, RecipeFit) and run.fit.evaluate is not None:
        if callable(run.fit.evaluate):
            _check_arguments(run.fit.evaluate, "evaluate", "model")
        elif run.evaluate is None:  # else all of it is evaluated before the first cut
            from latprune.train import evaluate

            model = run.pruner.model
            with preserved_state(model), preserved_buffers(model):
                evaluate(model, [first_batch(run.fit.evaluate)])


def _check_arguments(function: Callable[..., Any], name: str, arguments: str) -> None:
    """Whether ``function`` takes positional ``arguments``, where its signature says."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments.split(", "))
    except TypeError as error:
        raise InvalidArgumentError(
            f"{name} (={function_name(function)}) takes {signature}, and is called as {name}({arguments}): {error}"
        ) from error


def check_criterion_data(pruner: Pruner, data: Preview, loss: LossFunction) -> bool:
    """The first batch goes through what the method's criterion does with it.

    A criterion that runs the model on inputs runs it on a few of them. Where it, or one that it is compared with, reads the labels, the
    batch goes through the loss and backward. Batches that have no labels, or those of another task than the default loss knows, are left
    to the criterion, which does without.

    Args:
        pruner: The pruner.
        data: Batches.
        loss: Scalar loss of ``(model, batch)``.

    Returns:
        Whether the batch went through the loss.

    Raises:
        InvalidArgumentError: The model does not run on the inputs, or labels do not fit its class scores; the batch is named.
    """
    config = pruner.method.importance
    if config is None or data.data is None or not reads_inputs(config):
        return False
    batch, model = data.first, pruner.model
    _, output = run_on_few(model, inputs_of(batch, model))
    if _reads_labels(config) and (loss is not cross_entropy_loss or _classifies(model, batch, output)):
        from latprune.pruning.preflight import check_loss

        check_loss(model, batch, loss)
        return True
    return False


def check_stages(pruner: Pruner) -> None:
    """The method's criterion can score the network as each stage finds it.

    Raises:
        InvalidArgumentError: It, or one that it is made of, follows the dense network's run, and the method cuts in several stages.
    """
    config = pruner.method.importance
    if config is None or pruner.stages == 1 or pruner.schedule.after_stage == "mask":
        return
    found = next((part for part in (config, *_parts(config)) if follows_dense(part)), None)
    if found is not None:
        raise InvalidArgumentError(
            f"the criterion {type(found).__name__} follows the run of the dense network, and method {pruner.method.name!r} scores one that "
            f"was cut before in each of its {pruner.stages} stages but the first: take stages=1 (--stages 1), a method of a single pass, "
            "or another criterion"
        )


def _parts(config: object) -> tuple[object, ...]:
    """The criteria that a criterion is made of or compared with."""
    return tuple(part for part in (getattr(config, "rank", None), *getattr(config, "rivals", ())) if part is not None)


def _reads_labels(config: object) -> bool:
    """Whether gradients of the loss are among what a criterion is made of or compared with."""
    return any(needs_gradients(part) for part in _parts(config))


def _classifies(model: nn.Module, batch: Any, output: Any) -> bool:
    """Whether a batch has labels, and the model scores for several classes to compare them with."""
    if isinstance(batch, Mapping):
        if labels_in(batch, model) is None:
            return False
    elif not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return False
    targets = split_batch(batch, model)[1]
    if isinstance(targets, Mapping) or (isinstance(targets, (tuple, list)) and any(not isinstance(t, (int, float, str)) for t in targets)):
        return False  # boxes, several tasks
    own = takes_labels(model)
    if own and isinstance(batch, Mapping):
        return True  # the model's own loss takes them
    try:
        logits = logits_of(output)
        check_targets(logits, logits.argmax(dim=1) if logits.ndim > 1 else logits)
    except InvalidArgumentError:
        return False
    # Numbers beside a map of scores are boxes or depths as often as mistaken labels.
    return logits.ndim == 2 or (not own and isinstance(targets, Tensor) and not targets.is_floating_point())
