"""Top-1 accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.graph.conditions import preserved_modes
from latprune.train.batches import forward, logits_of, move, split_batch

__all__ = ["evaluate"]


def evaluate(model: nn.Module, data: Iterable[Any], *, precision: str = "fp32") -> float:
    """Share of examples (or positions) whose highest logit is the target's class.

    Args:
        model: A classifier; evaluated on the device of its parameters, and left in the mode it came in.
        data: Batches ``(inputs, targets)`` or mappings with ``labels``; targets are class indices ``(batch, ...)``, of which negative
            ones are left out.
        precision: ``fp32``, or ``bf16`` for automatic mixed precision.

    Returns:
        Accuracy in ``[0, 1]``.

    Raises:
        InvalidArgumentError: The data holds no target.

    Example:
        >>> evaluate(nn.Identity(), [(torch.eye(3), torch.tensor([0, 1, 1]))])
        0.6666666666666666
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    correct, total = 0, 0
    with preserved_modes(model), torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        model.eval()
        for batch in data:
            inputs, targets = split_batch(move(batch, device))
            known = targets >= 0
            correct += int(((logits_of(forward(model, inputs)).argmax(dim=1) == targets) & known).sum())
            total += int(known.sum())
    if total == 0:
        raise InvalidArgumentError("data holds no example to evaluate")
    return correct / total
