"""The packages stand above one another: an import leads downwards, whether at the top of a file, in a function or for types alone."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import latprune

SOURCE = Path(latprune.__file__).parent


@cache
def _rooms() -> dict[str, dict[str, list[str]]]:
    """For each package (or module of its own): the packages that it imports, and the lines that do."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE)
        room = inside.parts[0].removesuffix(".py")
        uses = found.setdefault(room, {})
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                if parts[0] == "latprune" and len(parts) > 1 and parts[1] != room:
                    uses.setdefault(parts[1], []).append(f"{inside}:{node.lineno}")
    return found


def test_no_circle_crosses_packages() -> None:
    rooms = _rooms()
    assert {"graph", "program", "surgery", "latency", "pruning", "cli"} <= set(rooms)
    try:
        order = tuple(TopologicalSorter({room: set(uses) for room, uses in rooms.items() if room != "__init__"}).static_order())
    except CycleError as error:
        circle = error.args[1]
        lines = [rooms[a].get(b) or rooms[b].get(a) for a, b in zip(circle, circle[1:], strict=False)]
        pytest.fail(f"packages import each other: {circle}, at {lines}")
    assert order.index("graph") < order.index("program") < order.index("cli")


@pytest.mark.parametrize(
    ("room", "knows_nothing_of"),
    [
        ("problem", {"graph", "latency", "importance", "solve", "surgery"}),
        ("solve", {"graph", "latency", "importance", "surgery", "methods"}),
        ("graph", {"program", "latency", "importance", "surgery", "train"}),
        ("importance", {"latency", "solve", "surgery", "methods"}),
        ("latency", {"importance", "solve", "methods", "pruning"}),
        ("train", {"solve", "methods", "pruning"}),
        ("zoo", {"graph", "latency", "surgery", "pruning"}),
    ],
)
def test_what_a_package_knows_nothing_of(room: str, knows_nothing_of: set[str]) -> None:
    uses = _rooms()[room]
    assert {other: uses[other] for other in knows_nothing_of & set(uses)} == {}
