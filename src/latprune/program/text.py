"""A program as readable lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latprune.program.steps import BatchMultiple, Device, Dtype, Held, Size, Step, Training, Value

if TYPE_CHECKING:
    from latprune.program.module import ProgramModule

__all__ = ["as_text"]


def as_text(module: ProgramModule) -> str:
    """One line for each step, its results on the left and its module behind it."""
    program = module.program
    lines = [f"{_name(k)} = input '{entry.name}'  # {_shape(entry)}" for k, entry in enumerate(program.inputs)]
    lines += [_line(step, module.size_literals) for step in program.steps]
    returned = ", ".join(_argument(r, module.size_literals) for r in program.outputs["returned"])
    return "\n".join([*lines, f"return {returned}"])


def _shape(entry: Any) -> str:
    sizes = ("batch", *entry.shape[1:]) if entry.batched else entry.shape
    return f"({', '.join(str(n) for n in sizes)}) {entry.dtype}"


def _line(step: Step, sizes: list[int]) -> str:
    results = ", ".join("_" if n is None else _name(n) for n in step.results)
    arguments = [_argument(a, sizes) for a in step.arguments]
    arguments += [f"{name}={_argument(a, sizes)}" for name, a in step.keywords.items()]
    place = f"  # {step.module}" if step.module else ""
    return f"{results} = {step.operator}({', '.join(arguments)}){place}"


def _name(number: int) -> str:
    return f"v{number}"


def _argument(argument: Any, sizes: list[int]) -> str:
    if isinstance(argument, Value):
        return _name(argument.number)
    if isinstance(argument, Held):
        return argument.name
    if isinstance(argument, Size):
        return f"{sizes[argument.index]} * batch" if argument.per_batch else str(sizes[argument.index])
    if isinstance(argument, BatchMultiple):
        return f"{argument.count} * batch"
    if isinstance(argument, Dtype):
        return f"dtype:{argument.name}"
    if isinstance(argument, Device):
        return "device"
    if isinstance(argument, Training):
        return "training"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_argument(a, sizes) for a in argument)}]"
    return repr(argument)
