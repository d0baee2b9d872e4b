"""What users hand over (batches, labels, losses, evaluations), checked where it comes in; errors of their code are told as theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.containers import rebuilt
from latprune.graph.example_inputs import by_argument
from latprune.train.batches import forward, logits_of, split_batch, without_labels
from latprune.train.loss import cross_entropy
from latprune.train.user_code import calling, described, function_name, named

__all__ = [
    "accuracy_of",
    "answer",
    "as_tensors",
    "batches_of",
    "calling",
    "check_accuracy",
    "check_batched",
    "check_loss_value",
    "check_targets",
    "described",
    "function_name",
    "inputs_of",
    "named",
    "numbered",
    "own_loss",
    "plain_loss",
    "rereadable",
    "takes_labels",
]


def numbered(data: Iterable[Any], what: str = "data") -> Generator[tuple[int, Any], None, None]:
    """Batches with their numbers from 0, NumPy arrays made tensors; what the data's own code raises is told as the data's.

    Raises:
        InvalidArgumentError: ``data`` cannot be iterated over, or fails at a batch.
    """
    with calling(f"iterating over {what} (a {type(data).__name__})"):
        iterator = iter(data)
    index = 0
    while True:
        with calling(f"{what} (a {type(data).__name__})", batch=index):
            try:
                batch = as_tensors(next(iterator))
            except StopIteration:
                return
        yield index, batch
        index += 1


def as_tensors(value: Any) -> Any:
    """NumPy arrays in nested containers as tensors; what holds none is given back as it is."""
    return rebuilt(value, _as_tensor)


def _as_tensor(value: Any) -> Any:
    if type(value).__module__ == "numpy" and hasattr(value, "dtype"):
        import numpy as np

        if value.dtype == object or value.dtype.kind in "USV":
            return value
        return torch.from_numpy(np.ascontiguousarray(value)) if value.ndim else torch.tensor(value.item())
    return value


def batches_of(data: Iterable[Any], count: int | None = None, *, start: int = 0) -> Iterator[Any]:
    """The batches of ``data`` from number ``start`` up to number ``count`` (None: to the end), read as :func:`numbered` does."""
    return (batch for _, batch in islice(numbered(data), start, count))


def rereadable(data: Iterable[Any], count: int | None = None) -> Iterable[Any]:
    """``data`` that can be read several times: what is left of an iterator (``count`` batches at most) is taken out of it once."""
    return list(batches_of(data, count)) if isinstance(data, Iterator) else data


def inputs_of(batch: Any, model: nn.Module | None = None) -> Any:
    """The model's inputs in a batch; labels are left out, whatever they are.

    A tensor (or array) is the input itself; of a tuple such as ``(inputs, labels)`` the first entry; of a mapping all but its labels
    (:func:`~latprune.train.batches.without_labels`). An object of any other class is handed to the model as it is.

    Args:
        batch: The batch.
        model: The model that the inputs are for.

    Raises:
        InvalidArgumentError: It is an empty tuple or list, or None.
    """
    batch = as_tensors(batch)
    if isinstance(batch, Mapping):
        return without_labels(batch, model)
    if isinstance(batch, (tuple, list)) and batch:
        return tuple(batch[0]) if isinstance(batch[0], (tuple, list)) else inputs_of(batch[0], model)
    if batch is None or isinstance(batch, (tuple, list)):
        held = "None" if batch is None else f"an empty {type(batch).__name__}"
        raise InvalidArgumentError(
            f"a batch of data is {held}; it must hold inputs: a tensor, a tuple or list that begins with the inputs, a mapping, or an "
            "object that the model takes"
        )
    return batch


def answer(model: nn.Module, inputs: Any, *, batch: int | None = None) -> Any:
    """What the user's model makes of inputs that :func:`inputs_of` gave.

    Raises:
        InvalidArgumentError: The model fails on them, or takes no arguments of the names in a mapping; the batch is named.
    """
    try:
        with calling(f"the model ({type(model).__name__})", batch=batch, given=inputs):
            return forward(model, inputs)
    except InvalidArgumentError as error:
        if isinstance(error.__cause__, TypeError):
            _check_names(model, inputs, batch)
        raise


def _check_names(model: nn.Module, inputs: Any, batch: int | None) -> None:
    """A mapping's keys are the keyword arguments of a call: say so where ``forward`` takes other ones."""
    if not isinstance(inputs, Mapping):
        return
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**inputs)
    except TypeError as error:
        place = "a batch" if batch is None else f"batch {batch}"
        raise InvalidArgumentError(
            f"the inputs in {place} of the data are a mapping with the keys {', '.join(map(repr, inputs))}, which are passed as keyword "
            f"arguments, and forward of the model ({type(model).__name__}) takes {', '.join(map(repr, signature.parameters)) or 'none'} "
            f"({error}): give the keys these names, or give tuples (inputs, labels)"
        ) from error


