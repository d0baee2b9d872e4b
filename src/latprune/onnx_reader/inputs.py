"""Example inputs of an ONNX file: their sizes, and random values of the right kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError
from latprune.onnx_reader.graph import Graph
from latprune.onnx_reader.operators import dtype_of

__all__ = ["OnnxInput", "describe_inputs", "example_tensors", "input_shapes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxInput:
    """An input of a file: name, sizes to run it with, type by torch's name, whether its first size is open, and for integers the number of
    rows of the table that they are looked up in (2 where there is none).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    open_batch: bool
    high: int


def describe_inputs(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> tuple[OnnxInput, ...]:
    """The inputs of a graph; ``shapes`` as in :func:`latprune.load_onnx`."""
    sizes = input_shapes(graph, shapes)
    return tuple(
        OnnxInput(
            name=entry.name,
            shape=sizes[entry.name],
            dtype=str(dtype_of(entry.dtype)).removeprefix("torch."),
            open_batch=bool(entry.shape) and isinstance(entry.shape[0], str),
            high=_rows(graph, entry.name),
        )
        for entry in graph.inputs
    )


def input_shapes(graph: Graph, given: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The sizes of each input: those of the file, with ``given`` ones for what it leaves open; an open first size is 1.

    Raises:
        InvalidArgumentError: A size is missing, differs from the file's, or belongs to no input.
    """
    names = [entry.name for entry in graph.inputs]
    for name in given:
        if name not in names:
            raise InvalidArgumentError(f"shapes names '{name}', which is no input of the model; its inputs are {', '.join(names)}")
    found: dict[str, tuple[int, ...]] = {}
    batch = next((int(sizes[0]) for sizes in given.values() if len(sizes)), 1)
    for entry in graph.inputs:
        sizes = tuple(int(n) for n in given[entry.name]) if entry.name in given else None
        stated = ", ".join(str(n) for n in entry.shape)
        if sizes is None:
            missing = [str(n) for n in entry.shape[1:] if isinstance(n, str)]
            if missing:
                raise InvalidArgumentError(
                    f"input '{entry.name}' has shape ({stated}), where {', '.join(missing)} is open: state its sizes, as --input "
                    f"{entry.name}=1x... or shapes={{{entry.name!r}: (1, ...)}}"
                )
            sizes = tuple(n if isinstance(n, int) else batch for n in entry.shape)
        fits = len(sizes) == len(entry.shape)
        if not fits or any(isinstance(b, int) and a != b for a, b in zip(sizes, entry.shape, strict=True)):
            raise InvalidArgumentError(f"input '{entry.name}' was given sizes {sizes}; the file states ({stated})")
        found[entry.name] = sizes
    return found


def example_tensors(graph: Graph, shapes: Mapping[str, Sequence[int]], *, seed: int) -> list[Tensor]:
    """Random inputs: normal floats, integers below the size of the tables that they are looked up in (else 0 and 1)."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for entry in graph.inputs:
        sizes, dtype = list(shapes[entry.name]), dtype_of(entry.dtype)
        if dtype.is_floating_point:
            made.append(torch.randn(sizes, generator=generator).to(dtype))
        else:
            made.append(torch.randint(0, _rows(graph, entry.name), sizes, generator=generator).to(dtype))
    return made


def _rows(graph: Graph, name: str) -> int:
    """Rows of the smallest table that an input indexes; 2 where it indexes none."""
    names, found = {name}, []
    for node in graph.every_node():
        if node.kind in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze") and node.inputs[0] in names:
            names |= set(node.outputs)
        if node.kind == "Gather" and node.inputs[1] in names and node.inputs[0] in graph.tensors:
            found.append(np.shape(graph.tensors[node.inputs[0]])[node.attributes.get("axis", 0)])
    return max(min(found, default=2), 1)
