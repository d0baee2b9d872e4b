"""What a regression model sees of a kernel: sizes, work and alignment, from its signature and its axis sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import TableError

__all__ = ["FEATURES", "family_of", "kernel_features"]

FEATURES = (
    "log_work",
    "log_in",
    "log_out",
    "log_in_places",
    "log_out_places",
    "log_window",
    "stride",
    "log_weights",
    "log_activations",
    "log_work_per_byte",
    "in_padding",
    "out_padding",
    "in_divisible_by",
    "out_divisible_by",
    "groups",
)
_BLOCK = 16


def family_of(signature: str) -> str:
    """The kernel's family, one regression model each: its kind, and for convolutions whether the window is a single place."""
    body = json.loads(signature)
    kind = str(body["kind"])
    if kind == "conv":
        return "conv1x1" if math.prod(_numbers(body["attributes"].get("kernel_size"), 1)) == 1 else "conv"
    return kind


def kernel_features(signature: str, sizes: Sequence[int]) -> npt.NDArray[np.float64]:
    """``(len(FEATURES),)`` features of a kernel at ``sizes`` (one per axis). Raises TableError where the signature cannot be read."""
    try:
        body = json.loads(signature)
        attributes: dict[str, Any] = body["attributes"]
        shapes = body["shapes"]
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"signature {signature!r} cannot be read: {error!r}") from error
    first = max(1, sizes[0]) if sizes else 1
    last = max(1, sizes[-1]) if sizes else 1
    window = math.prod(_numbers(attributes.get("kernel_size"), 1))
    stride = max(_numbers(attributes.get("stride"), 1))
    places_in = math.prod(_numbers(shapes.get("input_shape"), 1))
    places_out = math.prod(_numbers(shapes.get("output_shape"), 1))
    groups = attributes.get("groups", 1)
    depthwise = body["kind"] == "depthwise" or len(sizes) < 2
    inner = 1 if depthwise else first
    # A third axis (attention) multiplies the work of the other two.
    middle = math.prod(max(1, size) for size in sizes[1:-1])
    work = float(inner * last * middle * window * places_out)
    weights = float(inner * last * middle * window)
    activations = float(first * places_in + last * places_out)
    return np.array(
        [
            math.log(work),
            math.log(first),
            math.log(last),
            math.log(max(1, places_in)),
            math.log(max(1, places_out)),
            math.log(max(1, window)),
            float(stride),
            math.log(weights),
            math.log(activations),
            math.log(work / (weights + activations)),
            _padding(first),
            _padding(last),
            _divisible(first),
            _divisible(last),
            math.log(groups if isinstance(groups, int) and groups > 0 else 1),
        ]
    )


def _numbers(value: Any, default: int) -> list[int]:
    if isinstance(value, int):
        return [value]
    found = [int(item) for item in value if isinstance(item, int)] if isinstance(value, list | tuple) else []
    return found or [default]


def _padding(size: int) -> float:
    """Share of the engine's channel block that would be computed for nothing."""
    return math.ceil(size / _BLOCK) * _BLOCK / size - 1.0


def _divisible(size: int) -> float:
    """Largest power of two up to 16 that divides the size, as its exponent."""
    return float(sum(size % power == 0 for power in (2, 4, 8, 16)))
