"""The JSON form of a program, and programs as files: one safetensors file with the steps in its header. Nothing is unpickled.

A file can name the operators of :mod:`latprune.program.operators` alone, reads values only after they were made, and nothing that is not in
the file; all of that is checked before anything runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError

from latprune.errors import CaptureError, CheckpointError, FileFormatError
from latprune.file_model import StrictFileModel
from latprune.program.module import ProgramModule
from latprune.program.operators import FUNCTIONS, allowed, resolve
from latprune.program.steps import (
    BatchMultiple,
    Device,
    Dtype,
    FileNames,
    Held,
    HeldTensor,
    InputTensor,
    Program,
    Size,
    Step,
    Training,
    Value,
)

__all__ = ["load_program", "program_from_dict", "program_to_dict", "restore_program", "save_program"]

FORMAT: Literal["latprune/program"] = "latprune/program"
VERSION: Literal[1] = 1
_WORDS = frozenset(f"torch.{name}" for name in ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format", "strided"))
Count = Annotated[int, Field(ge=0)]


class _StepModel(StrictFileModel):
    number: Count
    operator: str
    arguments: list[Any]
    keywords: dict[str, Any] = Field(default_factory=dict)
    results: list[Count | None]
    several: bool = False
    module: str = ""


class _InputModel(StrictFileModel):
    shape: list[Count]
    dtype: str
    name: str
    batched: bool = False


class _TensorModel(StrictFileModel):
    kind: Literal["parameter", "buffer", "constant"]
    requires_grad: bool = False
    alias_of: str | None = None


class _FileNamesModel(StrictFileModel):
    inputs: list[str]
    outputs: list[str]


class _ProgramModel(StrictFileModel):
    format: Literal["latprune/program"]
    version: Literal[1]
    inputs: list[_InputModel]
    arguments: dict[Literal["args", "kwargs"], Any]
    outputs: Any
    returned: list[Any]
    sizes: list[int]
    tensors: dict[str, _TensorModel]
    kinds: dict[str, str] = Field(default_factory=dict)
    dtype: str
    batch_reason: str = ""
    file_names: _FileNamesModel | None = None
    steps: list[_StepModel]


# -- writing -----------------------------------------------------------------------------------------------------------------------------


def program_to_dict(program: Program) -> dict[str, Any]:
    """A program as a JSON object; its tensors are kept apart."""
    data = {
        "format": FORMAT,
        "version": VERSION,
        "inputs": [{"shape": list(i.shape), "dtype": i.dtype, "name": i.name, "batched": i.batched} for i in program.inputs],
        "arguments": program.arguments,
        "outputs": program.outputs["structure"],
        "returned": [_encoded(r) for r in program.outputs["returned"]],
        "sizes": list(program.sizes),
        "tensors": {
            name: {"kind": t.kind, "requires_grad": t.requires_grad, "alias_of": t.alias_of} for name, t in program.tensors.items()
        },
        "kinds": dict(program.kinds),
        "dtype": program.dtype,
        "batch_reason": program.batch_reason,
        "steps": [_step_to_dict(step) for step in program.steps],
    }
    if program.file_names is not None:
        data["file_names"] = {"inputs": list(program.file_names.inputs), "outputs": list(program.file_names.outputs)}
    return data


def _step_to_dict(step: Step) -> dict[str, Any]:
    entry: dict[str, Any] = {"number": step.number, "operator": step.operator, "arguments": [_encoded(a) for a in step.arguments]}
    if step.keywords:
        entry["keywords"] = {name: _encoded(a) for name, a in step.keywords.items()}
    entry["results"] = list(step.results)
    if step.several:
        entry["several"] = True
    if step.module:
        entry["module"] = step.module
    return entry


def _encoded(argument: Any) -> Any:
    if isinstance(argument, Value):
        return {"value": argument.number}
    if isinstance(argument, Held):
        return {"tensor": argument.name}
    if isinstance(argument, Size):
        return {"size": argument.index, "per_batch": True} if argument.per_batch else {"size": argument.index}
    if isinstance(argument, BatchMultiple):
        return {"batch": argument.count}
    if isinstance(argument, Dtype):
        return {"dtype": argument.name}
    if isinstance(argument, Device):
        return {"device": True}
    if isinstance(argument, Training):
        return {"training": True}
    if isinstance(argument, (list, tuple)):
        return [_encoded(a) for a in argument]
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": str(argument)}
    return argument


# -- reading -----------------------------------------------------------------------------------------------------------------------------


def program_from_dict(data: Any) -> Program:
    """Read the JSON form.

    Raises:
        FileFormatError: A value breaks the format, or an operator is not allowed; the error names the place.
    """
    try:
        model = _ProgramModel.model_validate(data, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FileFormatError(first["msg"], path="program." + ".".join(str(p) for p in first["loc"])) from error
    reader = _Reader(model)
    for name, tensor in model.tensors.items():
        if tensor.alias_of is not None and (tensor.alias_of not in model.tensors or model.tensors[tensor.alias_of].alias_of is not None):
            raise FileFormatError(f"'{tensor.alias_of}' is no tensor of the program", path=f"program.tensors.{name}")
    for k, entry in enumerate(model.inputs):
        _dtype(entry.dtype, f"program.inputs.{k}.dtype")
    _structure(model.outputs, len(model.returned), "program.outputs")
    for name in ("args", "kwargs"):
        _structure(model.arguments.get(name), len(model.inputs), f"program.arguments.{name}")  # type: ignore[call-overload]
    steps = tuple(reader.step(step, f"program.steps.{k}") for k, step in enumerate(model.steps))
    returned = [reader.argument(r, f"program.returned.{k}") for k, r in enumerate(model.returned)]
    names = None
    if model.file_names is not None:
        names = FileNames(inputs=tuple(model.file_names.inputs), outputs=tuple(model.file_names.outputs))
        if (len(names.inputs), len(names.outputs)) != (len(model.inputs), len(returned)):
            raise FileFormatError(f"must name {len(model.inputs)} inputs and {len(returned)} outputs", path="program.file_names")
    if any(not isinstance(r, (Value, Held)) for r in returned):
        raise FileFormatError("holds something that is no tensor", path="program.returned")
    return Program(
        steps=steps,
        inputs=tuple(InputTensor(shape=tuple(i.shape), dtype=i.dtype, name=i.name, batched=i.batched) for i in model.inputs),
        arguments=dict(model.arguments),
        outputs={"structure": model.outputs, "returned": returned},
        sizes=tuple(model.sizes),
        tensors={n: HeldTensor(kind=t.kind, requires_grad=t.requires_grad, alias_of=t.alias_of) for n, t in model.tensors.items()},
        kinds=dict(model.kinds),
        dtype=model.dtype,
        batch_reason=model.batch_reason,
        file_names=names,
    )


class _Reader:
    """Steps from the file's data, with all that they refer to checked."""

    def __init__(self, model: _ProgramModel) -> None:
        self.model = model
        self.made = set(range(len(model.inputs)))

    def step(self, step: _StepModel, path: str) -> Step:
        """One step; its results may be read from now on."""
        if not allowed(step.operator):
            raise FileFormatError(f"operator '{step.operator}' is not one that a program may hold", path=f"{path}.operator")
        try:
            resolve(step.operator)
        except CaptureError as error:
            raise FileFormatError(str(error), path=f"{path}.operator") from error
        if any(not part.isidentifier() and not part.isdigit() for part in step.module.split(".") if step.module):
            raise FileFormatError(f"'{step.module}' is no module path", path=f"{path}.module")
        if len(step.results) != 1 and not step.several:
            raise FileFormatError("one result is expected", path=f"{path}.results")
        arguments = tuple(self.argument(a, f"{path}.arguments.{k}") for k, a in enumerate(step.arguments))
        keywords = {name: self.argument(a, f"{path}.keywords.{name}") for name, a in step.keywords.items()}
        if step.operator in FUNCTIONS and keywords:
            raise FileFormatError("this function takes its arguments by position", path=f"{path}.keywords")
        self.made |= {n for n in step.results if n is not None}
        if any(n is not None and n > 1_000_000 for n in step.results):
            raise FileFormatError("the number of a value is out of range", path=f"{path}.results")
        return Step(
            number=step.number,
            operator=step.operator,
            arguments=arguments,
            keywords=keywords,
            results=tuple(step.results),
            several=step.several,
            module=step.module,
        )

    def argument(self, data: Any, path: str) -> Any:
        """An argument from its JSON form."""
        if isinstance(data, list):
            return [self.argument(item, path) for item in data]
        if isinstance(data, str) and data.startswith("torch.") and data not in _WORDS:
            raise FileFormatError(f"'{data}' is not a word that an argument may hold", path=path)
        if not isinstance(data, dict):
            return data
        kind = next(iter(data), "")
        value = data.get(kind)
        if kind == "value" and value in self.made:
            return Value(value)
        if kind == "tensor" and value in self.model.tensors:
            return Held(value)
        if kind == "size" and type(value) is int and 0 <= value < len(self.model.sizes):
            return Size(value, data.get("per_batch") is True)
        if kind == "batch" and type(value) is int:
            return BatchMultiple(value)
        if kind == "dtype" and isinstance(value, str):
            return Dtype(value if value == "own" else _dtype(value, path))
        if kind == "device":
            return Device()
        if kind == "training":
            return Training()
        if kind == "float" and value in ("inf", "-inf", "nan"):
            return float(value)
        raise FileFormatError(f"{data} refers to nothing in the program", path=path)


