"""Fused projections: what a view and an index cut into equal parts is split into parts of their own sizes.

``qkv.reshape(b, n, 3, heads, size).permute(2, 0, 3, 1, 4)`` and three indices give queries, keys and values of one size. Split into
three and reshaped one by one they are the same tensors, and the values may keep other sizes than queries and keys.
"""

from __future__ import annotations

import math
from dataclasses import replace

from latprune.program.recorder import RawProgram
from latprune.program.steps import Held, Step, Value

__all__ = ["split_projections"]

_MOST = 4


def split_projections(steps: list[Step], returned: list[Value | Held], raw: RawProgram) -> list[Step]:
    """The steps with every projection that is reshaped, permuted and indexed replaced by its parts."""
    readers: dict[int, list[Step]] = {}
    makers: dict[int, Step] = {}
    for step in steps:
        makers.update((n, step) for n in step.results if n is not None)
        for reference in step.reads():
            if isinstance(reference, Value):
                readers.setdefault(reference.number, []).append(step)
    kept = {r.number for r in returned if isinstance(r, Value)}
    gone: set[int] = set()
    instead: dict[int, list[Step]] = {}
    for step in steps:
        parts = _parts(step, readers, makers, kept, raw)
        if parts is not None:
            replaced, made = parts
            gone |= replaced
            instead[step.number] = made
    result: list[Step] = []
    for step in steps:
        result += instead.get(step.number, [] if step.number in gone else [step])
    return result


def _parts(
    step: Step, readers: dict[int, list[Step]], makers: dict[int, Step], kept: set[int], raw: RawProgram
) -> tuple[set[int], list[Step]] | None:
    """Numbers of the steps that go, and what stands in their place, for a reshape that begins such a cut."""
    source = step.arguments[0] if step.arguments else None
    if step.operator != "reshape" or not isinstance(source, Value) or source.number not in makers:
        return None
    if makers[source.number].operator != "linear":
        return None
    (value,) = step.results
    assert value is not None
    chain, order = [step], list(range(len(raw.shapes[value])))
    after = readers.get(value, [])
    if value not in kept and len(after) == 1 and after[0].operator == "aten.permute.default":
        chain.append(after[0])
        order = [d % len(order) for d in after[0].arguments[1]]
        (value,) = after[0].results
        assert value is not None
        after = readers.get(value, [])
    picks = _picks(after, len(order))
    if value in kept or picks is None:
        return None
    dim, chosen = picks
    place = order[dim]
    shape = raw.shapes[chain[0].results[0]]  # type: ignore[index]
    count = shape[place]
    width = raw.shapes[source.number][-1]
    if not 1 < count <= _MOST or math.prod(shape[place:]) != width:
        return None
    made: list[Step] = []
    pieces = [_new(raw, (*raw.shapes[source.number][:-1], width // count)) for _ in range(count)]
    made.append(
        replace(
            step,
            operator="split_with_sizes",
            arguments=(source, [width // count] * count, len(raw.shapes[source.number]) - 1),
            results=tuple(pieces),
            several=True,
        )
    )
    inner = [n for d, n in enumerate(shape) if d != place]
    moved = [d - (d > place) for d in order if d != place]
    for index, result in chosen:
        if len(chain) == 1:
            made.append(replace(step, arguments=(Value(pieces[index]), inner), results=(result,)))
            continue
        flat = _new(raw, tuple(inner))
        made.append(replace(step, arguments=(Value(pieces[index]), inner), results=(flat,)))
        made.append(replace(chain[1], arguments=(Value(flat), moved), results=(result,)))
    return {s.number for s in (*chain, *after)}, made


def _picks(steps: list[Step], rank: int) -> tuple[int, list[tuple[int, int]]] | None:
    """The dimension that all of ``steps`` index, and for each index its result."""
    found: list[tuple[int, int]] = []
    dims = set()
    for step in steps:
        if step.operator == "select" and step.results[0] is not None:
            dims.add(step.arguments[1] % rank)
            found.append((step.arguments[2], step.results[0]))
        elif step.operator == "aten.unbind.int":
            dims.add((step.arguments[1] if len(step.arguments) > 1 else 0) % rank)
            found += [(k, n) for k, n in enumerate(step.results) if n is not None]
        else:
            return None
    return (dims.pop(), found) if len(dims) == 1 and all(k >= 0 for k, _ in found) else None


def _new(raw: RawProgram, shape: tuple[int, ...]) -> int:
    """A new value of a shape."""
    number = len(raw.shapes)
    raw.shapes[number] = shape
    raw.roots[number] = number
    return number
