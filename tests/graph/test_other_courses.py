"""Calls of another course than the example inputs took: said in the trace, as the pruning begins, and in the result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.graph import trace
from latprune.importance import MagnitudeConfig
from latprune.methods import MDP

X = -torch.rand(2, 3, 12, 12)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 5)
        self.early = nn.Linear(16, 5)


class EarlyExit(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.a(x))
        if (x.mean() > 0).item():
            return self.early(z.mean((2, 3)))
        return self.head(torch.relu(self.b(z)).mean((2, 3)))


class Optional(Base):
    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        z = torch.relu(self.a(x))
        if more is not None:
            z = z + self.early(more).sum()
        return self.head(torch.relu(self.b(z)).mean((2, 3)))


class Compared(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.a(x)) + self.early.weight.sum()
        if x.mean() > 0:
            z = z + 1
        return self.head(torch.relu(self.b(z)).mean((2, 3)))


class InTraining(Base):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        z = torch.relu(self.a(x))
        y = self.head(torch.relu(self.b(z)).mean((2, 3)))
        return (y, self.early(z.mean((2, 3)))) if self.training else y


IDLE, VALUES = "not run on the example inputs: early; a call that runs them", "the forward asks for values of its inputs (the model itself)"


@pytest.mark.parametrize(
    ("build", "told"),
    [(EarlyExit, [IDLE, VALUES]), (Optional, [IDLE]), (Compared, [VALUES]), (InTraining, [])],
    ids=lambda value: str(value)[:30],
)
def test_what_the_recorded_run_cannot_tell_is_noted(build: Callable[[], nn.Module], told: list[str]) -> None:
    model = build().eval()
    notes = [note for note in trace(model, X).notes if "so that the network can be trained" not in note]
    assert len(notes) == len(told) and all(note.startswith(words) for note, words in zip(notes, told, strict=True))
    said: list[str] = []
    method = MDP(score=MagnitudeConfig())
    result = latprune.prune(model, X, budget="flops=50%", method=method, measure_latency=False, recover=False, progress=said.append)
    assert set(notes) <= set(result.record.notes) and set(notes) <= set(said)


def test_layers_named_in_keep_fit_every_course() -> None:
    model = EarlyExit().eval()
    method = MDP(score=MagnitudeConfig())
    pruned = latprune.prune(model, X, budget="flops=90%", keep=["a", "early"], method=method, measure_latency=False, recover=False).model
    assert pruned(X).shape == pruned(-X).shape == (2, 5)
