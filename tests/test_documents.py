"""The documents say what the code does: their commands parse, their names exist, their links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from latprune.cli import build_parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of ``language`` in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_commands_parse(path: Path) -> None:
    parser = build_parser()
    for block in blocks(path, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.strip().removeprefix("$ ")
            if not line.startswith("$ latprune") or "..." in command or "COMMAND" in command or "--help" in command:
                continue
            parser.parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in blocks(path, "console"):
        for line in re.findall(r"^\$ make ([a-z -]+)", block, re.MULTILINE):
            assert set(line.split()) <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_python_is_python_and_its_names_exist(path: Path) -> None:
    for block in blocks(path, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latprune"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "latprune":
                assert hasattr(importlib.import_module("latprune"), node.attr), node.attr


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_to_files_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_the_custom_operation_example_runs() -> None:
    code = "\n".join(blocks(ROOT / "docs" / "how-to" / "custom-operations.md", "python"))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "largest difference" in process.stdout


def test_the_comparison_is_the_same_everywhere() -> None:
    table = (ROOT / "docs" / "comparison-table.md").read_text(encoding="utf-8")
    assert table.strip() and table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    (commands,) = [action.choices for action in build_parser()._actions if action.dest == "command"]
    assert [name for name in commands or () if f"| `{name}` |" not in reference] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(path.relative_to(ROOT / "docs")) for path in sorted((ROOT / "docs").rglob("*.md"))]
    assert [page for page in pages if f": {page}" not in navigation and page != "comparison-table.md"] == []


def test_the_benchmark_page_is_what_the_results_say() -> None:
    command = [sys.executable, str(ROOT / "tools" / "benchmark_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
