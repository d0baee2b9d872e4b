from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.graph import Selection, trace
from latprune.surgery import prune


def layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Supervised(nn.Module):
    """A trunk with heads that run in training only; one reads a module's output, one a sum that no module made."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.mid, self.deep, self.head = layer(3, 16), layer(16, 24), layer(24, 32), nn.Conv2d(32, 5, 1)
        self.aux = nn.Sequential(layer(24, 12), nn.Conv2d(12, 5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        middle = self.mid(self.stem(x))
        if self.kind == "function":
            middle = middle * 0.5
        out = self.head(self.deep(middle))
        if self.training and self.kind != "none":
            assert self.kind != "fails" or x.shape[0] > 100
            return out, self.aux(middle)
        return out


X = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("kind", ["module", "function"])
def test_what_a_head_reads_in_training_stays_and_the_rest_goes(kind: str) -> None:
    model = Supervised(kind).eval()
    statistics = model.mid[1].running_mean.clone()
    state = torch.random.get_rng_state()
    graph = trace(model, X)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.equal(model.mid[1].running_mean, statistics)
    assert set(graph.groups) == {"stem.0", "deep.0"} and not model.training
    assert any("runs in training only" in kept.reason for kept in graph.kept_whole)
    prune(model, graph, Selection(kept={name: np.arange(group.units // 2) for name, group in graph.groups.items()}))
    out, aux = model.train()(X)
    (out.mean() + aux.mean()).backward()


@pytest.mark.parametrize("kind", ["none", "fails"])
def test_a_module_that_never_runs_keeps_nothing(kind: str) -> None:
    assert set(trace(Supervised(kind).eval(), X).groups) == {"stem.0", "mid.0", "deep.0"}


class Beside(nn.Module):
    """A branch in training that begins with an operation that the run in evaluation mode does not have."""

    def __init__(self, branch: Callable[[Beside, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.mid, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1), nn.Linear(24, 5)
        self.linear, self.conv, self.weight = nn.Linear(16, 5), nn.Conv2d(16, 5, 1), nn.Parameter(torch.randn(5, 16))
        self.grouped = nn.Conv2d(16, 4, 1, groups=2)
        self.branch = branch

    def forward(self, x: Tensor) -> Any:
        a = torch.relu(self.stem(x))
        y = self.out(torch.relu(self.mid(a)).mean((2, 3)))
        return (y, self.branch(self, a)) if self.training else y


@pytest.mark.parametrize(
    "branch",
    [
        lambda m, a: m.linear(a.mean((2, 3))),
        lambda m, a: m.conv(nn.functional.interpolate(a, scale_factor=2.0)),
        lambda m, a: m.grouped(a * 2),
        lambda m, a: a.mean((2, 3)) @ m.weight.T,
        lambda m, a: nn.functional.linear(a.mean((2, 3)), m.linear.weight),
        lambda m, a: (a.mean((2, 3)) * m.weight[0]).sum(),
        lambda m, a: a.mean((2, 3)),
    ],
)
def test_functional_branches_of_training_keep_what_they_read(branch: Callable[[Beside, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Beside(branch).eval()
    result = latprune.prune(model, X, budget="params=40%", method="uniform", measure_latency=False)
    assert model.stem.out_channels == 16 and model.mid.out_channels < 24
    assert any("kept whole so that the network can be trained: stem" in note for note in result.record.notes)
    out, aside = model.train()(X)
    (out.mean() + aside.mean()).backward()


class DeeplySupervised(nn.Module):
    """Heads that run in both modes; evaluation returns the last alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)])
        self.heads = nn.ModuleList([nn.Conv2d(16, 4, 1), nn.Conv2d(24, 4, 1)])

    def forward(self, x: Tensor) -> Any:
        found = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = torch.relu(stage(x))
            found.append(head(x))
        return found if self.training else found[-1]


def test_what_training_returns_stays_whole() -> None:
    graph = trace(DeeplySupervised().eval(), X)
    assert set(graph.groups) == {"stages.0", "stages.1"}
    assert graph.notes == ("kept whole so that the network can be trained: heads.0 (returned in training mode)",)
    assert graph.notes[0] in graph.describe()


class Supplied(Beside):
    """Training needs targets."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        a = torch.relu(self.stem(x))
        out = self.out(torch.relu(self.mid(a)).mean((2, 3)))
        if not self.training:
            return out
        if y is None:
            raise ValueError("targets are needed\n(a tensor of classes)")
        return nn.functional.cross_entropy(out, y) + nn.functional.cross_entropy(self.linear(a.mean((2, 3))), y)


def test_a_model_that_wants_targets_is_told_or_uses_those_of_the_inputs() -> None:
    model, targets = Supplied(lambda m, a: a).eval(), torch.tensor([0, 1])
    (note,) = trace(model, X).notes
    assert "raised ValueError: targets are needed. Give example inputs with which it runs in training mode" in note
    graph = trace(model, (X, targets))
    assert set(graph.groups) == {"mid"} and "stem (read by 'linear'" in graph.notes[0]


def test_a_branch_whose_inside_is_read_in_training_stays() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.aux, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 1), nn.Conv2d(16, 5, 1)
            self.body = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1))
            self.behind = False

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            inside = self.body(x)
            whole = x + inside
            out = self.out(whole)
            return (out, self.aux(whole if self.behind else inside)) if self.training else out

    model = Read().eval()
    (block,) = trace(model, X).blocks.values()
    assert not block.removable and "'aux', which runs in training only" in block.reason
    model.behind = True
    (block,) = trace(model, X).blocks.values()
    assert not block.reason.startswith("what is computed inside")


def test_dropout_in_training_keeps_nothing() -> None:
    class Dropping(Supervised):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.dropout2d(self.mid(self.stem(x)), 0.3, self.training)
            return self.head(self.deep(x))

    model = Dropping("none").eval()
    state = torch.random.get_rng_state()
    graph = trace(model, X)
    assert set(graph.groups) == {"stem.0", "mid.0", "deep.0"} and not graph.notes
    assert torch.equal(torch.random.get_rng_state(), state)


def test_attention_modules_are_no_training_branches() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    graph = latprune.trace(model, torch.randn(2, 5, 16))
    assert not any("training only" in kept.reason for kept in graph.kept_whole)
