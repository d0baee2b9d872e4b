"""From command-line text to objects: models, weights, example inputs, hooks and targets."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from latprune.errors import CheckpointError, InvalidArgumentError, LatpruneError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from latprune.export.record import ResultRecord
    from latprune.latency.tabulating.tables import LatencyTables
    from latprune.latency.target import Target

    ExampleInputs = torch.Tensor | tuple[torch.Tensor, ...] | dict[str, torch.Tensor]

__all__ = [
    "InputSpec",
    "example_inputs",
    "glob_numbers",
    "load_batches",
    "load_callable",
    "load_model",
    "load_tables",
    "load_weights",
    "parse_arguments",
    "parse_input",
    "recorded_constructor",
    "recorded_inputs",
    "target_from",
]

_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>[a-z]+\d*)(?::(?P<high>\d+))?)?")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")
_CONSTANTS = {"True": True, "False": False, "None": None}
"""Values as Python spells them; JSON would have them as text."""
_PICKLED = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def load_callable(spec: str, *, argument: str = "--model") -> Callable[..., Any]:
    """Import ``package.module:callable`` or ``path/to/file.py:callable``; the current folder counts as importable.

    Raises:
        InvalidArgumentError: The text has another form, the module or the attribute does not exist, or it cannot be called.
    """
    place, separator, attribute = spec.rpartition(":")
    if not separator or not place or not attribute:
        raise InvalidArgumentError(f"{argument} (={spec!r}) must have the form package.module:callable or path/to/file.py:callable")
    module = _import_file(place, spec, argument) if place.endswith(".py") else _import_module(place, spec, argument)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InvalidArgumentError(f"{argument} (={spec!r}): '{place}' has no '{attribute}'")
        found = getattr(found, part)
    if not callable(found):
        raise InvalidArgumentError(f"{argument} (={spec!r}) is a {type(found).__name__}; it must be callable")
    return found  # type: ignore[no-any-return]


def _import_module(name: str, spec: str, argument: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise InvalidArgumentError(f"{argument} (={spec!r}): there is no module '{error.name}' here or installed") from error
        raise InvalidArgumentError(f"{argument} (={spec!r}): '{name}' needs the module '{error.name}', which is not installed") from error
    except LatpruneError:
        raise
    except Exception as error:
        raise _not_imported(spec, argument, error) from error


def _import_file(place: str, spec: str, argument: str) -> Any:
    path = Path(place).resolve()
    if not path.is_file():
        raise InvalidArgumentError(f"{argument} (={spec!r}): there is no file '{place}'")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules.setdefault(path.stem, module)
    try:
        module_spec.loader.exec_module(module)
    except LatpruneError:
        raise
    except Exception as error:
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]
        raise _not_imported(spec, argument, error) from error
    return module


def _not_imported(spec: str, argument: str, error: Exception) -> InvalidArgumentError:
    return InvalidArgumentError(f"{argument} (={spec!r}) cannot be imported: {type(error).__name__}: {error}; import it in Python to see")


def parse_arguments(pairs: Sequence[str], *, argument: str = "--model-arg") -> dict[str, Any]:
    """Read ``["depth=56", "shortcut=A"]`` as ``{"depth": 56, "shortcut": "A"}``: each value as JSON, or as text where it is not JSON.

    ``True``, ``False`` and ``None``, as Python spells them, are ``true``, ``false`` and ``null``; in quotes (``'"None"'``) they are text.

    Raises:
        InvalidArgumentError: An entry has no ``=``, a name that is no Python name, or a name that was given before.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.isidentifier():
            raise InvalidArgumentError(f"{argument} (={pair!r}) must have the form KEY=VALUE")
        if key in found:
            raise InvalidArgumentError(f"{argument} (={pair!r}): '{key}' was given twice")
        try:
            found[key] = _CONSTANTS[value] if value in _CONSTANTS else json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One example input: ``shape``, ``dtype`` (torch's name; None: the model's), ``high`` (bound of integers), ``name`` of a keyword."""

    shape: tuple[int, ...]
    dtype: str | None = None
    high: int = 2
    name: str | None = None


def glob_numbers(entries: list[str], argument: str, kind: type[int] | type[float]) -> list[tuple[str, Any]]:
    """``GLOB=NUMBER`` entries; a number alone has the glob ``*``."""
    found = []
    for entry in entries:
        name, separator, value = entry.rpartition("=")
        try:
            number = kind(value)
        except ValueError as error:
            word = "an integer" if kind is int else "a number"
            raise InvalidArgumentError(f"{argument} (={entry!r}) must have the form GROUP=N with {word} N") from error
        if separator and not name:
            raise InvalidArgumentError(f"{argument} (={entry!r}) must have the form GROUP=N")
        if not separator and argument in ("--min-width", "--max-width"):
            raise InvalidArgumentError(f"{argument} (={entry!r}) must have the form GROUP=N; for all groups write '*={value}'")
        found.append((name or "*", number))
    return found


def parse_input(text: str) -> InputSpec:
    """Read ``[NAME=]SHAPE[:DTYPE[:HIGH]]``, for instance ``1x3x224x224`` or ``ids=1x128:int64:30522``.

    Raises:
        InvalidArgumentError: The text has another form, a size is 0, or the dtype is unknown.
    """
    match = _INPUT.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(f"--input (={text!r}) must have the form [NAME=]SHAPE[:DTYPE[:HIGH]], for instance 1x3x224x224")
    shape = tuple(int(size) for size in match["shape"].split("x"))
    dtype, high = match["dtype"], int(match["high"] or 2)
    if 0 in shape:
        raise InvalidArgumentError(f"--input (={text!r}): every size must be at least 1")
    if dtype is not None and dtype not in _DTYPES:
        raise InvalidArgumentError(f"--input (={text!r}): dtype {dtype!r} must be one of {', '.join(_DTYPES)}")
    if high < 1:
        raise InvalidArgumentError(f"--input (={text!r}): integers are drawn below {high}, which must be at least 1")
    return InputSpec(shape=shape, dtype=dtype, high=high, name=match["name"])


def example_inputs(specs: Sequence[str], *, batch: int | None = None, seed: int = 0, model: nn.Module | None = None) -> ExampleInputs:
    """Random inputs for ``specs`` (texts of :func:`parse_input`): standard normal floats, integers in ``[0, high)``.

    Args:
        specs: One text per input; all named (keyword inputs) or none.
        batch: Brings the first dimension of every input to it; None leaves the shapes as given.
        seed: Seed of the values.
        model: Inputs without a type take the one that its parameters are held in, float32 where they are held in several.

    Returns:
        The tensor for one unnamed input, a tuple for several, a dict for named ones.
    """
    import torch

    if not specs:
        raise InvalidArgumentError("--input is missing; give the shape of an example input, for instance --input 1x3x224x224")
    parsed = [parse_input(text) for text in specs]
    named = [spec.name for spec in parsed if spec.name is not None]
    if named and len(named) != len(parsed):
        raise InvalidArgumentError("--input: name all inputs (NAME=SHAPE) or none")
    if len(set(named)) != len(named):
        raise InvalidArgumentError(f"--input: a name was given twice among {', '.join(named)}")
    own = _held_type(model)
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for spec in parsed:
        shape = spec.shape if batch is None else (batch, *spec.shape[1:])
        dtype = own if spec.dtype is None else getattr(torch, spec.dtype)
        if dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            tensors.append(torch.randint(0, spec.high, shape, generator=generator).to(dtype))
    if named:
        return dict(zip(named, tensors, strict=True))
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _held_type(model: nn.Module | None) -> torch.dtype:
    """The floating-point type that the model's parameters are held in; float32 without a model, or where there are several."""
    import torch

    from latprune.latency.engines.inputs import held_type

    return (held_type(model) if model is not None else None) or torch.float32


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors file into ``model``; every tensor must find its place.

    Raises:
        InvalidArgumentError: The file does not exist or is a pickled checkpoint, which is never opened.
        CheckpointError: The file is damaged, or its tensors are not the model's.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidArgumentError(f"--weights (={str(path)!r}): there is no such file")
    if path.suffix != ".safetensors":
        kind = "a pickled checkpoint, which can run code when it is opened" if path.suffix in _PICKLED else "not a .safetensors file"
        raise InvalidArgumentError(
            f"--weights (={str(path)!r}) is {kind}; where you trust it, convert it once with: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'weights.safetensors')"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"--weights (={str(path)!r}) cannot be read as safetensors: {error}") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"--weights (={str(path)!r}) do not fit the model: {error}") from error


