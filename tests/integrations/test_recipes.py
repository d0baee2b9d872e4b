"""The code of the recipes for other libraries runs as it stands in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
