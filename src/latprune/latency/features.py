"""What a regression model sees of a kernel: sizes, work, traffic, alignment and company, from its signature and its axis sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import TableError
from latprune.latency.cache_effect import Traffic
from latprune.latency.samples import KernelSample

__all__ = ["FEATURES", "LAYERS", "family_of", "kernel_features", "kernel_traffic", "kernel_weights", "network_weights", "step_of"]

FEATURES = (
    "log_work",
    "log_in",
    "log_out",
    "log_in_per_group",
    "log_in_places",
    "log_out_places",
    "log_window",
    "stride",
    "log_weights",
    "log_inputs",
    "log_outputs",
    "log_work_per_value",
    "in_padding",
    "out_padding",
    "in_divisible_by",
    "out_divisible_by",
    "log_row",
    "row_padding",
    "log_groups",
    "steps",
    "reorders",
    "log_network_weights",
)
_BLOCK = 16
_ROW_BLOCK = 6
LAYERS = frozenset({"conv", "depthwise", "linear"})
"""Kinds of kernels that have weights and that no engine fuses away."""

_FREE = frozenset({"reshape", "flatten", "squeeze", "unsqueeze"})
"""Attached steps that move nothing."""


@lru_cache(maxsize=20_000)
def _read(signature: str) -> dict[str, Any]:
    """The parts of a signature that features need. Raises TableError where it cannot be read."""
    try:
        body = json.loads(signature)
        attributes: dict[str, Any] = body["attributes"]
        shapes = body["shapes"]
        kind = str(body["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"signature {signature!r} cannot be read: {error!r}") from error
    groups = attributes.get("groups", 1)
    attached = [step.lower() for step in map(str, body.get("attached", ())) if step.lower() not in _FREE]
    reorders = sum("reorder" in step for step in attached)
    return {
        "kind": kind,
        "op": attributes.get("op"),
        "window": math.prod(_numbers(attributes.get("kernel_size"), 1)),
        "stride": float(max(_numbers(attributes.get("stride"), 1))),
        "places_in": max(1, math.prod(_numbers(shapes.get("input_shape"), 1))),
        "places_out": max(1, math.prod(_numbers(shapes.get("output_shape"), 1))),
        "row": max(1, _numbers(shapes.get("output_shape"), 1)[-1]),
        "groups": groups if isinstance(groups, int) and groups > 0 else 1,
        "steps": len(attached) - reorders,
        "reorders": reorders,
    }


def family_of(signature: str) -> str:
    """The kernel's family, one regression model each: its kind, and for convolutions whether the window is a single place or grouped."""
    body = _read(signature)
    if body["kind"] != "conv":
        return str(body["kind"])
    if body["groups"] > 1:
        return "conv_grouped"
    return "conv1x1" if body["window"] == 1 else "conv"


def step_of(signature: str) -> str:
    """The kernel's kind, and its operation where the kind has several: engines fuse a batch norm where they run a layer norm."""
    body = _read(signature)
    return f"{body['kind']} {body['op']}" if body["op"] else str(body["kind"])


def kernel_features(signature: str, sizes: Sequence[int], weights_around: float = 1.0) -> npt.NDArray[np.float64]:
    """``(len(FEATURES),)`` features of a kernel at ``sizes`` (one per axis). Raises TableError where the signature cannot be read.

    Args:
        signature: The kernel's signature; the steps that it says are attached count.
        sizes: Its axis sizes.
        weights_around: Weights of the whole network (``network_weights``). They pass through the caches between two runs of the kernel, so
            the kernel of a large network finds its own weights farther away.
    """
    body = _read(signature)
    window, places_in, places_out, row = body["window"], body["places_in"], body["places_out"], body["row"]
    last = max(1, sizes[-1]) if sizes else 1
    weights, inner = _weights(body, sizes)
    # The first axis of a grouped convolution is what one output reads.
    first = max(1, sizes[0]) * (body["groups"] if len(sizes) > 1 else 1) if sizes else 1
    work = float(weights * places_out)
    inputs, outputs = float(first * places_in), float(last * places_out)
    return np.array(
        [
            math.log(work),
            math.log(first),
            math.log(last),
            math.log(inner),
            math.log(places_in),
            math.log(places_out),
            math.log(max(1, window)),
            body["stride"],
            math.log(weights),
            math.log(inputs),
            math.log(outputs),
            math.log(work / (weights + inputs + outputs)),
            _padding(first, _BLOCK),
            _padding(last, _BLOCK),
            _divisible(first),
            _divisible(last),
            math.log(row),
            _padding(row, _ROW_BLOCK),
            math.log(body["groups"]),
            float(body["steps"]),
            float(body["reorders"]),
            math.log(max(1.0, weights_around, weights)),
        ]
    )


def _weights(body: dict[str, Any], sizes: Sequence[int]) -> tuple[float, float]:
    """(weights, input channels that one output reads); a kernel without weights counts what it multiplies per place."""
    last = max(1, sizes[-1]) if sizes else 1
    inner = 1.0 if body["kind"] == "depthwise" or len(sizes) < 2 else float(max(1, sizes[0]))
    # A third axis (attention) multiplies the work of the other two.
    middle = math.prod(max(1, size) for size in sizes[1:-1])
    return inner * last * middle * max(1, body["window"]), inner


def kernel_weights(signature: str, sizes: Sequence[int]) -> float:
    """Elements of the kernel's own weights; 0 for a kernel that has none."""
    body = _read(signature)
    return _weights(body, sizes)[0] if body["kind"] in LAYERS else 0.0


def kernel_traffic(signature: str, axes: int) -> Traffic:
    """What a kernel of ``axes`` axes moves per unit of its sizes. Raises TableError where the signature cannot be read."""
    body = _read(signature)
    return Traffic(
        inputs=float(body["places_in"] * (body["groups"] if axes > 1 else 1)),
        outputs=float(body["places_out"]),
        weights=float(max(1, body["window"])) if body["kind"] in LAYERS else 0.0,
    )


def network_weights(kernels: Iterable[KernelSample]) -> float:
    """Elements of the weights of all kernels of a network."""
    return sum(kernel_weights(kernel.signature, kernel.sizes) for kernel in kernels)


def _numbers(value: Any, default: int) -> list[int]:
    if isinstance(value, int):
        return [value]
    found = [int(item) for item in value if isinstance(item, int)] if isinstance(value, list | tuple) else []
    return found or [default]


def _padding(size: int, block: int) -> float:
    """Share of the engine's block that would be computed for nothing."""
    return math.ceil(size / block) * block / size - 1.0


def _divisible(size: int) -> float:
    """Largest power of two up to 16 that divides the size, as its exponent."""
    return float(sum(size % power == 0 for power in (2, 4, 8, 16)))