def load_tables(path: str) -> LatencyTables:
    """Latency tables from a file that ``latprune measure -o`` wrote.

    Raises:
        FileFormatError: The file cannot be read, or holds no tables.
    """
    from latprune.errors import FileFormatError
    from latprune.file_errors import naming
    from latprune.latency.tabulating.tables import LatencyTables

    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise FileFormatError(f"tables {path} cannot be read: {error}; give a file that `latprune measure -o FILE` wrote") from error
    if not isinstance(data, dict):
        raise FileFormatError(f"tables {path} must hold a JSON object, not a {type(data).__name__}")
    with naming(path):
        return LatencyTables.from_dict(data)


def load_batches(spec: str, keywords: Mapping[str, Any], *, argument: str) -> Any:
    """The batches that the callable of ``--data`` or ``--test-data`` returns.

    Raises:
        InvalidArgumentError: The callable cannot be found, refuses the arguments, fails, or returns nothing that can be iterated over.
    """
    batches = _called(load_callable(spec, argument=argument), spec, keywords, argument)
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise InvalidArgumentError(
            f"{argument} (={spec!r}) returned a {type(batches).__name__}; it must return batches, as a list or loader"
        )
    return batches


def _called(function: Callable[..., Any], spec: str, keywords: Mapping[str, Any], argument: str) -> Any:
    """What the user's callable returns; errors inside are told as its own."""
    try:
        inspect.signature(function).bind(**keywords)
    except TypeError as error:
        raise InvalidArgumentError(f"{argument} (={spec!r}) cannot be called with the arguments {dict(keywords)}: {error}") from error
    except ValueError:
        pass  # a builtin without a signature: its call tells
    try:
        return function(**keywords)
    except LatpruneError:
        raise
    except Exception as error:
        given = f" with the arguments {dict(keywords)}" if keywords else ""
        raise InvalidArgumentError(
            f"{argument} (={spec!r}) fails{given}: {type(error).__name__}: {error}; run it in Python to see where"
        ) from error