def check_batched(inputs: Any, shapes: Mapping[int | str, tuple[int, ...]], *, batch: int) -> None:
    """Refuse single examples, and batches of a dimension less, where batches are read: some models take them without a word, and mean
    something else.

    Args:
        inputs: The model's inputs, as :func:`inputs_of` gives them.
        shapes: Shapes of the example inputs, a batch, by their place or name in the call.
        batch: Number of the batch.

    Raises:
        InvalidArgumentError: Every tensor has one dimension less than in the example inputs.
    """
    given = by_argument(inputs if isinstance(inputs, (Tensor, Mapping, tuple, list)) else ())
    pairs = [(tuple(value.shape), tuple(shapes[key])) for key, value in given.items() if isinstance(value, Tensor) and key in shapes]
    if pairs and all(len(here) == len(traced) - 1 for here, traced in pairs):
        example = ", ".join(str(list(shape)) for shape in shapes.values())
        if all(here == traced[1:] for here, traced in pairs):
            told = "these are single examples; give DataLoader(data, batch_size=64)"
        else:  # a batch of another kind, or single examples of another size: the shapes do not say which
            told = (
                "they lack a dimension; give batches with as many dimensions as the example inputs, or, if these are single examples, "
                "DataLoader(data, batch_size=64)"
            )
        raise InvalidArgumentError(
            f"the inputs in batch {batch} of the data are {described(inputs)}, and the example inputs are {example}: {told}"
        )


def check_targets(logits: Tensor, targets: Any, *, batch: int | None = None, turn: bool = True) -> tuple[Tensor, Tensor]:
    """Logits and targets as cross-entropy takes them: ``(batch, classes, ...)``, and ``(batch, ...)`` int64 or the logits' own shape.

    Labels of shape ``(batch, 1)`` are squeezed, other integer types widened, lists of numbers made tensors; scores per position with the
    classes last (language models) are turned.

    Args:
        logits: The model's class scores.
        targets: Class indices (negative ones are left out), or class probabilities.
        batch: Number of the batch, for the message.
        turn: Whether scores with the classes last are taken. A model that takes its labels itself may shift them (a language model does),
            so its scores per position are not to be compared with them here.

    Raises:
        InvalidArgumentError: Type, shape or range of the labels do not fit the scores.
    """
    place = "" if batch is None else f" in batch {batch} of the data"
    own = "; for another task give a loss (and an evaluate) of your own"
    if isinstance(targets, (list, tuple)) and targets and all(isinstance(item, (int, bool)) for item in targets):
        targets = torch.tensor(targets, device=logits.device)
    if not isinstance(targets, Tensor):
        raise InvalidArgumentError(f"labels{place} are a {type(targets).__name__}; they must be a tensor of class indices{own}")
    if logits.ndim < 2 or logits.shape[1] < 2 and targets.shape != logits.shape:
        raise InvalidArgumentError(
            f"the model's output{place} is {described(logits)}, which is no score for each of several classes (batch, classes, ...){own}"
        )
    if targets.is_floating_point() or targets.is_complex():
        if targets.shape == logits.shape:
            return logits, targets
        raise InvalidArgumentError(
            f"labels{place} are {described(targets)}; class indices must be integers (call .long() on them), and class probabilities must "
            f"have the shape {list(logits.shape)} of the model's output{own}"
        )
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(targets.shape) != wanted and tuple(targets.shape) == (*wanted[:1], 1, *wanted[1:]):
        targets = targets.squeeze(1)
    elif tuple(targets.shape) != wanted and tuple(targets.shape) == (*wanted, 1):
        targets = targets.squeeze(-1)
    elif tuple(targets.shape) != wanted and logits.ndim > 2 and targets.shape == logits.shape[:-1]:
        if not turn:
            raise InvalidArgumentError(
                f"the model's output{place} is {described(logits)}, scores for each position, and the model takes labels itself, so "
                f"whether it shifts them against its scores is not known here{own}"
            )
        logits = logits.movedim(-1, 1)
    elif tuple(targets.shape) != wanted:
        raise InvalidArgumentError(
            f"labels{place} are {described(targets)}, and the model's output is {described(logits)}: class indices must have the shape "
            f"{list(wanted)}, one for each example{own}"
        )
    targets = targets.long()
    if targets.device.type == "cpu" and targets.numel() and int(targets.max()) >= logits.shape[1]:
        raise InvalidArgumentError(
            f"labels{place} hold the class {int(targets.max())}, but the model has {logits.shape[1]} classes (0 to {logits.shape[1] - 1})"
        )
    return logits, targets


