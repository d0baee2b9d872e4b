"""What can be known at second 0 is told before anything is measured, and a folder is one run's at a time."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import latprune
from latprune.errors import (
    BudgetInfeasibleError,
    CheckpointError,
    EngineError,
    InvalidArgumentError,
    LatpruneError,
    MissingExtraError,
    SolverLimitError,
    SolverNotApplicableError,
)
from latprune.export.verdict import verdict
from latprune.importance import BNScaleConfig, CHIPConfig, DivergenceConfig, HRankConfig, MagnitudeConfig, TaylorConfig
from latprune.latency import Target
from latprune.methods import MDP, SMCP, SPLAMP, GlobalThreshold
from latprune.problem import Solution
from latprune.pruning import lock, preflight
from latprune.pruning.lock import locked
from latprune.recovery import Refit
from latprune.solve import Exact
from latprune.zoo import digits_resnet

X = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
BATCHES = [(torch.randn(4, 1, 32, 32), torch.randint(0, 10, (4,))) for _ in range(2)]


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch):
    """Whatever builds tables or times a network fails: the refusal must come first."""

    def refuse(*args, **options):
        raise AssertionError("something was measured before the refusal")

    monkeypatch.setattr("latprune.pruning.latency_source.build_tables", refuse)
    monkeypatch.setattr("latprune.pruning.trials.measure", refuse)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return digits_resnet(blocks=1, widths=(8, 16, 16)).eval()


def failing_loss(model, batch):
    raise RuntimeError("the labels are strings")


def endless():
    while True:
        yield BATCHES[0]


class failing_data:  # noqa: N801
    def __iter__(self):
        raise OSError("no such folder")


RECIPE = latprune.Recipe(epochs=1, learning_rate=0.1)
WRONG_LABELS = [(images, labels + 99) for images, labels in BATCHES]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"method": MDP(score=TaylorConfig())}, InvalidArgumentError, "needs them"),
        ({"method": MDP(score=TaylorConfig()), "data": []}, InvalidArgumentError, "data holds no batch"),
        ({"method": MDP(score=TaylorConfig()), "data": BATCHES, "loss": failing_loss}, InvalidArgumentError, "labels are strings"),
        ({"method": MDP(score=TaylorConfig()), "data": BATCHES, "loss": lambda m, b: m(b[0])}, InvalidArgumentError, "scalar"),
        ({"method": SMCP(), "data": BATCHES}, InvalidArgumentError, "while the network trains"),
        ({"method": MDP(score=MagnitudeConfig()), "solver": "group-knapsack"}, SolverNotApplicableError, "unary|one variable|width"),
        ({"method": MDP(score=MagnitudeConfig()), "solver": "simplex"}, InvalidArgumentError, "must be one of"),
        ({"method": "uniform", "fit": latprune.Recipe(epochs=1, learning_rate=0.1)}, InvalidArgumentError, "no data= to train on"),
        ({"method": "uniform", "fit": 3}, InvalidArgumentError, "latprune.Recipe or a function"),
        ({"method": "uniform", "recover": "refit"}, InvalidArgumentError, "give data="),
        ({"method": "uniform", "recover": "pray", "data": BATCHES}, InvalidArgumentError, "must be one of"),
        ({"method": "uniform", "fit": RECIPE, "data": endless()}, InvalidArgumentError, "no len"),
        ({"method": "uniform", "fit": RECIPE, "data": WRONG_LABELS, "recover": False}, InvalidArgumentError, "hold the class 1"),
        ({"method": "uniform", "fit": RECIPE, "data": BATCHES, "loss": failing_loss}, InvalidArgumentError, "labels are strings"),
        ({"method": "uniform", "data": [{"pictures": BATCHES[0][0]}]}, InvalidArgumentError, "recover=False"),
        ({"method": "uniform", "data": [(BATCHES[0][0][0], 1)]}, InvalidArgumentError, "these are single examples; give DataLoader"),
        ({"data": [(BATCHES[0][0][0], 1)]}, InvalidArgumentError, "these are single examples; give DataLoader"),
        ({"method": "uniform", "data": failing_data()}, InvalidArgumentError, "no such folder"),
        ({"method": "uniform", "solver": "highs"}, InvalidArgumentError, "makes no problem"),
        ({"method": SPLAMP(), "solver": "group-knapsack", "budget": ["50%", "params=60%"]}, SolverNotApplicableError, "one limit"),
        ({"method": "uniform", "widths": latprune.WidthRules(multiple_of={"nowhere.*": 8})}, InvalidArgumentError, "nowhere"),
        ({"method": "uniform", "slack": 1.5}, InvalidArgumentError, "slack"),
        ({"method": "uniform", "time_limit": 0.0}, InvalidArgumentError, "time_limit"),
        ({"method": "uniform", "keep": "conv1"}, InvalidArgumentError, "list of names"),
        ({"method": "uniform", "schedule": "slowly"}, InvalidArgumentError, "must be one of"),
        ({"method": "uniform", "solver": 3}, InvalidArgumentError, "solver's name"),
        ({"method": "uniform", "recovery_images": 0, "data": BATCHES}, InvalidArgumentError, "recovery_images"),
        (
            {"method": "uniform", "recovery_images": "many", "data": BATCHES},
            InvalidArgumentError,
            "recovery_images .='many'. must be a whole",
        ),
        ({"method": "uniform", "recovery_images": 1.5, "data": BATCHES}, InvalidArgumentError, r"recovery_images \(=1.5\) must be a whole"),
        ({"method": "uniform", "importance_batches": "all", "data": iter(BATCHES)}, InvalidArgumentError, "importance_batches"),
        ({"method": "uniform", "name": 5}, InvalidArgumentError, r"name \(=5\) must be a text"),
        (
            {"method": "uniform", "constructor": digits_resnet},
            InvalidArgumentError,
            r"constructor .*such as 'latprune.zoo.digits:digits_resnet",
        ),
        ({"method": "uniform", "constructor": 5}, InvalidArgumentError, r"constructor \(=5\) must be a text"),
        ({"method": "uniform", "arguments": [4]}, InvalidArgumentError, r"arguments \(=\[4\]\) must be a mapping"),
        ({"method": "uniform", "arguments": {4: 4}}, InvalidArgumentError, "arguments has the key 4"),
        (
            {"method": "uniform", "arguments": {"n": torch.tensor(4)}},
            InvalidArgumentError,
            r"arguments\['n'\] \(=tensor\(4\)\).*JSON value",
        ),
        ({"method": "uniform", "arguments": {"n": [{"a": float("nan")}]}}, InvalidArgumentError, r"arguments\['n'\]\[0\]\['a'\] \(=nan\)"),
        ({"method": "uniform", "progress": 3}, InvalidArgumentError, r"progress \(=3\) must be a function of one line"),
        ({"method": "uniform", "pick": {"budget": "50%"}}, InvalidArgumentError, "pick .*must be a network of an exploration"),
        ({"method": "uniform", "data": [torch.randn(2, 3, 5)]}, InvalidArgumentError, "they lack a dimension; give batches with as many"),
        ({"method": "uniform", "candidates": 0, "data": BATCHES}, InvalidArgumentError, "candidates"),
        ({"method": "uniform", "recover": Refit(ridge=0.01)}, InvalidArgumentError, r"recover \(='refit'\) needs.*--data, or --images"),
        ({"schedule": latprune.SoftMasks(), "data": BATCHES, "fit": RECIPE}, InvalidArgumentError, "data of its own"),
        (
            {"method": "smcp", "data": BATCHES, "fit": replace(RECIPE, epochs=5)},
            InvalidArgumentError,
            r"no mask within the 10 optimizer steps .* every \(=10\)",
        ),
        (
            {"method": SMCP(masks=latprune.SoftMasks(every=1, warmup=1.0, cooldown=0.0)), "data": BATCHES, "fit": RECIPE},
            InvalidArgumentError,
            r"no mask within the 2 optimizer steps .* warmup \(=1.0\)",
        ),
        (
            {"method": SMCP(masks=latprune.SoftMasks(every=3)), "data": BATCHES, "fit": replace(RECIPE, epochs=3, accumulate=2)},
            InvalidArgumentError,
            "no mask within the 3 optimizer steps",
        ),
        (
            {"method": "smcp", "data": BATCHES, "fit": RECIPE, "candidates": 2, "evaluate": BATCHES},
            InvalidArgumentError,
            "trained under masks",
        ),
        ({"method": "uniform", "evaluate": lambda model: 93.4}, InvalidArgumentError, "93.4"),
        ({"method": "uniform", "evaluate": lambda model: None}, InvalidArgumentError, "evaluate"),
        ({"method": "uniform", "evaluate": lambda model: 1 / 0}, InvalidArgumentError, "evaluate"),
    ],
)
def test_what_cannot_work_is_told_first(options, error, words):
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=words):
        latprune.prune(model, X, **{"budget": "50%", "target": "onnxruntime", **options})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Counted:
    """Test batches that count how many of them were read."""

    def __init__(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.batches, self.read = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.read += 1
            yield batch


class WithoutNorms(torch.nn.Sequential):
    def __init__(self) -> None:
        layers = torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        super().__init__(*layers, torch.nn.Linear(8, 10))


@pytest.fixture
def no_executorch(monkeypatch):
    for module in ("executorch", "executorch.version"):
        monkeypatch.setitem(sys.modules, module, None)


BY_MAGNITUDE = MDP(score=MagnitudeConfig())
COUNTED = {"budget": "flops=50%", "measure_latency": False}
MASKED = {**COUNTED, "method": SPLAMP(stages=2, between="mask"), "data": BATCHES}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"budget": ["50%", "60%@executorch"]}, MissingExtraError, "executorch"),
        ({"target": "executorch"}, MissingExtraError, "executorch"),
        ({"budget": "flops=50%", "target": "executorch"}, MissingExtraError, "executorch"),
        ({"target": Target(engine="torch", device="cuda:99")}, EngineError, "cuda:99"),
        ({"budget": "flops=50%", "target": Target(engine="torch", device="cuda:99")}, EngineError, "cuda:99"),
        ({"target": Target(engine="onnxruntime", precision="bf16")}, EngineError, "bf16"),
        ({"budget": ["50%", "flops=10G"]}, InvalidArgumentError, "'flops=10G'.*above the dense network's"),
        ({**COUNTED, "budget": "flops=10G"}, InvalidArgumentError, "'flops=10G'.*above the dense network's"),
        ({"budget": ["50%", "params=10"]}, BudgetInfeasibleError, r"params \(=10 parameters\) must be at least [0-9]+ parameters"),
        ({**COUNTED, "budget": ["flops=90%", "params=0.1%"]}, BudgetInfeasibleError, "params .* must be at least"),
        ({"method": "uniform", "candidates": 3, "data": BATCHES}, InvalidArgumentError, "solves no problem"),
        ({"method": "greedy", "candidates": 3, "data": BATCHES}, InvalidArgumentError, "solves no problem"),
        ({**MASKED, "fit": replace(RECIPE, ema=0.9)}, InvalidArgumentError, "recipe.ema"),
        ({**MASKED, "fit": replace(RECIPE, precision="fp16")}, InvalidArgumentError, "recipe.precision"),
        ({**COUNTED, "method": "smcp", "data": BATCHES, "fit": replace(RECIPE, ema=0.9)}, InvalidArgumentError, "recipe.ema"),
        ({"budget": "flops=50%", "method": SPLAMP(contributions="whole-network")}, InvalidArgumentError, "needs a latency budget"),
        (
            {**COUNTED, "method": GlobalThreshold(score=HRankConfig()), "data": BATCHES, "form": "program"},
            InvalidArgumentError,
            "captured program",
        ),
        (
            {**COUNTED, "method": GlobalThreshold(score=CHIPConfig()), "data": BATCHES, "form": "program"},
            InvalidArgumentError,
            "captured program",
        ),
    ],
)
def test_what_cannot_work_is_told_before_the_dense_network_is_evaluated(no_executorch, options, error, words):
    evaluated = []
    with pytest.raises(error, match=words):
        latprune.prune(
            network(), X, **{"budget": "50%", "target": "onnxruntime", "method": BY_MAGNITUDE, "evaluate": evaluated.append, **options}
        )
    assert not evaluated


@pytest.mark.parametrize("score", [BNScaleConfig(), DivergenceConfig(rank=BNScaleConfig())])
def test_a_criterion_that_cannot_score_the_network_is_told_before_it_is_evaluated(score):
    evaluated = []
    with pytest.raises(InvalidArgumentError, match="no norm with a scale"):
        latprune.prune(WithoutNorms(), X, method=MDP(score=score), data=BATCHES, evaluate=evaluated.append, **COUNTED)
    assert not evaluated


def test_a_network_needs_its_engine_for_as_much_as_is_measured_on_it(no_executorch):
    latprune.Pruner(network(), X, budget="flops=50%", target="executorch", method="uniform").step()
    with pytest.raises(MissingExtraError, match="executorch"):
        latprune.explore(network(), X, resource="flops", measure=2, target="executorch", data=failing_data())


def test_an_exploration_lets_one_batch_of_the_test_set_go_first():
    test_set = Counted([*WRONG_LABELS, *BATCHES])
    with pytest.raises(InvalidArgumentError, match="hold the class 1"):
        latprune.explore(network(), X, resource="flops", measure=1, target="torch", evaluate=test_set, data=failing_data())
    assert test_set.read == 1


def test_a_recipe_goes_with_masks_that_nothing_trains_under():
    cut = {**MASKED, "method": SPLAMP(stages=2), "recover": False}
    assert latprune.prune(network(), X, fit=replace(RECIPE, ema=0.9), **cut).verdict == "under"


def test_one_batch_of_the_test_set_goes_first():
    test_set = Counted([*WRONG_LABELS, *BATCHES])
    with pytest.raises(InvalidArgumentError, match="hold the class 1"):
        latprune.prune(network(), X, method="uniform", evaluate=test_set, **COUNTED)
    assert test_set.read == 1
    with pytest.raises(InvalidArgumentError, match="no example"):
        latprune.prune(network(), X, method="uniform", evaluate=[], **COUNTED)
    unlabelled = (BATCHES[0][0], torch.full((4,), -1))  # a first batch without a target is no reason to refuse
    assert latprune.prune(network(), X, method="uniform", evaluate=[unlabelled, *BATCHES], **COUNTED).record.accuracies


def test_a_test_set_that_can_be_read_once_serves_every_evaluation():
    known = latprune.prune(network(), X, method="uniform", evaluate=BATCHES, **COUNTED).record.accuracies
    assert latprune.prune(network(), X, method="uniform", evaluate=iter(BATCHES), **COUNTED).record.accuracies == known


def test_a_limit_that_the_smallest_network_meets_is_not_refused():
    graph = latprune.trace(network(), X)
    smallest = {name: group.min_width for name, group in graph.groups.items()}
    removed = [block.name for block in graph.blocks.values() if block.removable]
    least = int(graph.parameters(smallest, removed))
    latprune.Pruner(network(), X, budget=f"params={least}", measure_latency=False)
    with pytest.raises(BudgetInfeasibleError) as refused:
        latprune.Pruner(network(), X, budget=f"params={least - 1}", measure_latency=False)
    assert refused.value.floor == {"params": least} and refused.value.limit == {"params": least - 1}
    with pytest.raises(BudgetInfeasibleError) as refused:
        rules = latprune.WidthRules(min_share=0.5)
        latprune.Pruner(network(), X, budget=f"params={least}", widths=rules, measure_latency=False)
    assert refused.value.floor["params"] > least


def test_a_model_that_is_not_repeatable_is_refused():
    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x) + torch.rand(1)

    with pytest.raises(LatpruneError, match="each run|random|repeatable"):
        latprune.prune(Noisy(), X, budget="50%", method="uniform", target="onnxruntime")


def test_a_busy_machine_is_no_reason_to_refuse(monkeypatch):
    """The stand-in's solve has a time limit; a solver that reaches it has taken the problem."""
    run = Exact.run

    def slow(self, problem, control):
        return Solution(solver="exact", status="limit") if control.left < 6.0 else run(self, problem, control)

    monkeypatch.setattr(Exact, "run", slow)
    options = {"budget": "flops=50%", "method": MDP(score=MagnitudeConfig()), "measure_latency": False}
    assert latprune.prune(network(), X, **options).verdict == "under"
    with pytest.raises(SolverLimitError, match="raise time_limit") as caught:
        latprune.prune(network(), X, time_limit=5.0, **options)
    assert caught.value.exit_code == 4


