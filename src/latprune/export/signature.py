"""Example inputs and outputs of a model, flattened to named tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree

from latprune.errors import InvalidArgumentError

__all__ = ["Inputs", "call", "inputs_as_numpy", "named_inputs", "output_tensors"]

Inputs = torch.Tensor | tuple[torch.Tensor, ...] | list[torch.Tensor] | Mapping[str, torch.Tensor]


def named_inputs(model: nn.Module, example_inputs: Inputs) -> dict[str, torch.Tensor]:
    """Example inputs by name, in the order of ``forward``'s parameters: keywords keep their names, positional ones take the parameters'.

    Raises:
        InvalidArgumentError: An input is not a tensor.
    """
    program_names: tuple[str, ...] | None = getattr(model, "input_names", None) if hasattr(model, "program") else None
    parameters = inspect.signature(model.forward).parameters
    if isinstance(example_inputs, Mapping):
        order = [name for name in parameters if name in example_inputs]
        named = {name: example_inputs[name] for name in dict.fromkeys([*order, *example_inputs])}
    else:
        values = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [name for name, parameter in parameters.items() if parameter.kind in kinds]
        if program_names is not None:
            names = list(program_names)
        names += [f"input_{index}" for index in range(len(names), len(values))]
        named = dict(zip(names, values, strict=False))
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise InvalidArgumentError(f"example input '{name}' is a {type(value).__name__}; it must be a tensor")
    return named


def call(model: nn.Module, example_inputs: Inputs) -> list[torch.Tensor]:
    """Run ``model`` once without gradients; the tensors of its output in order (see :func:`output_tensors`)."""
    with torch.no_grad():
        if isinstance(example_inputs, Mapping):
            return output_tensors(model(**example_inputs))
        if isinstance(example_inputs, torch.Tensor):
            return output_tensors(model(example_inputs))
        return output_tensors(model(*example_inputs))


def output_tensors(output: object) -> list[torch.Tensor]:
    """The tensors in a model's output: a tensor, or tuples, lists, mappings and dataclasses of them, depth first."""
    leaves = pytree.tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def inputs_as_numpy(named: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[np.generic]]:
    """Named inputs as numpy arrays, as inference runtimes take them."""
    return {name: value.detach().cpu().contiguous().numpy() for name, value in named.items()}
