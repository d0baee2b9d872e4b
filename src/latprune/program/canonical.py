"""From recorded steps to the steps of a program: operators become the public functions behind them, writes become results of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from latprune.errors import CaptureError
from latprune.program.broadcasts import broadcast_freely
from latprune.program.conversions import CONVERSIONS, FIRST_ONLY, Arguments
from latprune.program.fused import split_projections
from latprune.program.liveness import live_steps, writes_of
from latprune.program.operators import allowed
from latprune.program.recorder import RawProgram
from latprune.program.steps import Held, Step, Value

__all__ = ["canonical", "convertible", "renumbered"]

_IDENTITIES = frozenset({"aten.alias.default", "aten.lift_fresh.default", "aten.lift_fresh_copy.default"})
_CHECKS = frozenset({"aten._assert_async.default", "aten._assert_async.msg"})


def canonical(raw: RawProgram) -> tuple[list[Step], list[Value | Held]]:
    """The steps of a program and what it returns.

    Raises:
        CaptureError: An operation has no place in a program; says which and where.
    """
    steps = _functional(raw)
    steps, same = _public(steps, raw)
    returned = [_followed(r, same) for r in raw.returned]
    steps = live_steps(steps, returned)
    _require_first_results(steps, raw)
    steps = _merge_copies(steps, returned, raw)
    steps = broadcast_freely(steps, returned, raw)
    steps = live_steps(split_projections(steps, returned, raw), returned)
    for step in steps:
        if not allowed(step.operator):
            raise CaptureError(
                f"operator '{step.operator}' in '{step.module}' is not one that a captured program may hold. Use form='class'"
            )
    return steps, returned


def convertible(operator: str) -> bool:
    """Whether a recorded operator can become a step."""
    return operator in CONVERSIONS or operator in _IDENTITIES or operator in _CHECKS or allowed(operator)


# -- writes ------------------------------------------------------------------------------------------------------------------------------


def _functional(raw: RawProgram) -> list[Step]:
    """Operators that write into an argument, as ones that do not, wherever nothing else reads that memory afterwards."""
    last_read: dict[int, int] = {}
    for step in raw.steps:
        for reference in step.reads():
            if isinstance(reference, Value):
                last_read[reference.number] = step.number
    for reference in raw.returned:
        if isinstance(reference, Value):
            last_read[reference.number] = len(raw.steps)
    by_root: dict[int, list[int]] = {}
    for number, root in raw.roots.items():
        by_root.setdefault(root, []).append(number)
    made_at = {number: step.number for step in raw.steps for number in step.results if number is not None}
    result = []
    for step in raw.steps:
        written = raw.writes.get(step.number, ())
        for target in written:
            if isinstance(target, Held):
                raise CaptureError(
                    f"the forward of '{step.module}' writes into '{target.name}' ({step.operator}); a program leaves its own as they are"
                )
        if written and _only_reader(step, written, by_root, raw, last_read, made_at):
            step = _without_write(step)
        result.append(step)
    return result


def _only_reader(
    step: Step,
    written: tuple[Value | Held, ...],
    by_root: Mapping[int, list[int]],
    raw: RawProgram,
    last_read: Mapping[int, int],
    made_at: Mapping[int, int],
) -> bool:
    """Whether what was written is read afterwards through the step's own result alone."""
    for target in written:
        assert isinstance(target, Value)
        others = by_root[raw.roots[target.number]]
        if any(made_at.get(n, -1) < step.number < last_read.get(n, -1) for n in others):
            return False
    return len(written) == 1


def _without_write(step: Step) -> Step:
    namespace, name, overload = step.operator.split(".")
    if namespace == "aten" and name == "copy_":
        # The source in the shape and type of what it is copied over.
        return replace(step, operator="aten.copy.default")
    packet = getattr(torch.ops.aten, name.rstrip("_"), None)
    if namespace != "aten" or not name.endswith("_") or packet is None or overload not in packet.overloads():
        return step
    return replace(step, operator=f"aten.{name.rstrip('_')}.{overload}")


# -- public functions --------------------------------------------------------------------------------------------------------------------


def _followed(reference: Any, same: Mapping[int, Any]) -> Any:
    while isinstance(reference, Value) and reference.number in same:
        reference = same[reference.number]
    return reference


