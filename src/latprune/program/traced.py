"""What tracing asks of a program: which numbers state sizes, which weights are grouped, and what goes with a branch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch

from latprune.program.liveness import live_steps, without_branch
from latprune.program.steps import Held, Program, Size, Step, Value, references

__all__ = ["grouped_weights", "lost_tensors", "name_sizes", "scales_shortcut"]

_NUMBER = re.compile(r"'size_literals\[(\d+)\]'")


def name_sizes(program: Program, reason: str) -> str:
    """A reason with the numbers of a program named by the step that states them."""
    places: dict[int, str] = {}
    if _NUMBER.search(reason):
        for step in program.steps:
            for argument in step.arguments:
                for reference in references(argument):
                    if isinstance(reference, Size):
                        places[reference.index] = f"a size of {step.operator} in '{step.module}'"
    return _NUMBER.sub(lambda found: places[int(found[1])], reason).replace("by the code of ", "by ")


def grouped_weights(program: Program, sizes: Sequence[int], parameter: Callable[[str], torch.Tensor]) -> dict[str, int]:
    """Weights of grouped convolutions that are computed from a parameter first: their groups.

    Args:
        program: The program.
        sizes: The sizes that its steps state now.
        parameter: Name -> parameter.
    """
    makers = {n: step for step in program.steps for n in step.results if n is not None}
    found: dict[str, int] = {}
    for step in program.steps:
        if not step.operator.startswith("conv") or not isinstance(step.arguments[1], Value) or not isinstance(step.arguments[6], Size):
            continue
        groups = sizes[step.arguments[6].index]
        for name in _sources(step.arguments[1], makers):
            tensor = parameter(name) if program.tensors[name].kind == "parameter" else None
            if groups > 1 and tensor is not None and tensor.dim() > 2 and tensor.shape[1] > 1:
                found[name] = groups
    return found


def _sources(value: Value, makers: Mapping[int, Step]) -> list[str]:
    """Names of the tensors that a value is computed from; none where it depends on the inputs."""
    names: list[str] = []
    todo, seen = [value.number], {value.number}
    while todo:
        step = makers.get(todo.pop())
        if step is None:
            return []
        for reference in step.reads():
            if isinstance(reference, Held):
                names.append(reference.name)
            elif reference.number not in seen:
                seen.add(reference.number)
                todo.append(reference.number)
    return names


def scales_shortcut(program: Program, join: int, operand: int) -> bool:
    """Whether the sum ``join`` is none, or multiplies its second operand, the shortcut where ``operand`` is 0."""
    step = next(step for step in program.steps if step.number == join)
    return not step.operator.startswith("aten.add") or (operand == 0 and step.keywords.get("alpha", 1) != 1)


def lost_tensors(program: Program, join: int, operand: int, skipped: Sequence[int]) -> tuple[str, ...]:
    """Parameters, buffers and constants that only the branch reads."""
    steps, returned = list(program.steps), list(program.outputs["returned"])
    lost = _held(program, steps) - _held(program, live_steps(*without_branch(steps, returned, join, operand, skipped)))
    return tuple(name for name, tensor in program.tensors.items() if (tensor.alias_of or name) in lost)


def _held(program: Program, steps: list[Step]) -> set[str]:
    """What the steps read, tied tensors under their first name."""
    return {program.tensors[r.name].alias_of or r.name for step in steps for r in step.reads() if isinstance(r, Held)}
