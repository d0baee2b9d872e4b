"""Example inputs: how a model is called with them, and others like them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latprune.graph.containers import rebuilt

__all__ = ["ExampleInputs", "as_call", "by_argument", "call_with", "own_copy", "random_inputs", "redrawn"]

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


def own_copy(inputs: Any) -> Any:
    """Inputs that a run may write into and keep: a copy, cut off from whatever computed them (PyTorch copies no tensor with a history)."""
    cut: dict[int, Tensor] = {}

    def detached(leaf: Any) -> Any:
        return cut.setdefault(id(leaf), leaf.detach()) if isinstance(leaf, Tensor) and leaf.requires_grad else leaf

    return copy.deepcopy(rebuilt(inputs, detached))


def redrawn(values: Tensor, generator: torch.Generator) -> Tensor:
    """Other floating-point values of the same kind: with the mean and spread of the given ones, two at least, and within their range.

    A model may take the logarithm or the root of what is never negative. Where all values are one the range is not known, and the spread
    is 1.
    """
    values = values.detach()
    spread = values.double().std().item()
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    fresh = (noise * (spread or 1.0) + values.double().mean().item()).to(values)
    return fresh.clamp(values.min(), values.max()) if spread else fresh


def random_inputs(inputs: Any, seed: int) -> Any:
    """Inputs of the same shapes with floating-point values drawn anew (:func:`redrawn`); other values are kept."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_complex():
            return torch.view_as_complex(drawn(torch.view_as_real(value.resolve_conj())))
        return redrawn(value, generator) if value.is_floating_point() and value.numel() > 1 else value

    return rebuilt(inputs, drawn)
