"""The documents say what the code does: their commands parse, their names exist, their links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import struct
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


def test_the_readme_is_one_screen() -> None:
    """A picture wider than high, two commands, the lines of Python and the table, without scrolling for long."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 75
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    width, height = struct.unpack(">II", (ROOT / picture).read_bytes()[16:24])
    assert height <= 0.75 * width
    assert len(blocks(ROOT / "README.md", "console")[0].splitlines()) == 2
    assert len(blocks(ROOT / "README.md", "python")[0].splitlines()) <= 12


def anchors(path: Path) -> set[str]:
    """What can stand behind ``#`` in a link to a page: its headings, as mkdocs names them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", words, flags=re.ASCII).strip().lower())
        # The same heading again has a number behind it.
        found.add(next(name for name in (slug, *(f"{slug}_{number}" for number in range(1, 99))) if name not in found))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_links_to_headings_lead_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        page = path.parent / target if target else path
        if page.suffix == ".md" and not page.is_relative_to(ROOT / "docs" / "api"):
            assert anchor in anchors(page), f"{target}#{anchor}"


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


@pytest.mark.parametrize("tool", ["benchmark_page", "gallery_page"])
def test_pages_of_figures_are_what_the_results_say(tool: str) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / f"{tool}.py"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "least"), [("docs/which-method.md", 40), ("docs/methods/smcp.md", 2), ("README.md", 3)])
def test_pages_quote_what_the_pages_of_figures_print(page: str, least: int) -> None:
    """Every accuracy, latency and time on that page stands on a page that is written from the results."""
    printed = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "papers.md"))
    figures = re.findall(r"\d+\.\d+ %|\b\d+ s\b", (ROOT / page).read_text(encoding="utf-8"))
    assert len(figures) >= least
    assert [figure for figure in figures if f" {figure}" not in printed] == []


def test_the_changelog_says_nothing_twice() -> None:
    entries = re.findall(r"^- (.{60})", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted({entry for entry in entries if entries.count(entry) > 1}) == []


def test_asking_a_tool_for_help_writes_no_file(tmp_path: Path) -> None:
    tool = ROOT / "tools" / "freeze_constraints.py"
    done = subprocess.run([sys.executable, str(tool), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage:" in done.stdout and list(tmp_path.iterdir()) == []