def _dtype(name: str, path: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise FileFormatError(f"'{name}' is no type of PyTorch", path=path)
    return name


def _structure(data: Any, tensors: int, path: str) -> None:
    """Check a structure; see :mod:`latprune.program.structure`."""
    if not isinstance(data, dict) or len(data) != 1:
        raise FileFormatError("is no structure of tensors", path=path)
    ((kind, content),) = data.items()
    if kind == "tensor" and type(content) is int and 0 <= content < tensors:
        return
    if kind in ("tuple", "list") and isinstance(content, list):
        for k, item in enumerate(content):
            _structure(item, tensors, f"{path}.{kind}.{k}")
    elif kind == "dict" and isinstance(content, dict):
        for name, item in content.items():
            _structure(item, tensors, f"{path}.dict.{name}")
    elif kind != "const" or not (content is None or isinstance(content, (bool, int, float, str))):
        raise FileFormatError(f"'{kind}' is no structure of tensors", path=path)


def restore_program(data: Any, tensors: Mapping[str, torch.Tensor], *, source: str) -> ProgramModule:
    """A program from its JSON form and its tensors.

    Raises:
        FileFormatError: As :func:`program_from_dict`.
        CheckpointError: A tensor is missing; ``source`` names the file.
    """
    program = program_from_dict(data)
    missing = [n for n, t in program.tensors.items() if t.alias_of is None and n not in tensors]
    if missing:
        raise CheckpointError(f"{source} lacks tensor '{missing[0]}' of its program")
    try:
        return ProgramModule(program, tensors).eval()
    except (CaptureError, KeyError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{source} holds a program that cannot be built: {error}") from error


# -- files -------------------------------------------------------------------------------------------------------------------------------


def save_program(module: ProgramModule, path: str | Path) -> None:
    """Write a program with its tensors as one safetensors file, in one step; :func:`load_program` reads it without the model's class.

    Example:
        >>> program = latprune.capture(model, x)
        >>> latprune.save_program(program, "pruned.safetensors")
        >>> torch.equal(latprune.load_program("pruned.safetensors")(x), program(x))
        True
    """
    from safetensors.torch import save

    from latprune.storage import write_atomic

    program = module.current()
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in module.stored().items()
        if program.tensors[name].alias_of is None
    }
    write_atomic(Path(path), bytes(save(tensors, metadata={"latprune_program": json.dumps(program_to_dict(program))})))


def load_program(path: str | Path) -> ProgramModule:
    """Read a program that :func:`save_program` wrote; it comes back in evaluation mode.

    Raises:
        CheckpointError: The file is damaged, or holds no program.
        FileFormatError: The program breaks its format or names an operator that is not allowed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = Path(path).read_bytes()
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        text = header.get("__metadata__", {}).get("latprune_program")
        steps = json.loads(text) if text is not None else None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    if steps is None:
        raise CheckpointError(f"{path} holds no program")
    return restore_program(steps, tensors, source=str(path))
