"""Top-1 accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.modes import preserved_modes
from latprune.progress import counted
from latprune.train.batches import length_of, logits_of, move, split_batch
from latprune.train.contracts import answer, check_targets, numbered, takes_labels
from latprune.train.precision import mixed_precision

__all__ = ["check_test_batches", "evaluate"]


def evaluate(model: nn.Module, data: Iterable[Any], *, precision: str = "fp32") -> float:
    """Share of examples (or positions) whose highest logit is the target's class.

    Args:
        model: A classifier; evaluated on the device of its parameters, and left in the mode it came in.
        data: Batches ``(inputs, targets)`` or mappings with ``labels`` (or ``label``, ``targets``, ``target``); targets are class indices
            ``(batch, ...)`` or ``(batch, 1)``, of which negative ones are left out, or class probabilities. NumPy arrays are taken as
            tensors.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for automatic mixed precision.

    Returns:
        Accuracy in ``[0, 1]``.

    Raises:
        InvalidArgumentError: The data holds no target, the model fails on a batch or gives NaN, or labels do not fit its scores; the batch
            is named.

    Example:
        >>> evaluate(nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 1]))])
        0.6666666666666666
    """
    correct, total = _counts(model, data, precision)
    if total == 0:
        raise InvalidArgumentError("data holds no example to evaluate")
    return correct / total


def check_test_batches(model: nn.Module, data: Iterable[Any]) -> None:
    """Let the first batch of ``data`` through the model, as :func:`evaluate` would.

    Raises:
        InvalidArgumentError: There is no batch, the model fails on it, or its labels do not fit the model's scores.
    """
    first = [batch for _, batch in islice(numbered(data), 1)]
    if not first:
        raise InvalidArgumentError("data holds no example to evaluate")
    _counts(model, first, "fp32")


def _counts(model: nn.Module, data: Iterable[Any], precision: str) -> tuple[int, int]:
    """Examples whose highest logit is the target's class, and examples that have a target."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    correct, total, turn = 0, 0, not takes_labels(model)
    with preserved_modes(model), torch.no_grad(), mixed_precision(device.type, precision):
        model.eval()
        for index, batch in counted(numbered(data), "evaluating", unit="batches", total=length_of(data)):
            inputs, targets = split_batch(move(batch, device), model)
            output = answer(model, inputs, batch=index)
            logits, targets = check_targets(logits_of(output), targets, batch=index, turn=turn)
            if targets.is_floating_point():
                targets = targets.argmax(dim=1)
            known = targets >= 0
            if lost := int((logits.isnan().any(dim=1) & known).sum()):
                raise InvalidArgumentError(
                    f"the model ({type(model).__name__}) gave NaN for {lost} of {int(known.sum())} labels in batch {index} of the data, "
                    "where no class has the highest score; look for NaN in the inputs and the weights, or use precision='fp32'"
                )
            correct += int(((logits.argmax(dim=1) == targets) & known).sum())
            total += int(known.sum())
    return correct, total
