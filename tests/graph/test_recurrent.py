"""Recurrent layers: what they read may shrink, their state stays and says so."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latprune.graph import Selection, trace
from latprune.surgery import check_equal, masked, prune
from support.equivalence import assert_pruned_equals_masked, randomise


class Reader(nn.Module):
    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.recurrent = recurrent
        self.head = nn.Linear(12 if recurrent.bidirectional else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embed(x))[0])


LAYERS = {
    "lstm": lambda: nn.LSTM(8, 6, num_layers=2, batch_first=True),
    "both ways": lambda: nn.LSTM(8, 6, batch_first=True, bidirectional=True),
    "gru": lambda: nn.GRU(8, 6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_input_of_a_recurrent_layer_can_shrink(name: str) -> None:
    model = randomise(Reader(LAYERS[name]()))
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    graph = trace(model, x)
    assert list(graph.groups) == ["embed"]
    assert any("the recurrent layer 'recurrent'" in kept.reason for kept in graph.kept_whole)
    for seed in range(3):
        assert_pruned_equals_masked(model, x, seed=seed, graph=graph)
    prune(model, graph, Selection(kept={"embed": np.array([1, 4, 6])}))
    assert model.recurrent.input_size == 3
    assert model.recurrent._flat_weights[0] is model.recurrent.weight_ih_l0
    assert model.recurrent.weight_hh_l0.shape[1] == 6


def test_the_fused_layer_in_single_precision() -> None:
    model = Reader(nn.LSTM(8, 6, batch_first=True)).eval()
    x = torch.randn(2, 4, 5)
    graph = trace(model, x)
    selection = Selection(kept={"embed": np.array([0, 3, 4, 7])})
    pruned = copy.deepcopy(model)
    prune(pruned, graph, selection)
    check_equal(pruned, masked(model, graph, selection), x)
