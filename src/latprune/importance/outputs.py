"""How far a model's output is from another one's, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError

__all__ = ["JUDGES", "MEASURES", "Measure", "class_scores", "output_error", "output_js", "output_kl"]

Measure = Callable[[Any, Any], tuple[float, int]]
"""Takes the reference's and the other's output of one batch; returns the mean distance, at least 0, and the number of examples."""


def output_kl(reference: Any, other: Any) -> tuple[float, int]:
    """Mean Kullback-Leibler divergence of the class probabilities of ``other`` from those of ``reference``.

    The outputs are class scores: a tensor, ``.logits``, ``["logits"]`` or the first of a tuple. The classes are the last dimension of
    ``(batch, classes)`` and ``(batch, tokens, classes)``, the second of ``(batch, classes, rows, columns)``.
    """
    first, second = _both_logits(reference, other)
    dim = 1 if first.ndim == 4 else -1
    dense, now = first.float().log_softmax(dim), second.float().log_softmax(dim)
    return float((dense.exp() * (dense - now)).sum(dim).mean()), int(first.shape[0])


def output_js(reference: Any, other: Any) -> tuple[float, int]:
    """Mean Jensen-Shannon divergence of the class probabilities, in nats, at most ``log 2``; outputs as for :func:`output_kl`.

    Bounded, so that a few examples on which a network is sure and wrong do not decide for all.
    """
    first, second = _both_logits(reference, other)
    dim = 1 if first.ndim == 4 else -1
    dense, now = first.float().log_softmax(dim), second.float().log_softmax(dim)
    middle = torch.logaddexp(dense, now) - math.log(2.0)
    both = 0.5 * (dense.exp() * (dense - middle) + now.exp() * (now - middle))
    return float(both.sum(dim).mean()), int(first.shape[0])


def _both_logits(reference: Any, other: Any) -> tuple[Tensor, Tensor]:
    first, second = _logits(reference), _logits(other)
    if first.shape != second.shape or not first.numel():
        raise _incomparable([first], [second])
    return first, second


def _incomparable(reference: list[Tensor], other: list[Tensor]) -> InvalidArgumentError:
    shapes = [[tuple(tensor.shape) for tensor in found[:4]] for found in (reference, other)]
    return InvalidArgumentError(
        f"the model's outputs (shapes {shapes[0]}) and those of the changed one ({shapes[1]}) cannot be compared: they must be of equal "
        "shapes and not empty; return the maps before a threshold, or take another criterion"
    )


def class_scores(output: Any) -> Tensor | None:
    """The class scores among a model's outputs; None where it has none."""
    try:
        return _logits(output)
    except InvalidArgumentError:
        return None


def _logits(output: Any) -> Tensor:
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor) or found.ndim < 2:
        raise InvalidArgumentError(
            f"measure (='kl') needs class scores (batch, classes, ...), and the model's output is a {type(output).__name__} without them; "
            "choose measure='error'"
        )
    return found


def output_error(reference: Any, other: Any) -> tuple[float, int]:
    """Mean over the floating-point outputs of the squared error relative to the reference's variance.

    Outputs that are empty, or of another shape in the two, are left out.

    Raises:
        InvalidArgumentError: None is left.
    """
    mine, theirs = _tensors(other), _tensors(reference)
    if not theirs:
        raise InvalidArgumentError(f"measure (='error') needs floating-point outputs; the model's output is a {type(reference).__name__}")
    pairs = [(dense, now) for dense, now in zip(theirs, mine, strict=False) if dense.shape == now.shape and dense.numel()]
    if len(mine) != len(theirs) or not pairs:
        raise _incomparable(theirs, mine)
    errors = [
        float((now.float() - dense.float()).square().mean() / dense.float().var(correction=0).clamp(min=1e-12)) for dense, now in pairs
    ]
    return sum(errors) / len(errors), int(pairs[0][0].shape[0]) if pairs[0][0].ndim else 1


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in _tensors(value)]
    return []


def _where_scores(measure: Measure) -> Measure:
    """``measure`` where the outputs are class scores, :func:`output_error` for any others."""

    def distance(reference: Any, other: Any) -> tuple[float, int]:
        return output_error(reference, other) if class_scores(reference) is None else measure(reference, other)

    return distance


MEASURES: dict[str, Measure] = {"auto": _where_scores(output_kl), "kl": output_kl, "error": output_error}
"""Measures of a part that is cut, by name."""
JUDGES: dict[str, Measure] = {"auto": _where_scores(output_js), "kl": output_js, "error": output_error}
"""The measure of whole networks that goes with each."""
