"""A program that was read from a file, compared with what ONNX Runtime makes of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latprune.errors import CaptureError
from latprune.extras import importing
from latprune.onnx_reader.graph import Graph
from latprune.onnx_reader.inputs import example_tensors
from latprune.program import ProgramModule

__all__ = ["SMALLEST_SCALE", "compare_with_runtime"]

SMALLEST_SCALE = 1e-3
"""Differences are relative to the largest output, or to this where all are smaller: what is left of sums that cancel."""


def compare_with_runtime(
    program: ProgramModule, graph: Graph, shapes: Mapping[str, Sequence[int]], *, tolerance: float, path: Path
) -> float:
    """The largest difference between the program's outputs and ONNX Runtime's, relative to the largest output (:data:`SMALLEST_SCALE`).

    Raises:
        MissingExtraError: ``onnxruntime`` is not installed.
        CaptureError: ONNX Runtime does not run the file, or a difference is larger than ``tolerance``.
    """
    session = _session(path)
    if any(p.dtype == torch.float16 for p in program.parameters()):
        tolerance = max(tolerance, 5e-3)  # half precision has three digits
    open_ = all(isinstance(entry.shape[0], str) for entry in graph.inputs if entry.shape)
    cases = [dict(shapes)]
    if open_ and any(entry.batched for entry in program.program.inputs):
        grown = {e.name for e in program.program.inputs if e.batched}
        cases.append({name: (sizes[0] + 1, *sizes[1:]) if name in grown else tuple(sizes) for name, sizes in shapes.items()})
    largest = 0.0
    for seed, case in enumerate(cases):
        tensors = example_tensors(graph, case, seed=seed + 11)
        arrays = {entry.name: t.numpy() for entry, t in zip(graph.inputs, tensors, strict=True)}
        try:
            expected = session.run(None, arrays)
        except Exception as error:  # ONNX Runtime's own, of several modules
            raise CaptureError(f"ONNX Runtime does not run {path}: {str(error).splitlines()[0]}") from error
        program.eval()
        with torch.no_grad():
            found = program(*tensors)
        results = found if isinstance(found, tuple) else (found,)
        for name, a, b in zip(graph.outputs, expected, results, strict=True):
            largest = max(largest, _difference(name, a, b.numpy(), tolerance, path))
    return largest


def _difference(name: str, expected: Any, found: Any, tolerance: float, path: Path) -> float:
    if expected.shape != found.shape:
        raise _mistake(path, f"output '{name}' has shape {found.shape}, in ONNX Runtime {expected.shape}")
    if not expected.size:
        return 0.0
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not (finite == np.isfinite(b)).all():
        raise _mistake(path, f"output '{name}' is not finite in other places than in ONNX Runtime")
    scale = max(SMALLEST_SCALE, float(np.abs(a[finite]).max(initial=0.0)))
    error = float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale
    if error > tolerance:
        raise _mistake(path, f"output '{name}' differs from ONNX Runtime's by {error:.2e} (allowed {tolerance:.0e})")
    return error


def _mistake(path: Path, what: str) -> CaptureError:
    return CaptureError(f"{path} was not read as ONNX Runtime runs it: {what}. That is a mistake of the reader; please report it")


def _session(path: Path) -> Any:
    with importing("onnxruntime", "onnx"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        # From the file, which finds its external data by itself.
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own, of several modules
        raise CaptureError(f"ONNX Runtime does not load {path}: {str(error).splitlines()[0]}") from error
