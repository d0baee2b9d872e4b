from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from latprune.cli import predictor as command
from latprune.cli import table
from latprune.errors import EngineError, InvalidArgumentError
from latprune.graph import trace
from latprune.latency import (
    CompiledNetwork,
    KernelPredictor,
    Store,
    SweepProgress,
    Target,
    build_tables,
    sweep_kernels,
    target_context,
    train_predictor,
)
from latprune.latency.engines import base
from latprune.latency.features import kernel_features
from latprune.latency.measuring.signature import kernel_signature
from latprune.latency.predicting import sweep
from latprune.latency.predicting.random_networks import random_network
from latprune.latency.predicting.sweep import _module_kernels
from latprune.latency.samples import SWEEP
from support.made_up_engine import MadeUpEngine, MadeUpNetwork

pytest.importorskip("sklearn")


class CountingEngine(MadeUpEngine):
    """Counts what is compiled; ``broken`` makes it refuse every network after so many."""

    name = "counting"
    compiled: ClassVar[int] = 0
    broken: ClassVar[int | None] = None
    error: ClassVar[type[BaseException]] = EngineError

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        CountingEngine.compiled += 1
        if self.broken is not None and CountingEngine.compiled > self.broken:
            raise self.error("out of order")
        return MadeUpNetwork(model, example_inputs, target, noise=0.0)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    base.ENGINES.register("counting", CountingEngine)
    monkeypatch.setattr(CountingEngine, "compiled", 0)
    monkeypatch.setattr(CountingEngine, "broken", None)
    monkeypatch.setattr(CountingEngine, "error", EngineError)
    yield Target(engine="counting")
    base.ENGINES.remove("counting")


def marks(store: Store, target: Target) -> list[int]:
    return [network.extra[SWEEP]["index"] for network in store.networks(target_context(target))]


def test_random_networks_are_the_same_again_and_cover_the_space() -> None:
    kinds: Counter[str] = Counter()
    sizes, sides = set(), set()
    again, others = random_network(0, 3, device="meta")
    for index in range(40):
        model, inputs = random_network(0, index, device="meta")
        if index == 3:
            assert str(model) == str(again) and inputs[0].shape == others[0].shape
        for kernel in _module_kernels(model, inputs):
            kinds[kernel.kind] += 1
            sizes |= {axis.constant for axis in kernel.axes}
            if kernel.kind != "linear":
                sides.add(kernel.attributes["output_shape"][-1])
    assert {"conv", "depthwise", "linear"} <= set(kinds) and kinds["conv"] > 200
    assert min(sizes) <= 4 and max(sizes) >= 1000
    assert any(size % 2 for size in sizes if size > 100) and len(sides) > 18
    assert str(random_network(1, 0, device="meta")[0]) != str(random_network(0, 0, device="meta")[0])


@pytest.mark.parametrize("index", [1, 2, 4, 9])
def test_layers_of_a_candidate_are_the_kernels_of_its_trace(index: int) -> None:
    """Networks are chosen without weights and without a trace; what is then measured must be what was judged."""
    model, inputs = random_network(0, index)
    assert all(torch.isfinite(output).all() for output in [model(*inputs)])
    graph = trace(model, inputs)
    widths = graph.dense_widths()
    kinds = ("conv", "depthwise", "linear")
    traced = [kernel for kernel in graph.kernels.values() if kernel.kind in kinds]
    candidates = _module_kernels(*random_network(0, index, device="meta"))
    assert [kernel.kind for kernel in traced] == [kernel.kind for kernel in candidates]
    for one, other in zip(traced, candidates, strict=True):
        wanted = kernel_features(kernel_signature(one), [axis.size(widths) for axis in one.axes])
        found = kernel_features(kernel_signature(other), [axis.constant for axis in other.axes])
        assert np.allclose(wanted, found)


def test_an_interrupted_sweep_goes_on(engine: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SweepProgress] = []
    monkeypatch.setattr(sweep, "_ROUND", 8)
    monkeypatch.setattr(sweep, "_CANDIDATES", 3)
    with Store(tmp_path / "s.sqlite") as store:
        monkeypatch.setattr(CountingEngine, "broken", 10)
        monkeypatch.setattr(CountingEngine, "error", KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep_kernels(engine, store, 32, progress=seen.append)
        assert marks(store, engine) == list(range(9)) and seen[-1].networks == 9
        monkeypatch.setattr(CountingEngine, "broken", None)
        assert sweep_kernels(engine, store, 32, progress=seen.append) == 23
        found = marks(store, engine)
        assert len(set(found)) == 32 and found[:24] == list(range(24))
        # From there on it goes where the predictor is in doubt, and not simply on.
        assert found[24:] != list(range(24, 32)) and seen[-1].adaptive and not seen[20].adaptive
        assert sweep_kernels(engine, store, 32) == 0
        assert sweep_kernels(engine, store, 2, seed=5) == 2


def test_the_sweep_teaches_the_predictor_kernels_of_other_networks(engine: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_LEAST_FIRST", 40)
    with Store(tmp_path / "s.sqlite") as store:
        sweep_kernels(engine, store, 40)
        context = target_context(engine)
        predictor = train_predictor(context, store.networks(context))
    errors, inside = [], []
    for index in range(1000, 1012):
        model, inputs = random_network(7, index)
        graph = trace(model, inputs)
        network = MadeUpNetwork(model, inputs, engine, noise=0.0)
        found = predictor.network(graph.kernels.values(), graph.dense_widths())
        errors.append(abs(found.ms / network.timed_run() - 1))
        inside.append(found.low <= network.timed_run() <= found.high)
    assert np.median(errors) < 0.1
    assert np.mean(inside) >= 0.75


def test_networks_that_cannot_be_measured_are_replaced_and_too_many_are_an_error(engine: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(":memory:") as store:
        monkeypatch.setattr(CountingEngine, "broken", 8)
        with pytest.raises(EngineError, match="could not be measured; the last: out of order"):
            sweep_kernels(engine, store, 30)
        assert marks(store, engine) == list(range(7))
        with pytest.raises(InvalidArgumentError, match="networks"):
            sweep_kernels(engine, store, 0)
        monkeypatch.setattr(CountingEngine, "broken", None)
        assert sweep_kernels(engine, store, 30, time_limit=0.0) == 0


def test_random_networks_are_listed_as_what_they_are(engine: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "s.sqlite")
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    command.add_parser(subparsers)
    table.add_parser(subparsers)

    def run(*arguments: str) -> str:
        args = parser.parse_args(arguments)
        assert args.run(args) == 0
        return capsys.readouterr().out

    train = ["predictor", "train", "--store", path, "--engine", "counting", "-o", str(tmp_path / "p.npz")]
    assert "4 random networks measured" in run(*train, "--sweep", "4")
    assert "0 random networks measured" in run(*train, "--sweep", "4")
    assert "0 networks of 0 structures, and 4 random ones for the predictor" in run("table", "--store", path, "ls")
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    x = torch.randn(1, 3, 8, 8)
    with Store(path) as store:
        tables = build_tables(model, trace(model, x), x, engine, store=store, max_networks=48)
    assert tables.stats.networks <= 48 and tables.stats.measured_networks == tables.stats.networks
    assert f"{tables.stats.networks} networks of 1 structure, and 4 random ones" in run("table", "--store", path, "ls")
    assert run("table", "--store", path, "show", "1").count("random  ") == 4
    assert KernelPredictor.load(tmp_path / "p.npz").context.target == engine
