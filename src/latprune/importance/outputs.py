"""How far a model's output is from another one's, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError

__all__ = ["JUDGES", "MEASURES", "Measure", "output_error", "output_js", "output_kl"]

Measure = Callable[[Any, Any], tuple[float, int]]
"""Takes the reference's and the other's output of one batch; returns the mean distance, at least 0, and the number of examples."""


def output_kl(reference: Any, other: Any) -> tuple[float, int]:
    """Mean Kullback-Leibler divergence of the class probabilities of ``other`` from those of ``reference``.

    The outputs are class scores: a tensor, ``.logits``, ``["logits"]`` or the first of a tuple. The classes are the last dimension of
    ``(batch, classes)`` and ``(batch, tokens, classes)``, the second of ``(batch, classes, rows, columns)``.
    """
    first, second = _logits(reference), _logits(other)
    dim = 1 if first.ndim == 4 else -1
    dense, now = first.float().log_softmax(dim), second.float().log_softmax(dim)
    return float((dense.exp() * (dense - now)).sum(dim).mean()), int(first.shape[0])


def output_js(reference: Any, other: Any) -> tuple[float, int]:
    """Mean Jensen-Shannon divergence of the class probabilities, in nats, at most ``log 2``; outputs as for :func:`output_kl`.

    Bounded, so that a few examples on which a network is sure and wrong do not decide for all.
    """
    first, second = _logits(reference), _logits(other)
    dim = 1 if first.ndim == 4 else -1
    dense, now = first.float().log_softmax(dim), second.float().log_softmax(dim)
    middle = torch.logaddexp(dense, now) - math.log(2.0)
    both = 0.5 * (dense.exp() * (dense - middle) + now.exp() * (now - middle))
    return float(both.sum(dim).mean()), int(first.shape[0])


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
    """Mean over all floating-point outputs of the squared error relative to the reference's variance."""
    pairs = list(zip(_tensors(reference), _tensors(other), strict=True))
    if not pairs:
        raise InvalidArgumentError(f"measure (='error') needs floating-point outputs; the model's output is a {type(reference).__name__}")
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
        try:
            _logits(reference)
        except InvalidArgumentError:
            return output_error(reference, other)
        return measure(reference, other)

    return distance


MEASURES: dict[str, Measure] = {"auto": _where_scores(output_kl), "kl": output_kl, "error": output_error}
"""Measures of a part that is cut, by name."""
JUDGES: dict[str, Measure] = {"auto": _where_scores(output_js), "kl": output_js, "error": output_error}
"""The measure of whole networks that goes with each."""
