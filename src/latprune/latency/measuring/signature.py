"""What identifies a kernel, and a whole network, to an engine: the keys of the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from latprune.graph.types import Kernel, WidthAxis
from latprune.latency.measuring.protocol import PROTOCOL
from latprune.latency.target import Target

__all__ = ["input_shapes", "kernel_signature", "network_fingerprint"]

_TRAILING_NORMS = ("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
"""Norms whose channels are the last dimension; the others' are the second one."""


def kernel_signature(kernel: Kernel, attached: Sequence[str] = ()) -> str:
    """Everything but the widths that decides a kernel's cost, as canonical JSON.

    Two kernels with one signature are equal to the engine at equal axis sizes: kind, strides and the like, the places that do not
    depend on channels, and the operations that the engine runs along with it (``attached``).
    """
    attributes = dict(kernel.attributes)
    shapes = {key: attributes.pop(key, None) for key in ("input_shape", "output_shape")}
    entry = {
        "kind": kernel.kind,
        "attributes": attributes,
        "shapes": {key: _without_channels(kernel, shape) for key, shape in shapes.items()},
        # A dimension that no width changes is part of what the kernel is: a first layer's three input channels are no small width.
        "fixed": [axis.constant if not axis.pieces else None for axis in kernel.axes],
        "attached": sorted(attached),
    }
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), default=str)


def _without_channels(kernel: Kernel, shape: Any) -> Any:
    """The shape's batch and place dimensions; the channel dimension is an axis of the table."""
    if not isinstance(shape, list | tuple) or len(shape) < 2:
        return None
    dims = [int(size) for size in shape]
    if kernel.kind == "norm":
        second = kernel.attributes.get("op") not in _TRAILING_NORMS
    else:
        second = kernel.kind in ("conv", "depthwise", "pool") or (len(dims) > 3 and kernel.kind != "linear")
    return [dims[0], *dims[2:]] if second else dims[:-1]


def input_shapes(example_inputs: Any) -> list[list[int]]:
    """Shapes of all tensors among the example inputs."""
    from torch.utils import _pytree as pytree

    return [list(leaf.shape) for leaf in pytree.tree_flatten(example_inputs)[0] if isinstance(leaf, torch.Tensor)]


def network_fingerprint(kernels: Sequence[Kernel], example_inputs: Any, target: Target) -> str:
    """Identity of a network's structure: its kernels in order with their axes and blocks, and the input shapes. Weights do not enter.

    The number of the timing protocol does: networks that were timed in another way are other networks.
    """
    body = {
        "kernels": [
            [
                kernel.name,
                kernel.kind,
                [_axis(axis) for axis in kernel.axes],
                list(kernel.blocks),
                round(kernel.macs, 6),
                _plain(kernel.attributes),
            ]
            for kernel in kernels
        ],
        "inputs": input_shapes(example_inputs),
        "batch": target.batch,
        "protocol": PROTOCOL,
    }
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _axis(axis: WidthAxis) -> list[Any]:
    return [axis.constant, [[list(piece.groups), piece.factor, list(piece.blocks)] for piece in axis.pieces]]


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: attributes[key] for key in sorted(attributes)}
