"""Memory layout of a network in training, and the convolutions that PyTorch cannot train channels last."""

from __future__ import annotations

import torch
from torch import nn

from latprune.graph.captured import CapturedNetwork

__all__ = ["LEAST_CHANNELS", "lay_out", "strided_projection"]

LEAST_CHANNELS = 8
"""Input channels from which on a strided 1x1 convolution trains channels last on a CPU: with fewer, the backward pass of oneDNN's
``jit_1x1:avx2`` (PyTorch 2.13) writes whole vectors of 8 floats past the end of its copy of the images, and the process dies."""


def lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Bring the four-dimensional parameters to a memory format, in place: the optimizer and the caller keep the same objects."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def strided_projection(model: nn.Module) -> str | None:
    """The first 1x1 convolution without groups that has a stride and fewer than :data:`LEAST_CHANNELS` input channels, by its path.

    What matters is the layout of the images that reach it, whatever its own weight has, so such a network is to be contiguous as a whole.
    In a captured program the stride is not looked up: any 1x1 weight with so few channels counts.

    Returns:
        The convolution's (or the weight's) path; None where there is none.
    """
    path: str
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.groups == 1 and module.kernel_size == (1, 1) and max(module.stride) > 1 and module.weight.shape[1] < LEAST_CHANNELS:
                return path
        elif isinstance(module, CapturedNetwork):
            for name, parameter in module.named_parameters():
                if parameter.dim() == 4 and parameter.shape[2:] == (1, 1) and parameter.shape[1] < LEAST_CHANNELS:
                    return f"{path}.{name}".lstrip(".")
    return None
