"""The packages stand above one another: an import leads downwards, whether at the top of a file, in a function or for types alone."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import latprune
from latprune.methods import Method, method_type, registered_methods

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


METHODS = {name: method_type(name) for name in registered_methods() if method_type(name).__module__.startswith("latprune.methods.")}


def _names_class(tree: ast.AST, cls: type[Method]) -> list[int]:
    """Lines that name a method's class: imports, attributes of ``latprune`` and ``methods``, and its name as text (in a list of exports).

    A class of another room may have the same name; a file that defines or imports that one speaks of it.
    """
    name, found, other = cls.__name__, [], False
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            if (node.module or "").split(".")[:2] in (["latprune"], ["latprune", "methods"]):
                found.append(node.lineno)
            else:
                other = True
        elif isinstance(node, ast.ClassDef) and node.name == name:
            other = True
        elif isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.value, ast.Name):
            found += [node.lineno] if node.value.id in ("latprune", "methods") else []
    if not other:
        found += [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == name]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_one_file_and_a_line_of_registration(method: str) -> None:
    """Nothing under ``src`` knows a method but its own file and the lines of ``methods/__init__.py`` that import and export it."""
    cls = METHODS[method]
    own, register = Path(*cls.__module__.split(".")[1:]).with_suffix(".py"), Path("methods", "__init__.py")
    texts = {path.relative_to(SOURCE): path.read_text() for path in sorted(SOURCE.rglob("*.py"))}
    places = {path: _names_class(ast.parse(text), cls) for path, text in texts.items() if cls.__name__ in text}
    assert {str(path): lines for path, lines in places.items() if lines and path not in (own, register)} == {}
    assert len(places[register]) == 2  # its import and its place in __all__
    assert getattr(latprune, cls.__name__) is cls and cls.__name__ in dir(latprune)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_page_and_its_test(method: str) -> None:
    """The table of methods links to the page, which says what is open, names each option, and runs; the test has its name."""
    root = Path(__file__).parents[1]
    pages = root / "docs" / "methods"
    page = dict(re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\) \|", (pages / "index.md").read_text(encoding="utf-8"), re.MULTILINE))[method]
    test = (root / "tests" / "methods" / f"test_{page}.py").read_text(encoding="utf-8")
    assert METHODS[method].__name__ in test or f'"{method}"' in test
    text = (pages / f"{page}.md").read_text(encoding="utf-8")
    parts = {title: body for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)}
    assert any(re.match(r"What the papers? leaves? open", title) for title in parts)
    told = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|.*", parts["Options"], re.MULTILINE))))
    assert {entry.name for entry in fields(METHODS[method])} <= told
    assert re.search(rf"--method {method}\s", parts["A run"])


def test_no_code_asks_which_method_it_is() -> None:
    """What differs between methods is said by their properties and schedules, not asked for by name."""
    asked = []
    for room in ("methods", "pruning", "cli", "report", "export", "resources"):
        for path in sorted((SOURCE / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare) and any(
                    isinstance(part, ast.Constant) and part.value in METHODS for part in (node.left, *node.comparators)
                ):
                    asked.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert asked == []
