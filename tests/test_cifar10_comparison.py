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
    names = {path.stem for path in HERE.glob("*.py")} | {"result_file"}
    before = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    monkeypatch.syspath_prepend(str(HERE.parent / "latency"))
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
    rivals, structures = benchmark("rivals"), benchmark("structure")
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
    networks, structures = benchmark("networks"), benchmark("structure")
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
    head = dict(network="a", engine="b", batch=1, budget="50%", method="best", epochs=1, train_images=10, teacher="no", seed=0)
    found = [{**head, "rate": 0.01, "trained": 0.8}, {**head, "rate": 0.03, "trained": 0.9}, {**head, "rate": 0.1, "trained": None}]
    found.append({**head, "seed": 1, "rate": 0.01, "trained": 0.95})
    assert rows.best_rate(found, head) == 0.03
    assert rows.best_rate(found, {**head, "method": "uniform"}) is None


@pytest.mark.parametrize("whose", ["theirs", "ours"])
def test_only_what_torch_pruning_does_counts_as_its_refusal(benchmark: Any, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    """An error in the reading of its groups is a mistake of the benchmark, not a row that says that the rival cannot."""
    networks, rivals, structures = benchmark("networks"), benchmark("rivals"), benchmark("structure")

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


def options(**other: Any) -> SimpleNamespace:
    """What the command line gives a bench."""
    given = dict(prepare_epochs=2, dense_epochs=200, epochs=1, train_images=512, test_images=500, teacher="no", rates=[0.01], threads=1)
    return SimpleNamespace(**{**given, "scratch_rates": [0.1], "adamw_rates": [1e-4], "match_rates": [0.03], **other})


def bench_of(benchmark: Any, tmp_path: Path, name: str = "resnet8", **other: Any) -> Any:
    """A bench of a network that is not trained, on made-up images."""
    networks, module = benchmark("networks"), benchmark("bench")
    model, x = trained_like(8), torch.randn(1, 3, 32, 32)
    dense = networks.Dense(name=name, model=model, example=x, accuracy=0.5, note="made up")
    target = latprune.Target(engine=other.pop("engine", "torch"), threads=1, batch=other.pop("batch", 1))
    images = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    args = options(work=tmp_path, data=tmp_path, **other)
    return module.Bench(args=args, dense=dense, graph=latprune.trace(model, x), target=target, store=None, test=images)


def test_a_structure_that_training_makes_is_found_again_for_the_same_training_alone(benchmark: Any, tmp_path: Path) -> None:
    budget = benchmark("measuring").Budget(text="50%", share=0.5)
    other: tuple[dict[str, Any], ...] = ({"epochs": 200}, {"train_images": 50_000}, {"teacher": "classes"}, {"teacher": "match"})
    for name in ("smcp", "best=smcp"):
        assert len({bench_of(benchmark, tmp_path, **o).path(budget, name, 0) for o in ({}, *other)}) == 5
    for name in ("best", "tp_taylor", "from_scratch", "best=tp_taylor+recover"):
        assert len({bench_of(benchmark, tmp_path, **o).path(budget, name, 0) for o in ({}, *other, {"test_images": 9})}) == 1
    assert bench_of(benchmark, tmp_path).path(budget, "best", 0).name == "resnet8-2-200-torch-b1-50-best-s0"


def test_a_kept_structure_is_judged_again_on_another_number_of_test_images(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = benchmark("measuring").Budget(text="50%", share=0.5)
    bench = bench_of(benchmark, tmp_path)
    judged: list[int] = []

    def accuracy(self: Any, network: Any, data: Any = None) -> float:
        judged.append(self.args.test_images)
        return float(self.args.test_images)

    monkeypatch.setattr(type(bench), "accuracy", accuracy)
    structures = benchmark("structure")
    kept = structures.Structure(network=bench.dense.model, selection=latprune.graph.Selection(kept={}), found={"cut": 0.1})
    for name in ("best", "best+recover"):
        kept.save(bench.path(budget, name, 0))
    for _ in range(2):
        found = bench.started(budget, "best", 0).found
        assert (found["cut"], found["recovered"], found["test_images"]) == (500, 500, 500)
    assert len(judged) == 2
    assert bench_of(benchmark, tmp_path, test_images=100).started(budget, "best", 0).found["recovered"] == 100


def test_a_refusal_is_final_only_where_another_try_would_say_the_same(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structures, rows = benchmark("structure"), benchmark("rows")
    budget = benchmark("measuring").Budget(text="50%", share=0.5)
    file = benchmark("result_file").ResultFile(tmp_path / "rows.json", "rows", key=rows.KEY, completed=rows.completed)
    bench = bench_of(benchmark, tmp_path)
    tries: list[str] = []

    def cell(answer: Any) -> list[dict[str, Any]]:
        def started(self: Any, *_: Any) -> Any:
            tries.append("")
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(type(bench), "started", started)
        bench.cell(file, budget, "best", 0)
        return list(file.rows)

    (row,) = cell(structures.Unreachable("the engine is not installed", final=False))
    assert row["refused"] and not row["final"]
    structure = structures.Structure(network=bench.dense.model, selection=latprune.graph.Selection(kept={}), found={"ratio": 0.5})
    monkeypatch.setattr(type(bench), "trained", lambda self, *_: {"trained": 0.8})
    (row,) = cell(structure)
    assert row["trained"] == 0.8 and len(tries) == 2
    bench.cell(file, budget, "best", 0)
    assert len(tries) == 2
    file.rows = []
    cell(structures.Unreachable("no ratio meets the budget", 0.6))
    (row,) = cell(structure)
    assert row["final"] and row["floor"] == 0.6 and len(tries) == 3


@pytest.mark.parametrize(("error", "final"), [("BudgetInfeasibleError", True), ("SolverNotApplicableError", True), ("EngineError", False)])
def test_which_errors_of_ours_are_final(benchmark: Any, monkeypatch: pytest.MonkeyPatch, error: str, final: bool, tmp_path: Path) -> None:
    ours, structures = benchmark("ours"), benchmark("structure")
    kind = getattr(latprune.errors, error)
    raised = kind("it", limit={}, floor={}) if error == "BudgetInfeasibleError" else kind("it")

    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(ours.latprune, "Pruner", fail)
    bench, budget = bench_of(benchmark, tmp_path), benchmark("measuring").Budget(text="50%", share=0.5)
    with pytest.raises(structures.Unreachable) as caught:
        ours.own_structure(
            ours.OURS["best"],
            bench.dense,
            bench.graph,
            budget,
            bench.target,
            train=[],
            plain=[],
            masked=([], None),
            store=None,
            seed=0,
            threads=1,
        )
    assert caught.value.final == final


def test_rates_are_those_of_the_networks_optimizer(benchmark: Any, tmp_path: Path) -> None:
    convolutions, transformer = bench_of(benchmark, tmp_path), bench_of(benchmark, tmp_path, "vit")
    assert [convolutions.rates(name) for name in ("best", "from_scratch")] == [[0.01], [0.1]]
    assert [transformer.rates(name) for name in ("best", "from_scratch")] == [[1e-4], [1e-4]]
    assert type(transformer.recipe(1e-4, 0).optimizer).__name__ == "AdamW"


@pytest.mark.parametrize("recovered", [True, False])
def test_training_to_the_dense_network_compares_what_the_cut_left(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recovered: bool
) -> None:
    """Outputs and streams, no labels; norms stay only where they were measured again."""
    structures, module = benchmark("structure"), benchmark("bench")
    bench = bench_of(benchmark, tmp_path, teacher="match", device="cpu")
    groups = [name for name, width in bench.graph.dense_widths().items() if width == 32][:1]
    selection = latprune.graph.Selection(kept={name: np.arange(0, 32, 2) for name in groups})
    found = {"recovered": 0.5} if recovered else {}
    start = structures.Structure(network=structures.cut(bench.dense, bench.graph, selection), selection=selection, found=found)
    images = [(torch.randn(8, 3, 32, 32), torch.full((8,), -1)) for _ in range(2)]  # no label that any loss could read
    monkeypatch.setattr(module, "cifar10_train", lambda *_, **__: images)
    seen: list[Any] = []

    def judged(network: Any, data: Any) -> float:
        seen.append(network)
        if len(seen) == 1:
            raise KeyboardInterrupt
        return 0.75

    monkeypatch.setattr(module, "evaluate", judged)
    with pytest.raises(KeyboardInterrupt):
        bench.trained(start, 1e-3, 0, 2, tmp_path / "training")
    assert bench.trained(start, 1e-3, 0, 2, tmp_path / "training")["trained"] == 0.75  # goes on where it was interrupted
    assert not (tmp_path / "training").exists()
    assert all(torch.equal(one, other) for one, other in zip(*(network.state_dict().values() for network in seen), strict=True))
    norms = [name for name, _ in start.network.named_buffers() if name.endswith("running_mean")]
    moved = [not torch.equal(seen[0].get_buffer(name), start.network.get_buffer(name)) for name in norms]
    assert not any(moved) if recovered else all(moved)
    assert not torch.equal(seen[0].conv1.weight, start.network.conv1.weight)


def test_a_method_that_trains_under_masks_learns_from_the_dense_network_too(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark("bench")
    bench = bench_of(benchmark, tmp_path, teacher="match")
    seen: list[Any] = []
    monkeypatch.setattr(module, "own_structure", lambda *_, masked, **__: seen.append(masked))
    monkeypatch.setattr(module, "cifar10_train", lambda *_, **__: [])
    bench.searched(benchmark("measuring").Budget(text="50%", share=0.5), "smcp", 0)
    recipe = seen[0][1]
    assert recipe.distillation.loss == "matching" and len(recipe.distillation.features) >= 3 and not recipe.fixed_norms


@pytest.mark.parametrize(
    ("teacher", "kind", "rates", "relative"), [("match", "match", [0.03], True), ("match-absolute", "adamw", [1e-4], False)]
)
def test_matching_has_rates_of_its_own_or_one_for_all_tensors(
    benchmark: Any, tmp_path: Path, teacher: str, kind: str, rates: list[float], relative: bool
) -> None:
    bench = bench_of(benchmark, tmp_path, teacher=teacher, epochs=2)
    assert bench.training == kind and bench.rates("mdp") == bench.rates("from_scratch") == rates
    recipe = bench.recipe(rates[0], 0)
    assert recipe.optimizer.relative is relative and recipe.learning_rate == rates[0] and recipe.distillation.loss == "matching"
    assert bool(recipe.warmup_epochs) is relative and recipe.epochs == 2


def test_the_page_counts_a_structure_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE.parents[1] / "tools"))
    section = importlib.import_module("comparison_section")
    rows = [
        {"budget": "50%", "seed": 0, "method": method, "rate": rate, "structure_seconds": 100.0, "recovery_seconds": recovery, **trained}
        for method, recovery in (("tp_taylor", None), ("tp_taylor+recover", 10.0))
        for rate, trained in ((0.1, {"training_seconds": 1.0}), (0.2, {}))
    ]
    assert section._seconds(rows) == 100.0 + 10.0 + 2 * 1.0


def test_the_whole_comparison_is_two_engines_and_a_budget_of_resnet56_alone(benchmark: Any) -> None:
    module = benchmark("equal_latency")
    args = SimpleNamespace(**module.GPU, engine_device="cpu")
    assert [(target.engine, target.batch) for target in module.targets(args)] == [("onnxruntime", 1), ("onnxruntime", 64), ("openvino", 1)]
    assert [name for name in args.networks if "=resnet20" in module.applying(args.budgets, name)] == ["resnet56"]
    assert all(len(module.applying(args.budgets, name)) >= 4 for name in args.networks)


def test_the_committed_rows_stand_for_themselves(benchmark: Any) -> None:
    rows, result_file = benchmark("rows"), benchmark("result_file")
    path = HERE.parents[0] / "results" / "cifar10-equal-latency.json"
    file = result_file.ResultFile(path, "cifar10-equal-latency", key=rows.KEY, completed=rows.completed)
    assert file.rows and all(file.having(**{name: rows.completed(row)[name] for name in rows.KEY}) == [row] for row in file.rows)
