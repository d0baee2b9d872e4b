"""How a branch is removed from a captured program: the sum's other operand takes its place, and what nothing reads any more goes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from latprune.graph.grouping import Grouping
from latprune.graph.realise import Branch, nonnegative, short_name
from latprune.graph.recording import Recording
from latprune.graph.surgery_plan import BranchCut
from latprune.program.liveness import live_steps, without_branch
from latprune.program.module import ProgramModule
from latprune.program.steps import Held, Size, Step, Value, references

__all__ = ["cut_branch", "derived_grouped_weights", "name_sizes"]

_NUMBER = re.compile(r"'size_literals\[(\d+)\]'")


def name_sizes(grouping: Grouping, program: ProgramModule) -> None:
    """In the reasons, numbers of a program by the step that states them."""
    places: dict[int, str] = {}
    for step in program.program.steps:
        for argument in step.arguments:
            for reference in references(argument):
                if isinstance(reference, Size):
                    places[reference.index] = f"a size of {step.operator} in '{step.module}'"
    for group in grouping.groups:
        group.reason = _NUMBER.sub(lambda found: places[int(found[1])], group.reason).replace("by the code of ", "by ")


def derived_grouped_weights(program: ProgramModule) -> dict[str, int]:
    """Weights of grouped convolutions that are computed from a parameter first (standardised weights): their groups."""
    makers = {n: step for step in program.program.steps for n in step.results if n is not None}
    found: dict[str, int] = {}
    for step in program.program.steps:
        if not step.operator.startswith("conv") or not isinstance(step.arguments[1], Value) or not isinstance(step.arguments[6], Size):
            continue
        groups = program.size_literals[step.arguments[6].index]
        for name in _sources(step.arguments[1], makers):
            tensor = program.get_parameter(name) if program.program.tensors[name].kind == "parameter" else None
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


def cut_branch(branch: Branch, recording: Recording, consumers: Mapping[int, list[int]], program: ProgramModule) -> None:
    """Say how the branch is removed from the program; every branch can be, but for a scaled sum whose shortcut would keep the scale."""
    nodes = recording.nodes
    join = nodes[branch.join]
    steps = {step.number: step for step in program.program.steps}
    step = steps[join.step]
    if not step.operator.startswith("aten.add") or (branch.operand == 0 and step.keywords.get("alpha", 1) != 1):
        branch.reason = f"the sum in '{join.module}' scales its shortcut"
        return
    skipped: list[int] = []
    after = consumers.get(branch.join, [])
    source = join.inputs[1 - branch.operand]
    while len(after) == 1 and short_name(nodes[after[0]]) == "relu" and nonnegative(source, nodes):
        # A ReLU of what has no negative values does nothing.
        skipped.append(nodes[after[0]].step)
        branch.dropped_tail |= {after[0]}
        after = consumers.get(after[0], [])
    tensors = _tensors_lost(program, join.step, branch.operand, skipped)
    branch.removal = BranchCut(join=join.step, operand=branch.operand, skipped=tuple(skipped), tensors=tensors)


def _tensors_lost(program: ProgramModule, join: int, operand: int, skipped: list[int]) -> tuple[str, ...]:
    """Parameters, buffers and constants that only the branch reads."""
    steps, returned = list(program.program.steps), list(program.program.outputs["returned"])
    before = _held(steps)
    after = _held(live_steps(*without_branch(steps, returned, join, operand, skipped)))
    return tuple(name for name in before if name not in after)


def _held(steps: list[Step]) -> dict[str, None]:
    return {r.name: None for step in steps for r in step.reads() if isinstance(r, Held)}
