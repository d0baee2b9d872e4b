"""Example inputs and outputs of a model, flattened to named tensors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree

from latprune.errors import InvalidArgumentError

__all__ = ["FlatCall", "Inputs", "call", "inputs_as_numpy", "is_plain", "named_inputs", "output_tensors", "top_inputs"]

Inputs = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""A tensor, positional inputs, or keyword inputs; what they hold may be tensors, containers of tensors, and constants (None, a number)."""


def named_inputs(model: nn.Module, example_inputs: Inputs) -> dict[str, torch.Tensor]:
    """The tensors among example inputs by name, in the order of ``forward``'s parameters.

    Keywords keep their names, positional inputs take the parameters'; a tensor inside a mapping or a list has the name of the input with
    its key or place behind (``batch_image``, ``extras_0``). What is no tensor (None, a number, a mode) has no name: it is a constant of
    what is exported.

    Raises:
        InvalidArgumentError: There is no tensor among the inputs, or two would have one name.
    """
    named: dict[str, torch.Tensor] = {}
    for name, value in top_inputs(model, example_inputs).items():
        for place, leaf in pytree.tree_flatten_with_path(value)[0]:
            if isinstance(leaf, torch.Tensor):
                full = "_".join([name, *(_step(key) for key in place)])
                if full in named:
                    raise InvalidArgumentError(f"two tensors of the example inputs would be called '{full}'; rename a key of the inputs")
                named[full] = leaf
    if not named:
        raise InvalidArgumentError(
            "example inputs hold no tensor in tuples, lists or mappings (exporters see none in a dataclass): nothing to export for"
        )
    return named


def _step(key: object) -> str:
    """A place inside an input as a part of a name."""
    found = next((getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)), key)
    return re.sub(r"\W", "_", str(found))


def top_inputs(model: nn.Module, example_inputs: Inputs) -> dict[str, Any]:
    """The inputs as they are given, by the names of ``forward``'s parameters, in their order."""
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
    return named


class FlatCall(nn.Module):
    """A model called with its tensors alone, by position in the order of :func:`named_inputs`; its other inputs are constants.

    Exporters order what they are given by ``forward``'s signature, and make inputs of its defaults and numbers too.
    """

    def __init__(self, model: nn.Module, example_inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        top = top_inputs(model, example_inputs)
        self._keywords = list(top) if isinstance(example_inputs, Mapping) else None
        leaves, self._form = pytree.tree_flatten(list(top.values()))
        self._constants = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Run the model."""
        given = iter(tensors)
        leaves = [next(given) if tensor else leaf for leaf, tensor in zip(self._constants, self._is_tensor, strict=True)]
        values = pytree.tree_unflatten(leaves, self._form)
        if self._keywords is not None:
            return self.model(**dict(zip(self._keywords, values, strict=True)))
        return self.model(*values)


def is_plain(example_inputs: Inputs) -> bool:
    """Whether the inputs are tensors alone, given by position."""
    return isinstance(example_inputs, torch.Tensor) or (
        not isinstance(example_inputs, Mapping) and all(isinstance(value, torch.Tensor) for value in example_inputs)
    )


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
    if not isinstance(output, (torch.Tensor, Mapping, tuple, list)) and hasattr(output, "__dict__"):
        output = vars(output)  # an output object that no container is
    leaves = pytree.tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def inputs_as_numpy(named: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[np.generic]]:
    """Named inputs as numpy arrays, as inference runtimes take them."""
    return {name: value.detach().cpu().contiguous().numpy() for name, value in named.items()}
