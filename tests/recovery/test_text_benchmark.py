"""The benchmark of sentences: its docstrings, its halves, its score."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parents[2] / "benchmarks" / "recovery"


class Letters:
    """A tokenizer of the first eight letters."""

    def encode_batch(self, texts: list[str]) -> list[Any]:
        codes = [[min(ord(letter), 127) for letter in text[:8].ljust(8)] for text in texts]
        return [SimpleNamespace(ids=ids, attention_mask=[1] * 8) for ids in codes]


class Told(nn.Module):
    """Knows which module each sequence of letters is of; what it was not told is of the first."""

    def __init__(self, batches: list[tuple[dict[str, Tensor], Tensor]], modules: int) -> None:
        super().__init__()
        self.known = {tuple(ids.tolist()): int(m) for b, ms in batches for ids, m in zip(b["input_ids"], ms, strict=True)}
        self.modules = modules

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.eye(self.modules)[[self.known.get(tuple(ids.tolist()), 0) for ids in input_ids]]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("text")


def test_docstrings_are_real_ones_each_once(benchmark: Any) -> None:
    found = list(benchmark.docstrings())
    texts = [text for _, text in found]
    assert len(found) > 2000 and len(set(texts)) == len(texts)
    assert any(module == "json" and "Serialize ``obj`` to a JSON formatted ``str``" in text for module, text in found)
    assert not {module for module, _ in found} & {"test", "site-packages", "idlelib"}
    assert all(len(text.split()) >= benchmark.LEAST_WORDS for text in texts)


def test_halves_share_no_text_and_a_network_that_knows_scores_full(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [(f"module{k}", f"{k}{n:02d} {'word ' * 8}") for k in range(3) for n in range(44)]
    few = [("small", f"s{n:02d} {'word ' * 8}") for n in range(12)]
    monkeypatch.setattr(benchmark, "docstrings", lambda: iter(made + few))
    data = benchmark.Docstrings(Letters())
    assert data.modules == ["module0", "module1", "module2"]
    known, asked = ({tuple(ids.tolist()) for b, _ in half for ids in b["input_ids"]} for half in (data.known, data.asked))
    assert len(known) == len(asked) == 66 and not known & asked
    assert data.score(Told(data.known + data.asked, 3)) == pytest.approx(100.0)
    assert data.score(Told(data.known, 3)) == pytest.approx(100 / 3)
    assert len(data.unlabelled(40, seed=0)) == 2
    assert {id(b["input_ids"]) for b in data.unlabelled(96, 0)} == {id(b["input_ids"]) for b in data.unlabelled(96, 1)}
