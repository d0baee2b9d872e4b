"""What can be known at second 0 is told before anything is measured, and a folder is one run's at a time."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import latprune
from latprune.errors import CheckpointError, InvalidArgumentError, LatpruneError, SolverNotApplicableError
from latprune.export.verdict import verdict
from latprune.importance import MagnitudeConfig, TaylorConfig
from latprune.methods import MDP, SMCP
from latprune.pruning import preflight
from latprune.pruning.lock import locked
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
        ({"method": "uniform", "recover": "refit"}, InvalidArgumentError, "needs data="),
        ({"method": "uniform", "recover": "pray", "data": BATCHES}, InvalidArgumentError, "must be one of"),
        ({"method": "uniform", "evaluate": lambda model: 93.4}, InvalidArgumentError, "93.4"),
        ({"method": "uniform", "evaluate": lambda model: None}, InvalidArgumentError, "evaluate"),
        ({"method": "uniform", "evaluate": lambda model: 1 / 0}, InvalidArgumentError, "evaluate"),
    ],
)
def test_what_cannot_work_is_told_first(options, error, words):
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=words):
        latprune.prune(model, X, budget="50%", target="onnxruntime", **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_is_not_repeatable_is_refused():
    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x) + torch.rand(1)

    with pytest.raises(LatpruneError, match="each run|random|repeatable"):
        latprune.prune(Noisy(), X, budget="50%", method="uniform", target="onnxruntime")


def test_training_data_needs_a_length():
    preflight.check_training_data(BATCHES)
    with pytest.raises(InvalidArgumentError, match="len"):
        preflight.check_training_data(iter(BATCHES))


def test_a_folder_in_use_or_not_writable_is_refused(tmp_path: Path):
    code = """
import sys, time
from pathlib import Path
from latprune.pruning.lock import locked
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
