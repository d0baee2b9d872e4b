"""Weights that a module standardises before it convolves: the statistics of a filter are those of the inputs that it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import trace
from support.equivalence import assert_pruned_equals_masked, randomise


class Standardised(nn.Conv2d):
    """Standardised over each filter by a batch norm of the weights, with a gain for each filter."""

    def __init__(self, *args: int, **options: int) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True, momentum=0.0).reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class ByHand(Standardised):
    """The same with a mean and a variance."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), keepdim=True, unbiased=False)
        return self._conv_forward(x, (self.weight - mean) / (variance + 1e-5).sqrt() * self.gain, self.bias)


@pytest.mark.parametrize("layer", [Standardised, ByHand])
@pytest.mark.parametrize("groups", [1, 2])
def test_pruned_equals_masked(layer: type[nn.Conv2d], groups: int) -> None:
    model = randomise(
        nn.Sequential(
            nn.Conv2d(3, 8, 1), layer(8, 12, 3, padding=1), nn.ReLU(), layer(12, 8, 3, padding=1, groups=groups), nn.Conv2d(8, 4, 1)
        )
    )
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = trace(model, x)
    inputs = [g for g in graph.groups.values() if any(m.tensor == "3.weight" and m.dim == 1 for m in g.members)]
    assert [(g.rows, g.columns) for g in inputs] == [(groups, 12 // groups)]
    assert [g.columns for n, g in graph.groups.items() if n == "0"] == [8]
    for seed in range(5):
        assert_pruned_equals_masked(model, x, seed=seed, graph=graph)


def test_half_of_the_inputs_of_each_group() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), Standardised(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1)))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    graph = trace(model, x)
    widths = graph.dense_widths() | {n: g.columns // 2 for n, g in graph.groups.items() if g.rows == 2}
    assert graph.macs(widths) < 0.5 * graph.macs(graph.dense_widths())
    assert np.isclose(graph.parameters(graph.dense_widths()), sum(p.numel() for p in model.parameters()))
