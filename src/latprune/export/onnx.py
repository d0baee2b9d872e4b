"""ONNX export, checked: the written file must give the PyTorch model's outputs in the runtimes that are installed."""

from __future__ import annotations

import importlib.util
import io
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from latprune.argument_rules import check_whole
from latprune.errors import BrokenPackageError, EngineError, InvalidArgumentError, MissingExtraError
from latprune.export.open_dimensions import OpenDimensions, doubled, shapes_by_parameter
from latprune.export.signature import FlatCall, Inputs, call, inputs_as_numpy, is_plain, named_inputs
from latprune.extras import importing
from latprune.graph.computed_types import computed_types
from latprune.graph.conditions import check_runs, preserved_buffers, preserved_state
from latprune.graph.example_inputs import as_call
from latprune.graph.wrappers import scripted_parts
from latprune.latency.engines.inputs import held_type
from latprune.modes import preserved_modes
from latprune.program.steps import FileNames
from latprune.quiet import in_a_line, quiet_exporters
from latprune.storage import write_atomic
from latprune.surgery.verify import TOLERANCES

__all__ = ["OnnxExport", "check_onnx", "export_onnx"]

OPSET = 18
_LEAST_OPSET = 7
"""The first that PyTorch's exporters write; the last is the newest of the ``onnx`` that is installed."""

