"""How a branch is removed from a captured program: the sum's other operand takes its place, and what nothing reads any more goes."""

from __future__ import annotations

from collections.abc import Mapping

from latprune.graph.realise import Branch, ProgramCut, Realisation, nonnegative, short_name
from latprune.graph.recording import Recording
from latprune.program.liveness import live_steps, without_branch
from latprune.program.module import ProgramModule
from latprune.program.steps import Held, Step

__all__ = ["cut_branch"]


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
    branch.realisation = Realisation(cut=ProgramCut(join=join.step, operand=branch.operand, skipped=tuple(skipped), tensors=tensors))


def _tensors_lost(program: ProgramModule, join: int, operand: int, skipped: list[int]) -> tuple[str, ...]:
    """Parameters, buffers and constants that only the branch reads."""
    steps, returned = list(program.program.steps), list(program.program.outputs["returned"])
    before = _held(steps)
    after = _held(live_steps(*without_branch(steps, returned, join, operand, skipped)))
    return tuple(name for name in before if name not in after)


def _held(steps: list[Step]) -> dict[str, None]:
    return {r.name: None for step in steps for r in step.reads() if isinstance(r, Held)}
