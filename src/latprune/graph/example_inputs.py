"""Example inputs: how a model is called with them, and others like them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latprune.graph.containers import rebuilt

__all__ = ["ExampleInputs", "as_call", "by_argument", "call_with", "random_inputs"]

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor, a tuple or list of positional inputs, or a mapping of keyword inputs."""


def as_call(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the call that the inputs stand for."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return ((example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)), {}


def by_argument(example_inputs: ExampleInputs) -> dict[int | str, Any]:
    """The arguments of the call that the inputs stand for, by their place or name."""
    args, kwargs = as_call(example_inputs)
    return dict((*enumerate(args), *kwargs.items()))


def call_with(model: nn.Module, example_inputs: ExampleInputs) -> Any:
    """Call ``model`` with a tensor, a tuple or list of positional inputs, or a mapping of keyword inputs."""
    args, kwargs = as_call(example_inputs)
    return model(*args, **kwargs)


def random_inputs(inputs: Any, seed: int) -> Any:
    """Inputs of the same shapes with floating-point values drawn anew; other values are kept.

    They have the mean and spread of the given ones and stay within their range, for a model may take the logarithm or the root of values
    that are never negative. Of a tensor that holds one value alone the range is not known, and the spread is 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_complex():
            return torch.view_as_complex(drawn(torch.view_as_real(value.resolve_conj())))
        if not value.is_floating_point() or value.numel() < 2:
            return value
        spread = value.float().std().item()
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        fresh = (noise * (spread or 1.0) + value.double().mean().item()).to(value)
        return fresh.clamp(value.min(), value.max()) if spread else fresh

    return rebuilt(inputs, drawn)
