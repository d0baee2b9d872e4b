from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

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


def test_attention_modules_are_no_training_branches() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    graph = latprune.trace(model, torch.randn(2, 5, 16))
    assert not any("training only" in kept.reason for kept in graph.kept_whole)
