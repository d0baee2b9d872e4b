"""Runs that differ from the recorded one in what carries no channels, and models that fold weights when their mode changes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latprune.copying import copied
from latprune.errors import CaptureError, SurgeryError
from latprune.graph import Selection, trace
from latprune.graph.conditions import folds_weights
from latprune.surgery import check_equal, masked, prune


class LowRank(nn.Linear):
    """A linear layer with factors that are merged into its weight in evaluation mode."""

    def __init__(self, inputs: int, outputs: int, rank: int = 4) -> None:
        super().__init__(inputs, outputs)
        self.merged = False
        self.down, self.up = nn.Parameter(torch.randn(rank, inputs) * 0.1), nn.Parameter(torch.randn(outputs, rank) * 0.1)

    def train(self, mode: bool = True) -> LowRank:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1.0 if mode else 1.0) * (self.up @ self.down).data
            self.merged = not mode
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.down.t() @ self.up.t()


def adapted() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), LowRank(16, 12), nn.ReLU(), nn.Linear(12, 3))


def halves(graph: Any) -> Selection:
    return Selection(kept={name: np.arange(group.units // 2) for name, group in graph.groups.items() if group.rows == 1})


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [False, True])
def test_merged_factors_are_cut_with_their_weight(training: bool) -> None:
    model = adapted().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = trace(model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[2].merged is not training and model.training is training
    assert folds_weights(model) is not training
    pruned = copied(model)
    selection = halves(graph)
    prune(pruned, graph, selection)
    # What is merged already was rounded by it; what is not is merged in float64 for the comparison.
    assert check_equal(pruned, masked(model, graph, selection), X).tolerance == (1e-9 if training else 1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    layer = pruned[2]
    assert layer.up.shape[0] == layer.weight.shape[0] == 6 and layer.down.shape[1] == layer.weight.shape[1] == 8
    pruned.eval()
    wanted = pruned(X)
    pruned.train().eval()
    assert torch.allclose(pruned(X), wanted, atol=1e-6)


@lru_cache
def table(size: int) -> torch.Tensor:
    """Computed at the first call, and kept."""
    places = torch.arange(size)
    return (places[:, None] - places[None, :]).abs().reshape(-1)


class Indexed(nn.Module):
    """A bias that is looked up in a table which is computed once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.bias = nn.Linear(6, 16), nn.Linear(16, 3), nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.bias[table(5).view(-1)].view(5, 5)
        return self.last(rows @ torch.relu(self.first(x)))


class Restless(nn.Module):
    """Copies, of the inputs and of channels, that only some runs make; with ``wrong`` the channels themselves take another way."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.first, self.second, self.last, self.runs, self.wrong = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3), 0, wrong
        self.state = {"runs": 0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        RUNS[0] += 1
        if RUNS[0] % 2:
            x = (x + 0.0).contiguous()
        x = torch.relu(self.first(x))
        if RUNS[0] % 2:
            x = x.clone()  # as a norm copies what is not contiguous
        if self.wrong and RUNS[0] % 2:
            x = torch.tanh(x)
        return self.last(torch.relu(self.second(x)))


RUNS = [0]


def test_a_table_that_is_computed_once_changes_no_course() -> None:
    table.cache_clear()
    model = Indexed().eval()
    graph = trace(model, X)
    pruned = copied(model)
    prune(pruned, graph, halves(graph))
    assert check_equal(pruned, masked(model, graph, halves(graph)), X).equal
    table.cache_clear()
    # The other way round: recorded without the table's computation, followed with it.
    assert check_equal(pruned, masked(model, graph, halves(graph)), X).equal


@pytest.mark.parametrize("start", [0, 1])
def test_what_carries_no_channels_may_differ_and_what_carries_some_may_not(start: int) -> None:
    RUNS[0] = start
    model = Restless(wrong=False).eval()
    graph = trace(model, X)
    pruned = copied(model)
    prune(pruned, graph, halves(graph))
    for parity in (0, 1):
        RUNS[0] = parity
        assert check_equal(pruned, masked(model, graph, halves(graph)), X, trials=1, double=False).equal
    RUNS[0] = start
    wrong = Restless(wrong=True).eval()
    graph = trace(wrong, X)
    RUNS[0] = 1 - start
    with pytest.raises(CaptureError, match="another course"):
        masked(wrong, graph, halves(graph))(X)


class StatedMask(nn.Module):
    """Attention whose mask is made of the stated number of heads, as cross-attention of some encoder-decoders does."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.heads, self.kind = 2, kind
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, length, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.kind == "values":
            mask = torch.from_numpy(np.zeros((1, 2, length, length), dtype=np.float32)).to(x.dtype)
        else:
            mask = torch.zeros(1, self.heads if self.kind == "stated" else 1, length, length)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


@pytest.mark.parametrize("kind", ["shared", "stated", "values"])
def test_a_mask_of_one_value_follows_the_heads_and_one_of_values_keeps_them(kind: str) -> None:
    x = torch.randn(2, 5, 16)
    model = StatedMask(kind).eval()
    graph = trace(model, x)
    assert any(name.endswith(":heads") for name in graph.groups) is (kind != "values")
    pruned = copied(model)
    prune(pruned, graph, halves(graph))
    assert pruned.heads == (2 if kind == "values" else 1)
    assert check_equal(pruned, masked(model, graph, halves(graph)), x).equal


class Chunks(nn.Module):
    """Gains for as many channels as come in, made by another library, for outputs of a number of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gain = torch.from_numpy(np.zeros(x.shape[1], dtype=np.float32))
        for k, _ in enumerate(self.convs):
            gain[k * 8 : (k + 1) * 8] = 1.0 + k
        return torch.cat([conv(x[:, k * 8 : (k + 1) * 8]) for k, conv in enumerate(self.convs)], 1) * gain.view(1, -1, 1, 1)


def test_code_whose_sizes_cannot_be_followed_is_named_and_nothing_changes() -> None:
    x = torch.randn(1, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), Chunks(), nn.Conv2d(16, 4, 1)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SurgeryError, match=r"in module '1', a Chunks.*name it in keep"):
        graph = trace(model, x)
        pruned = copied(model)
        prune(pruned, graph, halves(graph))
        check_equal(pruned, masked(model, graph, halves(graph)), x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    graph = trace(model, x, keep=["1"])
    pruned = copied(model)
    prune(pruned, graph, halves(graph))
    assert check_equal(pruned, masked(model, graph, halves(graph)), x).equal