Arrays = Sequence[npt.NDArray[Any]]
Runtime = Callable[[bytes, Mapping[str, npt.NDArray[Any]]], Arrays]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: The ONNX file.
        opset: Opset of the default domain, as the file states it.
        exporter: ``torchscript`` (fast, follows one run) or ``dynamo`` (``torch.export``).
        reason: Why the fast exporter was not used; empty where it was.
        errors: Runtime -> largest difference from PyTorch's outputs, relative to the larger of 1 and the largest output.
        seconds: Time of export and check.
    """

    path: Path
    opset: int
    exporter: str
    reason: str
    errors: Mapping[str, float]
    seconds: float


def export_onnx(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    *,
    opset: int = OPSET,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    tolerance: float | None = None,
) -> OnnxExport:
    """Write ``model`` as ONNX and check it in the installed runtimes.

    The TorchScript exporter goes first: it takes a fraction of the time of the ``torch.export`` one. Where it fails, or its file does not
    give the model's outputs, the ``torch.export`` one is used and the reason is in the answer.

    Args:
        model: The network; exported in evaluation mode, and left in the mode it came in.
        example_inputs: A tensor, a tuple, or a dict of keyword inputs.
        path: File to write; replaced in one step, and only by a file that passed the check.
        opset: ONNX opset of the file, from 7 to the newest one of the installed ``onnx``.
        dynamic_batch: Leave the first dimension of inputs and outputs open; the check then also runs twice the batch.
        dynamic_size: Leave height and width of the images among the inputs ``(batch, channels, height, width)`` open; the check then also
            runs twice the height and width, which the model itself must take.
        tolerance: Largest difference allowed, relative to the larger of 1 and the largest output; None takes the one of the least exact
            type that the model computes in (float32: 1e-4, float16: 1e-2).

    Raises:
        MissingExtraError: ``onnx`` is not installed.
        CaptureError: The model does not run on the example inputs, or returns no tensor.
        EngineError: No exporter gives a file of that opset whose outputs are the model's; says what each did, and what to do. Or the model
            is held in bfloat16, which runtimes do not take, or does not run at the sizes that are to be open.
        InvalidArgumentError: ``opset`` is none that is written, or ``dynamic_size`` is asked for and no input is an image.

    Example:
        >>> export_onnx(net, torch.randn(1, 3, 224, 224), "net.onnx").errors  # doctest: +SKIP
        {'onnxruntime': 2.4e-06, 'openvino': 3.1e-06}
    """
    require_onnx()
    _require_opset(opset)
    require_onnx_type(model)
    check_runs(model, example_inputs)
    started = time.perf_counter()
    failures: list[str] = []
    dynamic = OpenDimensions(batch=dynamic_batch, size=dynamic_size)
    with preserved_modes(model), preserved_state(model), preserved_buffers(model):
        model.eval()
        named_inputs(model, example_inputs)
        types = computed_types(model, *as_call(example_inputs))
        allowed = _allowed(types) if tolerance is None else tolerance
        dynamic.require_runs(model, example_inputs)
        for exporter, convert in (("torchscript", _torchscript), ("dynamo", _dynamo)):
            try:
                data = _with_file_names(convert(model, example_inputs, opset, dynamic), model)
                written = _opset_of(data)
                if written != opset:
                    raise EngineError(f"writes opset {written} where {opset} was asked for")
                errors = _check(data, model, example_inputs, dynamic, allowed)
            except (BrokenPackageError, MissingExtraError):
                raise
            except Exception as error:  # exporters raise whatever the model's code and their own raise
                failures.append(f"{exporter}: {in_a_line(error)}")
                continue
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data)
            return OnnxExport(
                path=path,
                opset=written,
                exporter=exporter,
                reason="; ".join(failures),
                errors=errors,
                seconds=time.perf_counter() - started,
            )
    raise EngineError(f"the model cannot be exported to ONNX of opset {opset} ({'; '.join(failures)}); {_what_to_do(model, types)}")


def _require_opset(opset: int) -> None:
    """Refuse an opset that no exporter writes, rather than to find another one in the file."""
    import onnx

    newest = int(onnx.defs.onnx_opset_version())
    check_whole("opset", opset)
    if not _LEAST_OPSET <= opset <= newest:
        raise InvalidArgumentError(
            f"opset (={opset}) must be from {_LEAST_OPSET}, the first that PyTorch writes, to {newest}, the newest of the installed onnx "
            f"{onnx.__version__}; {OPSET} is the default"
        )


def _opset_of(data: bytes) -> int:
    """Opset of the default domain that a file states."""
    import onnx

    proto = onnx.load_from_string(data)
    return int(next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")))


def _allowed(types: Collection[torch.dtype]) -> float:
    """The tolerance of the least exact type that is computed in; runtimes compute what is in float64 in float32 too."""
    return max([TOLERANCES[torch.float32], *(TOLERANCES.get(kind, 0.0) for kind in types)])


def _what_to_do(model: nn.Module, types: Collection[torch.dtype]) -> str:
    others = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in types if kind != torch.float32))
    if held_type(model) not in (None, torch.float32):
        return f"the model is held in {others}: bring it and the example inputs to float32 first (model.float(); latprune export --float32)"
    if parts := scripted_parts(model):
        return parts
    if others:
        return f"the model computes in {others} in places (autocast in its forward, or a cast of its own): take that out to export it"
    return (
        "replace that operation in the model, try another opset (opset=; --opset), or write a torch.export program instead "
        "(export_program; a file that ends in .pt2)"
    )


def require_onnx_type(model: nn.Module) -> None:
    """Refuse a model that is held in a type which no ONNX runtime takes.

    Raises:
        EngineError: All of its parameters are bfloat16.
    """
    if held_type(model) == torch.bfloat16:
        raise EngineError(
            f"the model ({type(model).__name__}) is held in bfloat16, which ONNX runtimes do not take: bring it and the example inputs to "
            "float32 first (model.float(); --float32 of latprune export and latprune prune)"
        )


def require_onnx() -> None:
    """Raise MissingExtraError or BrokenPackageError where ``onnx`` cannot be imported, before there is anything to export."""
    with importing("onnx", "onnx"):
        import onnx  # noqa: F401


def check_onnx(
    path: str | Path,
    model: nn.Module,
    example_inputs: Inputs,
    *,
    tolerance: float | None = None,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
) -> dict[str, float]:
    """Compare an ONNX file with ``model`` in every installed runtime.

    Returns:
        Runtime -> largest difference, relative to the larger of 1 and the largest output. Empty where no runtime is installed.

    Raises:
        CaptureError: The model does not run on the example inputs, or returns no tensor.
        EngineError: A runtime cannot run the file, or an output differs by more than ``tolerance`` (None: as for :func:`export_onnx`).
    """
    check_runs(model, example_inputs)
    with preserved_modes(model):
        dynamic = OpenDimensions(batch=dynamic_batch, size=dynamic_size)
        allowed = _allowed(computed_types(model.eval(), *as_call(example_inputs))) if tolerance is None else tolerance
        return _check(Path(path).read_bytes(), model, example_inputs, dynamic, allowed)


def _check(data: bytes, model: nn.Module, example_inputs: Inputs, dynamic: OpenDimensions, tolerance: float) -> dict[str, float]:
    named = named_inputs(model, example_inputs)
    cases: list[tuple[str, Inputs]] = [("", example_inputs), *dynamic.cases(example_inputs)]
    errors: dict[str, float] = {}
    for case, inputs in cases:
        expected = [tensor.detach().cpu().float().numpy() for tensor in call(model, inputs)]
        arrays = inputs_as_numpy(named if inputs is example_inputs else named_inputs(model, inputs))
        names = _file_names(model)
        arrays = arrays if names is None else dict(zip(names.inputs, arrays.values(), strict=True))
        for name, run in _runtimes().items():
            try:
                found = run(data, arrays)
            except Exception as failure:  # each runtime has its own exceptions
                raise EngineError(f"{name} cannot run the file{case}: {in_a_line(failure)}") from failure
            if len(found) != len(expected):
                raise EngineError(f"{name} gives {len(found)} outputs{case}, PyTorch {len(expected)}")
            error = max((_difference(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
            if not error <= tolerance:
                raise EngineError(f"{name} differs from PyTorch by {error:.2e}{case} (allowed {tolerance:.0e})")
            errors[name] = max(error, errors.get(name, 0.0))
    return errors


def _difference(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    if expected.shape != found.shape:
        raise EngineError(f"an output has shape {found.shape}, in PyTorch {expected.shape}")
    if expected.size == 0:
        return 0.0
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(expected - found.astype(np.float32)).max()) / scale


def _split(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, tuple[torch.Tensor, ...], list[str]]:
    """What to export, with which tensors by position, and their names."""
    named = named_inputs(model, inputs)
    return model if is_plain(inputs) else FlatCall(model, inputs).eval(), tuple(named.values()), list(named)


def _output_names(model: nn.Module, inputs: Inputs) -> list[str]:
    count = len(call(model, inputs))
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _torchscript(model: nn.Module, inputs: Inputs, opset: int, dynamic: OpenDimensions) -> bytes:
    outputs = _output_names(model, inputs)
    model, positional, names = _split(model, inputs)
    axes = {name: dims for name, tensor in zip(names, positional, strict=True) if (dims := dynamic.of(tensor.dim()))}
    axes |= {name: dims for name in outputs if axes and (dims := dynamic.of(1, given=False))}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), quiet_exporters():
        warnings.simplefilter("ignore")  # deprecation of the exporter and tracer warnings: the result is checked numerically instead
        torch.onnx.export(
            model,
            positional,
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes or None,
        )
    return buffer.getvalue()


def _dynamo(model: nn.Module, inputs: Inputs, opset: int, dynamic: OpenDimensions) -> bytes:
    with importing("onnxscript", "onnx"):
        import onnxscript  # noqa: F401
    outputs = _output_names(model, inputs)
    # The exporter takes a size of 1 for a fixed one.
    called, positional, names = _split(model, doubled(inputs, (0,), 1) if dynamic.batch else inputs)
    shapes: Any = None
    if dynamic.batch or dynamic.size:
        # What a model asks of its sizes (to divide by 32, say) is not known; the check at other sizes tells whether they are open.
        shapes = shapes_by_parameter(called, tuple(dynamic.sizes(tensor) for tensor in positional))
    with warnings.catch_warnings(), quiet_exporters():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            called,
            positional,
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def _file_names(model: nn.Module) -> FileNames | None:
    from latprune.program.module import ProgramModule

    return model.program.file_names if isinstance(model, ProgramModule) else None


def _with_file_names(data: bytes, model: nn.Module) -> bytes:
    """A program that was read from a file has that file's names of inputs and outputs, whatever the exporters take for a name."""
    names = _file_names(model)
    if names is None:
        return data
    import onnx

    proto = onnx.load_from_string(data)
    graph = proto.graph
    stored = {entry.name for entry in graph.initializer}
    given = dict(zip((entry.name for entry in graph.input if entry.name not in stored), names.inputs, strict=False))
    taken = {*names.inputs, *names.outputs}
    renamed = {name: f"{name}_inside" for name in taken} | given
    renamed |= {entry.name: name for entry, name in zip(graph.output, names.outputs, strict=True)}
    _rename(graph, renamed)
    return bytes(proto.SerializeToString())


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give values of a graph other names, in its sub-graphs too."""
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.name = names.get(entry.name, entry.name)


def _runtimes() -> dict[str, Runtime]:
    known: dict[str, Runtime] = {"onnxruntime": _run_onnxruntime, "openvino": _run_openvino}
    return {name: run for name, run in known.items() if importlib.util.find_spec(name) is not None}


def _run_onnxruntime(data: bytes, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    taken = {item.name for item in session.get_inputs()}
    return [np.asarray(value) for value in session.run(None, {name: value for name, value in inputs.items() if name in taken})]


def _run_openvino(data: bytes, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    import openvino

    core = openvino.Core()
    # Single precision by name: on some processors the default is bf16, which is no test of the export.
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    taken = {name for port in compiled.inputs for name in port.get_names()}
    result = compiled({name: value for name, value in inputs.items() if name in taken})
    return [np.asarray(result[port]) for port in compiled.outputs]