def plain_loss(model: nn.Module, batch: Any, *, number: int | None = None) -> Tensor:
    """The loss that stands where none is given: the model's own where it returns one for its labels, else mean cross-entropy.

    Args:
        model: A classifier, or a model whose output object has a ``loss`` (Hugging Face's) or ``logits``.
        batch: ``(inputs, targets)``, or a mapping of keyword inputs with ``labels`` (or ``label``, ``targets``, ``target``); NumPy
            arrays are taken as tensors.
        number: Number of the batch in the data, for messages.

    Raises:
        InvalidArgumentError: The model fails on the inputs, or labels do not fit its scores.

    Example:
        >>> plain_loss(nn.Identity(), (torch.eye(3) * 50, torch.tensor([[0], [1], [2]])))
        tensor(0.)
    """
    batch = as_tensors(batch)
    inputs, targets = split_batch(batch, model)
    own = isinstance(batch, Mapping) and takes_labels(model)
    output = answer(model, {**inputs, "labels": targets} if own else inputs, batch=number)
    if own and (loss := own_loss(output)) is not None:
        return loss
    logits, targets = check_targets(logits_of(output), targets, batch=number, turn=not takes_labels(model))
    return cross_entropy(logits, targets)


def own_loss(output: Any) -> Tensor | None:
    """The scalar loss in a model's output object or mapping, where it has one."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return loss.reshape(()) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def takes_labels(model: nn.Module) -> bool:
    """Whether the model's forward has an argument ``labels``."""
    try:
        return "labels" in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return False


def check_loss_value(value: Any, what: str, *, batch: int | None = None) -> Tensor:
    """A loss as a scalar tensor that can be followed back.

    Args:
        value: What the user's loss function returned.
        what: The function's name, for the message.
        batch: Number of the batch.

    Raises:
        InvalidArgumentError: It is no scalar tensor, has no gradient, or is not finite.
    """
    place = "" if batch is None else f" for batch {batch} of the data"
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = described(value) if isinstance(value, Tensor) else repr(value) if isinstance(value, (int, float)) else type(value).__name__
        raise InvalidArgumentError(f"{what} gave {shape}{place}; it must return a scalar tensor (return the mean, without .item())")
    if not value.requires_grad:
        raise InvalidArgumentError(f"{what} gave a value without a gradient{place}; it must not run under no_grad, nor detach its value")
    return value.reshape(())


def check_accuracy(value: Any, what: str = "evaluate(model)") -> float:
    """An accuracy as a fraction between 0 and 1.

    Raises:
        InvalidArgumentError: It is no number, NaN, or outside.
    """
    if value is None:
        raise InvalidArgumentError(f"{what} gave None; it must return an accuracy between 0 and 1 (is its return missing?)")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"{what} gave {value!r:.80} (a {type(value).__name__}); it must return an accuracy between 0 and 1"
        ) from error
    if not 0.0 <= number <= 1.0:
        hint = f"; return {number / 100.0:.4g} for {number:.4g} %" if 1.0 < number <= 100.0 else ""
        raise InvalidArgumentError(f"{what} gave {number}; it must return an accuracy between 0 and 1{hint}")
    return number


def accuracy_of(evaluate: Callable[[nn.Module], Any], model: nn.Module) -> float:
    """What the user's function ``evaluate`` says of a model, a fraction between 0 and 1.

    Raises:
        InvalidArgumentError: It failed, or gave something else; the function is named.
    """
    what = f"evaluate(model), which is {function_name(evaluate)},"
    with calling(what):
        found = evaluate(model)
    return check_accuracy(found, what)
