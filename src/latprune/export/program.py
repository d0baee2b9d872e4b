"""``torch.export`` programs: the captured graph with its weights, which runs without the model's Python class."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from latprune.errors import EngineError
from latprune.export.open_dimensions import OpenDimensions, doubled, shapes_by_parameter
from latprune.export.signature import Inputs, call
from latprune.graph.conditions import check_runs
from latprune.graph.example_inputs import as_call
from latprune.modes import preserved_modes
from latprune.quiet import in_a_line
from latprune.storage import write_atomic

__all__ = ["export_program"]


def export_program(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    *,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    tolerance: float = 1e-4,
) -> Path:
    """Write ``model`` as a ``torch.export`` program (``.pt2``) that gives the model's outputs on the example inputs.

    Args:
        model: The network; exported in evaluation mode, and left in the mode it came in.
        example_inputs: A tensor, a tuple, or a dict of keyword inputs; the program is fixed to their shapes but for what is left open.
        path: File to write; replaced in one step. Read it back with :func:`torch.export.load`.
        dynamic_batch: Leave the first dimension of the inputs open; the check then also runs twice the batch.
        dynamic_size: Leave height and width of the images among the inputs ``(batch, channels, height, width)`` open; the check then also
            runs twice the height and width, which the model itself must take.
        tolerance: Largest difference allowed, relative to the larger of 1 and the largest output.

    Returns:
        The path written.

    Raises:
        CaptureError: The model does not run on the example inputs, or returns no tensor.
        EngineError: The model cannot be captured, the program's outputs are not the model's, or the model does not run at the sizes that
            are to be open.
        InvalidArgumentError: ``dynamic_size`` is asked for and no input is an image.
    """
    check_runs(model, example_inputs)
    dynamic = OpenDimensions(batch=dynamic_batch, size=dynamic_size)
    with preserved_modes(model):
        model.eval()
        dynamic.require_runs(model, example_inputs)
        # A size of 1 is taken for a fixed one.
        args, kwargs = as_call(doubled(example_inputs, (0,), 1) if dynamic_batch else example_inputs)
        shapes = _open_shapes(model, args, kwargs, dynamic) if dynamic_batch or dynamic_size else None
        try:
            program = torch.export.export(model, args, kwargs=kwargs, dynamic_shapes=shapes)
        except Exception as error:  # torch.export raises whatever the model's code raises under tracing
            reason = (str(error).strip().splitlines() or [""])[0]
            raise EngineError(f"torch.export cannot capture the model: {type(error).__name__}: {reason}") from error
        for case, inputs in [("", example_inputs), *dynamic.cases(example_inputs)]:
            _check(model, program.module(), inputs, case, tolerance)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
    return path


def _open_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: OpenDimensions) -> Any:
    """The open dimensions of each input, in the inputs' own form."""

    def sizes(leaf: Any) -> Any:
        return dynamic.sizes(leaf) if isinstance(leaf, torch.Tensor) else None

    if kwargs:
        return {name: pytree.tree_map(sizes, value) for name, value in kwargs.items()}
    return shapes_by_parameter(model, tuple(pytree.tree_map(sizes, value) for value in args))


def _check(model: nn.Module, program: nn.Module, inputs: Inputs, case: str, tolerance: float) -> None:
    """Refuse a program whose outputs are not the model's."""
    expected = call(model, inputs)
    try:
        found = call(program, inputs)
    except Exception as error:  # a program guards what it fixed with errors of its own
        raise EngineError(f"the program does not run{case}: {in_a_line(error)}") from error
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        difference = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        if not difference <= tolerance * max(1.0, float(a.abs().max()) if a.numel() else 0.0):
            raise EngineError(f"output {index} of the program differs from the model's by {difference:.2e}{case}")