def test_the_batch_that_was_tried_is_the_first_that_counts():
    def counted(model, batch):
        seen.append(batch)
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    options = {"budget": "flops=50%", "method": MDP(score=TaylorConfig()), "measure_latency": False}
    for limit in (None, 1):
        seen: list[object] = []
        model, alone = network(), network()
        latprune.prune(model, X, data=BATCHES, loss=counted, recover=False, importance_batches=limit, **options)
        assert [batch is expected for batch, expected in zip(seen, BATCHES, strict=False)] == [True] * (limit or len(BATCHES))
        latprune.Pruner(alone, X, **options).step(BATCHES, batches=limit)
        assert all(torch.equal(value, alone.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_batch_that_was_tried_on_other_weights_does_not_count():
    def touched(model):
        with torch.no_grad():
            model.conv1.weight.mul_(1.5)
        return 0.5

    options = {"budget": "flops=50%", "method": MDP(score=TaylorConfig()), "measure_latency": False}
    model, alone = network(), network()
    latprune.prune(model, X, data=BATCHES, evaluate=touched, recover=False, **options)
    touched(alone)
    latprune.Pruner(alone, X, **options).step(BATCHES)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in alone.parameters())


def test_a_loss_of_ones_own_trains_by_a_recipe_too():
    calls = []

    def squares(model, batch):
        calls.append(model.training)
        return model(batch[0]).square().mean()

    latprune.prune(
        network(),
        X,
        budget="flops=50%",
        method="uniform",
        data=[(images, None) for images, _ in BATCHES],
        loss=squares,
        fit=RECIPE,
        recover=False,
        measure_latency=False,
    )
    assert calls == [False, True, True]  # once before anything begins, then the epoch


def test_training_data_needs_a_length():
    preflight.check_training_data(BATCHES)
    with pytest.raises(InvalidArgumentError, match="len"):
        preflight.check_training_data(iter(BATCHES))


def test_a_folder_in_use_or_not_writable_is_refused(tmp_path: Path):
    code = """
import sys, time
from pathlib import Path
from latprune.problem import Solution
from latprune.pruning.lock import locked
from latprune.recovery import Refit
from latprune.solve import Exact
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="in use by another run"):
            latprune.prune(network(), X, budget="flops=50%", method="uniform", folder=tmp_path / "run", measure_latency=False)
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    with locked(tmp_path / "run"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgumentError, match="cannot be written"), locked(tmp_path / "file" / "run"):
        pass


def test_one_rule_for_budgets():
    assert verdict(4.9, 0.05, 5.0) == "under"
    assert verdict(4.98, 0.05, 5.0) == "close" and verdict(5.08, 0.05, 5.0) == "close"
    assert verdict(5.2, 0.05, 5.0) == "over"
    assert verdict(5.0, 0.0, 5.0) == "under" and verdict(5.001, 0.0, 5.0) == "over"


def test_a_refused_run_leaves_no_folder(tmp_path):
    """Neither the folder nor its lock; one that was there, or that holds something, stays."""
    old = tmp_path / "old"
    old.mkdir()
    for place in (tmp_path / "new", old):
        with pytest.raises(InvalidArgumentError, match="slack"):
            latprune.prune(network(), X, budget="flops=50%", slack=2.0, folder=place)
    assert not (tmp_path / "new").exists() and old.exists()
    with pytest.raises(ValueError, match="late"), locked(tmp_path / "begun"):
        (tmp_path / "begun" / "state.json").write_text("{}")
        raise ValueError("late")
    assert (tmp_path / "begun" / "state.json").exists()


def test_a_lock_whose_folder_went_holds_nothing(tmp_path, monkeypatch):
    """Who waited for a run that left nothing makes the folder anew."""
    place = tmp_path / "run"
    tries = []

    def removed_under_it(descriptor: int) -> bool:
        tries.append(descriptor)
        if len(tries) == 1:
            (place / lock.LOCK).unlink()
            place.rmdir()
        return True

    monkeypatch.setattr(lock, "_lock", removed_under_it)
    with locked(place):
        assert len(tries) == 2 and (place / lock.LOCK).exists()


def test_inputs_that_are_not_finite_are_told_first():
    spoiled = [(torch.full((4, 1, 32, 32), float("nan")), torch.zeros(4).long())]
    with pytest.raises(InvalidArgumentError, match="batch 0 of data holds values that are not finite"):
        latprune.prune(network(), X, budget="flops=70%", method="uniform", data=spoiled, measure_latency=False)
