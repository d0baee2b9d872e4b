from __future__ import annotations

import random
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from latprune.errors import CaptureError
from latprune.graph import trace
from latprune.graph.conditions import check_repeatable


class Careless(nn.Module):
    """Dropout that ignores eval(), noise, numbers of Python's own generator, or a counter."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.last, self.kind, self.runs = nn.Linear(8, 16), nn.Linear(16, 4), kind, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        self.runs += 1
        if self.kind == "dropout":
            x = functional.dropout(x, 0.5)
        elif self.kind == "noise":
            x = x + torch.randn_like(x)
        elif self.kind == "python":
            x = x * random.random()
        elif self.kind == "unused":
            torch.rand(3)
        elif self.kind == "counter":
            x = x * self.runs
        return self.last(x)


@pytest.mark.parametrize("kind", ["dropout", "noise"])
def test_a_random_model_is_refused_when_it_is_traced(kind: str) -> None:
    with pytest.raises(CaptureError, match="another output at each run"):
        trace(Careless(kind), torch.randn(3, 8))


@pytest.mark.parametrize("kind", ["dropout", "noise", "python", "counter"])
def test_what_differs_between_runs_is_refused_and_nothing_stays(kind: str) -> None:
    model = Careless(kind).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state, numbers = torch.random.get_rng_state(), random.getstate()
    with pytest.raises(CaptureError, match="another output at each run"):
        check_repeatable(model, torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.random.get_rng_state(), state) and random.getstate() == numbers
    assert model.training and all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["none", "unused"])
def test_random_numbers_that_reach_no_output_are_no_matter(kind: str) -> None:
    assert trace(Careless(kind), torch.randn(3, 8)).groups


def test_nan_in_the_same_places_is_the_same_output() -> None:
    check_repeatable(nn.Sequential(nn.Linear(4, 4)), torch.full((2, 4), float("nan")))


@pytest.mark.parametrize(("dropout", "runs"), [(0.0, False), (0.1, True)])
def test_attention_that_drops_nothing_is_not_random(monkeypatch: pytest.MonkeyPatch, dropout: float, runs: bool) -> None:
    """The model is run twice more only where an operation drew random numbers."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)[:, None]
            return self.last(nn.functional.scaled_dot_product_attention(y, y, y, dropout_p=dropout)[:, 0])

    called = []
    monkeypatch.setattr(sys.modules["latprune.graph.trace"], "check_repeatable", lambda *_: called.append(True))
    trace(Attention().eval(), torch.randn(2, 3, 8))
    assert bool(called) == runs


def test_a_model_that_writes_into_its_inputs_is_told_so_and_they_are_put_back() -> None:
    class Writing(nn.Module):
        def __init__(self, rectified: bool) -> None:
            super().__init__()
            self.last, self.rectified = nn.Linear(8, 4), rectified

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x.relu_() if self.rectified else x.sub_(0.5).div_(2.0))

    x = torch.randn(3, 8)
    before = x.clone()
    with pytest.raises(CaptureError, match="the model writes into its inputs"):
        check_repeatable(Writing(False), x)
    assert torch.equal(x, before)
    check_repeatable(Writing(True), x)  # the same at each run
