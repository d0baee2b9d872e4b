"""The code of the recipes for other libraries runs as it stands in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import latprune
from support.vision import torchvision

torchvision()
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (HOW_TO / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(blocks("huggingface.md")[0], names)
    assert type(names["again"]) is type(names["model"])
    assert 'license: "apache-2.0"' in (tmp_path / "pruned" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")
def test_coming_from_torch_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten calls, each beside ours; theirs run too where the package is installed, on names of their own."""
    monkeypatch.chdir(tmp_path)
    code = blocks("from-torch-pruning.md")
    ours, theirs = ([block for block in code if block.startswith(f"# {name}\n")] for name in ("latprune", "Torch-Pruning"))
    assert len(ours) == len(theirs) == 10 and len(code) == 21
    names: dict[str, Any] = {}
    exec(code[0], names)
    for block in ours:
        exec(block, names)
    assert names["graph"].groups["conv1"].columns - 2 == names["model"].conv1.out_channels
    assert 0 < names["found"]["small"].ratio and type(names["restored"]) is type(names["model"])
    assert names["result"].record.pruned.macs <= 0.5 * names["result"].record.dense.macs
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        return
    names = {}
    exec(code[0], names)
    for block in theirs:
        exec(block, names)
    assert names["restored"].conv1.out_channels < 16


@pytest.mark.filterwarnings("ignore")
def test_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("timm.md"):
        exec(block, names)
    assert names["result"].record.pruned.macs <= 0.5 * names["result"].record.dense.macs and type(names["net"]) is type(names["model"])


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks("lightning.md"):
        exec(block, names)
    assert len(names["result"].record.steps) == 2 and names["net"][0].out_channels < 16
    assert latprune.load_result(tmp_path / "pruned").record.pruned.macs <= 0.5 * names["result"].record.dense.macs
