"""Which steps of a program its answer depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from latprune.errors import SurgeryError
from latprune.program.steps import Held, Step, Value

__all__ = ["live_steps", "without_branch", "writes_of"]


def live_steps(steps: list[Step], returned: list[Value | Held]) -> list[Step]:
    """The steps that the answer depends on, in order; a step that writes counts where anything of that memory is read later."""
    roots = _memories(steps)
    wanted = {r.number for r in returned if isinstance(r, Value)}
    memory = {roots.get(n, n) for n in wanted}
    result = []
    for step in reversed(steps):
        writes = writes_of(step)
        needed = any(n in wanted for n in step.results) or any(roots.get(w, w) in memory for w in writes)
        if not needed:
            continue
        result.append(replace(step, results=tuple(n if n in wanted else None for n in step.results)) if step.several else step)
        for reference in step.reads():
            if isinstance(reference, Value):
                wanted.add(reference.number)
                memory.add(roots.get(reference.number, reference.number))
    return result[::-1]


_VIEWS = frozenset({"expand", "reshape", "select", "slice", "split_with_sizes", "unfold", "dropout", "einsum"})
"""Public functions whose results may share the memory of their first argument."""


@lru_cache(maxsize=4096)
def _shares_memory(operator: str) -> bool:
    """Whether an operator's results may lie in the memory of its first argument."""
    parts = operator.split(".")
    if len(parts) != 3:
        return operator in _VIEWS
    schema = getattr(getattr(getattr(torch.ops, parts[0]), parts[1]), parts[2])._schema
    return any(r.alias_info is not None for r in schema.returns)


def _memories(steps: list[Step]) -> dict[int, int]:
    """For each value that may share its memory with others, the value that the memory belongs to."""
    roots: dict[int, int] = {}
    for step in steps:
        first = step.arguments[0] if step.arguments else None
        if isinstance(first, Value) and _shares_memory(step.operator):
            root = roots.get(first.number, first.number)
            roots.update((n, root) for n in step.results if n is not None)
    return roots


def writes_of(step: Step) -> list[int]:
    """Values that a step of a program writes into."""
    parts = step.operator.split(".")
    if len(parts) != 3 or not parts[1].endswith("_") or parts[1].endswith("__"):
        return []
    first = step.arguments[0]
    return [first.number] if isinstance(first, Value) else []


def without_branch(
    steps: list[Step], returned: list[Value | Held], join: int, operand: int, skipped: Iterable[int]
) -> tuple[list[Step], list[Value | Held]]:
    """Steps and answer with the other operand in the place of the sum ``join``; ``skipped`` steps hand their argument on.

    Raises:
        SurgeryError: There is no such sum.
    """
    by_number = {step.number: step for step in steps}
    gone = {join, *skipped}
    same: dict[int, Any] = {}
    for number in gone:
        step = by_number.get(number)
        if step is None or len(step.results) != 1 or (number == join and not step.operator.startswith("aten.add")):
            raise SurgeryError(f"the program has no {'sum' if number == join else 'activation'} at step {number}")
        if step.results[0] is not None:
            same[step.results[0]] = step.arguments[1 - operand if number == join else 0]

    def followed(item: Any) -> Any:
        while isinstance(item, Value) and item.number in same:
            item = same[item.number]
        return item

    return [s.mapped(followed) for s in steps if s.number not in gone], [followed(r) for r in returned]
