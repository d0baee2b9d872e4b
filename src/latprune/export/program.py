"""``torch.export`` programs: the captured graph with its weights, which runs without the model's Python class."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from latprune.errors import EngineError
from latprune.export.signature import Inputs, call
from latprune.graph.conditions import preserved_modes
from latprune.storage import write_atomic

__all__ = ["export_program"]


def export_program(model: nn.Module, example_inputs: Inputs, path: str | Path, *, tolerance: float = 1e-4) -> Path:
    """Write ``model`` as a ``torch.export`` program (``.pt2``) that gives the model's outputs on the example inputs.

    Args:
        model: The network; exported in evaluation mode, and left in the mode it came in.
        example_inputs: A tensor, a tuple, or a dict of keyword inputs; the program is fixed to their shapes.
        path: File to write; replaced in one step. Read it back with :func:`torch.export.load`.
        tolerance: Largest difference allowed, relative to the larger of 1 and the largest output.

    Returns:
        The path written.

    Raises:
        EngineError: The model cannot be captured, or the program's outputs are not the model's.
    """
    keywords = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
    positional: tuple[torch.Tensor, ...] = ()
    if not isinstance(example_inputs, Mapping):
        positional = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    with preserved_modes(model):
        model.eval()
        expected = call(model, example_inputs)
        try:
            program = torch.export.export(model, positional, kwargs=keywords)
        except Exception as error:  # torch.export raises whatever the model's code raises under tracing
            reason = (str(error).strip().splitlines() or [""])[0]
            raise EngineError(f"torch.export cannot capture the model: {type(error).__name__}: {reason}") from error
        found = call(program.module(), example_inputs)
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        difference = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        if not difference <= tolerance * max(1.0, float(a.abs().max()) if a.numel() else 0.0):
            raise EngineError(f"output {index} of the program differs from the model's by {difference:.2e}")
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
    return path