def _public(steps: list[Step], raw: RawProgram) -> tuple[list[Step], dict[int, Any]]:
    """Steps by their public functions, and the values that are the same as others."""
    same: dict[int, Any] = {}
    result = []
    for found in steps:
        step = found.mapped(lambda r: _followed(r, same))
        if step.operator in _CHECKS:
            continue
        if step.operator in _IDENTITIES or _restrides(step, raw):
            (value,) = step.results
            if value is not None:
                same[value] = step.arguments[0]
            continue
        convert = CONVERSIONS.get(step.operator)
        step = convert(step, Arguments(step), raw) if convert is not None else step
        if step.operator in FIRST_ONLY:
            step = replace(step, results=step.results[:1], several=False)
        result.append(step)
    return result, same


def _restrides(step: Step, raw: RawProgram) -> bool:
    """Whether ``as_strided`` only restates strides of dimensions of size 1 (pooling in channels-last memory does)."""
    if step.operator not in ("aten.as_strided.default", "aten.as_strided_.default"):
        return False
    source, shape, strides = step.arguments[:3]
    number = source.number if isinstance(source, Value) else -1
    if number < 0 or tuple(shape) != raw.shapes[number] or (len(step.arguments) > 3 and step.arguments[3]):
        return False
    return all(a == b for n, a, b in zip(shape, strides, raw.strides[number], strict=True) if n > 1)


def _require_first_results(steps: list[Step], raw: RawProgram) -> None:
    """A statistic that a norm returns beside its result is lost in the public function: nothing may read it."""
    lost = {n for step in raw.steps for n in step.results} - {n for step in steps for n in step.results}
    for step in steps:
        for reference in step.reads():
            if isinstance(reference, Value) and reference.number in lost:
                raise CaptureError(f"'{step.module}' reads a statistic that a public function of PyTorch does not return ({step.operator})")


def _merge_copies(steps: list[Step], returned: list[Value | Held], raw: RawProgram) -> list[Step]:
    """A copy that only a reshape reads is part of that reshape (which copies by itself where it must)."""
    readers: dict[int, int] = {}
    for step in steps:
        for reference in step.reads():
            if isinstance(reference, Value):
                readers[reference.number] = readers.get(reference.number, 0) + 1
    for reference in returned:
        if isinstance(reference, Value):
            readers[reference.number] = readers.get(reference.number, 0) + 1
    written = {raw.roots.get(w, w) for step in steps for w in writes_of(step)}
    copies: dict[int, Step] = {}
    for step in steps:
        if step.operator == "aten.clone.default" and step.results[0] is not None and readers.get(step.results[0]) == 1:
            copies[step.results[0]] = step
    gone: set[int] = set()
    result = []
    for step in steps:
        source = step.arguments[0] if step.arguments else None
        if step.operator == "reshape" and isinstance(source, Value) and source.number in copies:
            origin = copies[source.number].arguments[0]
            memories = {raw.roots.get(v.number, v.number) for v in (origin, source) if isinstance(v, Value)}
            if isinstance(origin, Value) and not memories & written:
                gone.add(copies[source.number].number)
                step = replace(step, arguments=(origin, *step.arguments[1:]))
        result.append(step)
    return [step for step in result if step.number not in gone]


def renumbered(
    steps: list[Step], returned: list[Value | Held], inputs: int, constants: list[str]
) -> tuple[list[Step], list[Value | Held], dict[str, str]]:
    """Steps, values and constants numbered from the start, in order: two recordings of one program then look alike.

    Returns:
        The steps, what is returned, and the recorded name of each constant by its new one.
    """
    numbers: dict[int, int] = {k: k for k in range(inputs)}
    names: dict[str, str] = {}

    def change(item: Any) -> Any:
        if isinstance(item, Value):
            return Value(numbers[item.number])
        if isinstance(item, Held) and item.name in constants:
            return Held(names.setdefault(item.name, f"program_constants.{len(names)}"))
        return item

    result = []
    for k, step in enumerate(steps):
        changed = step.mapped(change)
        results = tuple(None if n is None else numbers.setdefault(n, len(numbers)) for n in step.results)
        result.append(replace(changed, number=k, results=results))
    returned = [change(r) for r in returned]
    return result, returned, {new: old for old, new in names.items()}
