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
    assert set(graph.groups) == {"stem.0", "mid.0", "deep.0"}
    assert [note.split(";")[0] for note in graph.notes] == ["not run on the example inputs: aux.0.0, aux.0.1, aux.1"]  # in no mode
    assert torch.equal(torch.random.get_rng_state(), state)


def test_attention_modules_are_no_training_branches() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    graph = latprune.trace(model, torch.randn(2, 5, 16))
    assert not any("training only" in kept.reason for kept in graph.kept_whole)


class Mode(nn.Module):
    """Three layers; what training mode does with their features is given."""

    def __init__(self, trained: Callable[[Mode, Tensor, Tensor, Tensor], Any], *, norm: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.width, self.trained = 8, trained

    def forward(self, x: Tensor) -> Any:
        first = torch.relu(self.norm(self.a(x).mean((2, 3), keepdim=True)))
        second = torch.relu(self.b(first))
        return self.trained(self, x, first, second) if self.training else self.c(second)


def keep_loss(model: Mode, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    model.loss = nn.functional.mse_loss(second, first.detach())
    return model.c(second)


@pytest.mark.parametrize(
    ("trained", "whole", "why"),
    [
        (keep_loss, "ab", "aten.mse_loss"),
        (lambda m, x, first, second: m.c(second + torch.randn_like(second) * first), "ab", "tied to other channels in training only"),
        (lambda m, x, first, second: m.c(second * (torch.rand(1, 8, 1, 1) > 0.1)), "b", "in training mode"),
        (lambda m, x, first, second: m.c(second.view(-1, 2, 4, 1).flip(0).view(-1, 8, 1, 1)), "b", "in training mode"),
        (lambda m, x, first, second: m.c(second.view(-1, m.width, 1, 1)), "b", "a size is computed of 'width', in training mode"),
        (lambda m, x, first, second: first, "a", "returned in training mode"),
        (lambda m, x, first, second: m.c(second * first.mean(1, keepdim=True)), "", ""),
        (lambda m, x, first, second: m.c(second * torch.rand(*second.shape[:2], 1, 1)), "", ""),
    ],
    ids=["loss", "noise", "size", "view", "attribute", "returned", "mean", "followed"],
)
def test_what_training_computes_of_known_layers_fits_the_pruned_network(
    trained: Callable[[Mode, Tensor, Tensor, Tensor], Any], whole: str, why: str
) -> None:
    model = Mode(trained).eval()
    graph = trace(model, X)
    assert set(graph.groups) == set("ab") - set(whole)
    assert {k.what: k.reason for k in graph.kept_whole if k.what in whole and why in k.reason}.keys() == set(whole)
    prune(model, graph, Selection(kept={name: np.arange(5) for name in graph.groups}))
    model.eval()(X)
    model.train()(X)


def test_the_run_in_training_mode_leaves_the_inputs_alone() -> None:
    def noisy(model: Mode, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        x += torch.randn_like(x)
        return model.c(second)

    x = torch.ones(2, 3, 4, 4)
    assert trace(Mode(noisy).eval(), {"x": x}).groups and bool((x == 1).all())


def test_a_forward_that_ends_the_process_in_training_is_told() -> None:
    def leave(*_: Any) -> None:
        raise SystemExit(3)

    (note,) = trace(Mode(leave).eval(), X).notes
    assert "raised SystemExit: 3" in note


def test_norms_that_refuse_a_batch_of_one_are_looked_at_with_two() -> None:
    graph = trace(Mode(lambda m, x, first, second: first, norm=True).eval(), X[:1])
    assert set(graph.groups) == {"b"} and graph.notes == ("kept whole so that the network can be trained: a (returned in training mode)",)


def test_a_forward_that_differentiates_in_training_is_followed() -> None:
    def penalised(model: Mode, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model.b(torch.relu(model.a(x))).sum(), x, create_graph=True)
        return model.c(second) + slope.pow(2).sum()

    graph = trace(Mode(penalised).eval(), X)
    assert set(graph.groups) == {"a", "b"} and not graph.notes


def test_a_parameter_that_a_module_is_handed_is_no_layer_of_training() -> None:
    class Placed(nn.Conv2d):
        def forward(self, x: Tensor, place: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) + place

    class Handing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.a, self.b = nn.Parameter(torch.randn(1, 8, 4, 4)), Placed(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.b(self.a(x, self.place)), 0.1, self.training)

    assert set(trace(Handing().eval(), torch.randn(2, 3, 4, 4)).groups) == {"a"}
