"""The front door: an ONNX file as a captured program, compared with ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from latprune.errors import CaptureError
from latprune.onnx_reader.constants import fold
from latprune.onnx_reader.equality import SMALLEST_SCALE, compare_with_runtime
from latprune.onnx_reader.graph import Graph
from latprune.onnx_reader.inputs import OnnxInput, describe_inputs, example_tensors, input_shapes
from latprune.onnx_reader.model_file import read_graph, read_model
from latprune.onnx_reader.naming import places
from latprune.onnx_reader.network import OnnxModule, require_known
from latprune.onnx_reader.simplify import drop_dead, follow_names, held_tensors, linear_layers, separate_copies
from latprune.program import ProgramModule, capture
from latprune.program.steps import FileNames

__all__ = ["load_onnx", "onnx_inputs"]


def load_onnx(path: str | Path, *, shapes: Mapping[str, Sequence[int]] | None = None, tolerance: float = 1e-4) -> ProgramModule:
    """Read an ONNX file as a captured program, which can be pruned, trained, saved and exported like any other.

    The program's outputs are compared with ONNX Runtime's on random inputs before it is handed back, at the batch size of ``shapes`` and,
    where the program follows the batch size, at one more.

    Args:
        path: The file; external data is read from beside it. Operator sets from 11 on.
        shapes: Input name -> sizes, for inputs whose sizes the file leaves open. A first size that is open is 1 by default.
        tolerance: Largest difference allowed, relative to the largest output.

    Returns:
        The program, in evaluation mode; it takes its inputs by position. ONNX files that are written of it have this file's names of
        inputs and outputs. It runs at any batch size where everything in it follows the batch size; ``program.program.batch_reason`` says
        what does not.

    Raises:
        MissingExtraError: ``onnx`` or ``onnxruntime`` is not installed.
        FileFormatError: The file cannot be read as ONNX.
        CaptureError: It holds operators that are not read (all of them are named), depends on the values of its inputs, or what was read
            does not compute what ONNX Runtime does, which is a mistake of the reader.
        InvalidArgumentError: ``shapes`` lacks sizes that the file leaves open, or names no input.

    Example:
        >>> net = latprune.load_onnx("model.onnx")  # doctest: +SKIP
        >>> latprune.trace(net, torch.randn(1, 3, 224, 224)).describe()  # doctest: +SKIP
    """
    model = read_model(path)
    graph = read_graph(model)
    sizes = input_shapes(graph, shapes or {})
    network = module_of(graph, fixed_batch=_fixed_batch(graph))
    inputs = example_tensors(graph, sizes, seed=0)
    with torch.no_grad():
        network(*inputs)
        if network.fixed_batch is not None and not _follows_batch(network, inputs):
            network.stay()
    program = capture(network, tuple(inputs))
    program = _named(program, graph)
    compare_with_runtime(program, graph, sizes, tolerance=tolerance, path=Path(path))
    return program.eval()


def onnx_inputs(path: str | Path, *, shapes: Mapping[str, Sequence[int]] | None = None) -> tuple[OnnxInput, ...]:
    """The inputs of an ONNX file, with the sizes that :func:`load_onnx` runs it with.

    Raises:
        MissingExtraError, FileFormatError, CaptureError, InvalidArgumentError: As :func:`load_onnx`.
    """
    return describe_inputs(read_graph(read_model(path)), shapes or {})


def module_of(graph: Graph, *, fixed_batch: int | None) -> OnnxModule:
    """The graph as a module, after it was simplified.

    Raises:
        CaptureError: It has operators that are not known.
    """
    follow_names(graph)
    drop_dead(graph)
    require_known(graph)
    fold(graph, set(held_tensors(graph)))
    follow_names(graph)
    drop_dead(graph)
    separate_copies(graph, held_tensors(graph))
    linear_layers(graph)
    drop_dead(graph)
    held = {name: kind for name, kind in held_tensors(graph).items() if name in graph.tensors}
    names, paths = places(graph, held)
    return OnnxModule(graph, names, held, paths, fixed_batch).eval()


def _fixed_batch(graph: Graph) -> int | None:
    """The batch size that the file states for its inputs; None where it leaves it open."""
    first = next((entry.shape[0] for entry in graph.inputs if entry.shape), None)
    return first if isinstance(first, int) and first > 0 else None


def _follows_batch(network: OnnxModule, inputs: list[Tensor]) -> bool:
    """Whether a network whose file states one batch size computes entry by entry at twice that."""
    first = inputs[0].shape[0]
    other = [t.flip(t.dim() - 1) if t.dim() and t.shape[0] == first else t for t in inputs]
    both = [torch.cat([a, b]) if a.dim() and a.shape[0] == first else a for a, b in zip(inputs, other, strict=True)]
    try:
        expected = [_tuple(network(*tensors)) for tensors in (inputs, other)]
        found = _tuple(network(*both))
    except CaptureError:
        return False
    for a, b, joint in zip(*expected, found, strict=True):
        whole = torch.cat([a, b]) if a.dim() else a
        if whole.shape != joint.shape:
            return False
        scale = max(SMALLEST_SCALE, float(whole.double().abs().max())) if whole.numel() else 1.0
        if whole.numel() and not float((whole.double() - joint.double()).abs().max()) <= 1e-4 * scale:
            return False
    return True


def _tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _named(program: ProgramModule, graph: Graph) -> ProgramModule:
    """The program with the file's names of inputs and outputs; by position, inputs have names that Python and every engine can say."""
    given = [entry.name for entry in graph.inputs]
    plain = [re.sub(r"\W", "_", name) for name in given]
    plain = [name if name.isidentifier() and plain.count(name) == 1 else f"input_{k}" for k, name in enumerate(plain)]
    inputs = tuple(replace(entry, name=name) for entry, name in zip(program.program.inputs, plain, strict=True))
    names = FileNames(inputs=tuple(given), outputs=tuple(graph.outputs))
    program.program = replace(program.program, inputs=inputs, file_names=names)
    return program