def load_model(spec: str, arguments: Sequence[str] = (), weights: str | Path | None = None) -> nn.Module:
    """Build the model that ``spec`` names with ``arguments`` (texts ``KEY=VALUE``), load ``weights``, and put it in evaluation mode.

    Raises:
        InvalidArgumentError: The callable cannot be found, refuses the arguments, or returns something other than a module.
        CheckpointError: The weights do not fit.
    """
    from torch import nn

    build = load_callable(spec)
    keywords = parse_arguments(arguments)
    model = _called(build, spec, keywords, "--model")
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"--model (={spec!r}) returned a {type(model).__name__}; it must return a torch.nn.Module")
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def recorded_constructor(
    record: ResultRecord, spec: str | None, arguments: Sequence[str], *, trust: bool = False
) -> Callable[[], nn.Module]:
    """What builds the dense model of a saved result: ``spec`` where it is given, else the constructor that the result records.

    A file must not decide what code runs, so a recorded constructor is taken unasked only where it is one of this library's reference
    models.

    Args:
        record: The saved result.
        spec: ``--model`` of the command line, or None.
        arguments: ``--model-arg`` of the command line; without ``--model`` they replace the recorded arguments.
        trust: Whether the user said that the recorded constructor may be run.

    Raises:
        InvalidArgumentError: There is no constructor, or the recorded one is not to be run unasked.
    """
    if spec is not None:
        return lambda: load_model(spec, arguments)
    recorded = record.model.constructor
    if recorded is None:
        raise InvalidArgumentError("the result does not record how to build its model; give --model MODULE:CALLABLE")
    # Reading an ONNX file runs no code of it.
    if not trust and recorded != "latprune:load_onnx" and not _is_reference_model(recorded):
        told = ["--model", recorded]
        told += [word for key, value in record.model.arguments.items() for word in ("--model-arg", f"{key}={json.dumps(value)}")]
        raise InvalidArgumentError(
            f"the result names {recorded!r} as the constructor of its model, and running it means running code that a file chose; "
            f"give {shlex.join(told)} if that is what you want, or --trust-recorded-model"
        )
    texts = arguments or [f"{key}={json.dumps(value)}" for key, value in record.model.arguments.items()]
    return lambda: load_model(recorded, texts)


def _is_reference_model(spec: str) -> bool:
    """Whether ``spec`` names something of :mod:`latprune.zoo` that is, or is declared to return, a module."""
    from torch import nn

    import latprune.zoo

    module, _, name = spec.partition(":")
    if module != "latprune.zoo" or name not in latprune.zoo.__all__:
        return False
    found = getattr(latprune.zoo, name)
    built = found if isinstance(found, type) else get_type_hints(found).get("return") if callable(found) else None
    return isinstance(built, type) and issubclass(built, nn.Module)


def recorded_inputs(record: ResultRecord, specs: Sequence[str], *, model: nn.Module | None = None) -> ExampleInputs:
    """Example inputs for a saved result: those of ``specs`` (``--input``) where given, else random ones of recorded shapes and types."""
    from latprune.export.inputs import example_inputs_of

    return example_inputs(specs, model=model) if specs else example_inputs_of(record)


def target_from(args: argparse.Namespace) -> Target:
    """The target that the shared arguments describe; without ``--batch`` the first size of the first input counts."""
    from latprune.latency.target import Target

    batch = args.batch
    if batch is None:
        batch = parse_input(args.input[0]).shape[0] if getattr(args, "input", None) else 1
    return Target(engine=args.engine, device=args.device, threads=args.threads, batch=batch, precision=args.precision)
