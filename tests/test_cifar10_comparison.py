"""The comparison at equal measured latency: its networks, its search for Torch-Pruning's ratio, its rows."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import latprune
from latprune.zoo import cifar_resnet

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "cifar10"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports modules of the benchmark, whose names are its own, and forgets them afterwards."""
    names = {path.stem for path in HERE.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    monkeypatch.syspath_prepend(str(HERE))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def trained_like(depth: int) -> Any:
    """A network with zero-padding shortcuts whose norms have statistics, as if it were trained."""
    torch.manual_seed(1)
    model = cifar_resnet(depth).train()
    for _ in range(3):
        model(torch.randn(16, 3, 32, 32))
    return model.eval()


def test_convolution_shortcuts_compute_what_padding_does_and_can_be_pruned_whole(benchmark: Any) -> None:
    networks = benchmark("networks")
    padded, x = trained_like(8), torch.randn(4, 3, 32, 32)
    model = networks.with_convolution_shortcuts(padded, 8, torch.randn(64, 3, 32, 32))
    torch.testing.assert_close(model(x), padded(x), rtol=1e-4, atol=1e-4)
    assert not any("Pad" in type(module).__name__ for module in model.modules())
    # A channel that padding left empty learns: its scale is zero, its filter is not.
    norm, conv = model.layer2[0].shortcut[1], model.layer2[0].shortcut[0]
    assert int((norm.weight == 0).sum()) == 16 and bool((conv.weight[norm.weight == 0].abs().sum(dim=(1, 2, 3)) > 0).all())


def test_the_least_ratio_that_meets_a_target_is_found_though_latency_rises_again(benchmark: Any) -> None:
    rivals, structures = benchmark("rivals"), benchmark("structures")
    asked: list[float] = []

    def share(ratio: float) -> float:
        asked.append(ratio)
        return 1.0 if ratio > 0.9 else 1.0 - ratio

    found, tried = rivals.least_ratio(share, 0.45)
    assert 0.45 * (1 - rivals.TOLERANCE) <= 1.0 - found <= 0.45 * (1 + rivals.TOLERANCE)
    assert list(tried) == asked and len(asked) <= 10
    with pytest.raises(structures.Unreachable, match="lowest share of 10 ratios is 0.100") as caught:
        rivals.least_ratio(share, 0.05)
    assert caught.value.floor == pytest.approx(0.1)


def test_a_step_in_latency_leaves_the_network_just_below_it(benchmark: Any) -> None:
    rivals = benchmark("rivals")
    found, tried = rivals.least_ratio(lambda ratio: 0.8 if ratio < 0.55 else 0.3, 0.5)
    assert tried[found] == 0.3 and 0.55 <= found < 0.56


def test_structures_are_read_back_to_the_bit(benchmark: Any, tmp_path: Path) -> None:
    networks, structures = benchmark("networks"), benchmark("structures")
    model, x = trained_like(8), torch.randn(2, 3, 32, 32)
    dense = networks.Dense(name="resnet8", model=model, example=x[:1], accuracy=0.5, note="")
    graph = latprune.trace(model, x[:1])
    selection = latprune.graph.Selection(kept={"layer1.0.conv1": np.arange(0, 16, 2)}, removed_blocks=frozenset())
    network = structures.cut(dense, graph, selection)
    with torch.no_grad():
        network.linear.weight.mul_(2.0)
    assert structures.Structure.load(tmp_path / "none", dense, graph) is None
    structures.Structure(network=network, selection=selection, found={"ratio": 0.5}).save(tmp_path / "a-s0")
    read = structures.Structure.load(tmp_path / "a-s0", dense, graph)
    assert read.found == {"ratio": 0.5} and torch.equal(read.network(x), network(x))
    assert benchmark("measuring").counted(graph, read.selection)["widths"]["layer1.0.conv1"] == 8


def test_the_rate_is_the_best_of_the_first_seed(benchmark: Any) -> None:
    rows = benchmark("rows")
    head = dict(network="a", engine="b", batch=1, budget="50%", method="best", epochs=1, train_images=10, distilled=False, seed=0)
    found = [{**head, "rate": 0.01, "trained": 0.8}, {**head, "rate": 0.03, "trained": 0.9}, {**head, "rate": 0.1, "trained": None}]
    found.append({**head, "seed": 1, "rate": 0.01, "trained": 0.95})
    assert rows.best_rate(found, head) == 0.03
    assert rows.best_rate(found, {**head, "method": "uniform"}) is None


@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_only_what_torch_pruning_does_counts_as_its_refusal(benchmark: Any, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    """An error in the reading of its groups is a mistake of the benchmark, not a row that says that the rival cannot."""
    networks, rivals, structures = benchmark("networks"), benchmark("rivals"), benchmark("structures")

    class Group(list):  # type: ignore[type-arg]
        def prune(self) -> None:
            raise IndexError("no such channel")

    class Pruner:
        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def step(self, interactive: bool) -> Iterator[Group]:
            yield Group([] if whose == "theirs" else [("no dependency", [0])])

    fake = SimpleNamespace(pruner=SimpleNamespace(BasePruner=Pruner), importance=MagicMock())
    monkeypatch.setattr(rivals, "_torch_pruning", lambda: fake)
    monkeypatch.setattr(rivals, "version", lambda package: "0")
    model, x = trained_like(8), torch.randn(1, 3, 32, 32)
    dense = networks.Dense(name="resnet8", model=model, example=x, accuracy=0.5, note="")
    error = structures.Unreachable if whose == "theirs" else AttributeError
    with pytest.raises(error, match="no such channel" if whose == "theirs" else "target"):
        rivals._pruned("tp_magnitude", dense, latprune.trace(model, x), 0.5, {})
