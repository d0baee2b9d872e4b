"""States that a model hands back to itself, with channels along two dimensions, and experts that rows are sent to by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.copying import copied
from latprune.errors import SurgeryError
from latprune.graph import Selection, trace
from latprune.surgery import check_equal, masked, prune
from support.equivalence import random_selection


class Cache:
    """No tuple and no mapping: what a model keeps for its next call."""

    def __init__(self, state: Tensor) -> None:
        self.layers = [{"state": torch.zeros_like(state)}]
        self.layers[0]["state"].copy_(state)


class Scan(nn.Module):
    """A state ``(batch, channels, places)`` whose decay, input and output are computed of the channels (state-space models)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.places, self.out = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(12, 3)
        self.decay = nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> dict[str, object]:
        x = F.silu(self.into(x))
        written, read = self.places(x).chunk(2, -1)
        state = torch.zeros(x.shape[0], x.shape[2], self.decay.shape[1], dtype=x.dtype)
        found = []
        for t in range(x.shape[1]):
            state = torch.sigmoid(self.decay) * state + x[:, t, :, None] * written[:, t, None, :]
            found.append((state @ read[:, t, :, None])[..., 0])
        return {"scores": self.out(torch.stack(found, 1)), "cache": Cache(state)}


def test_a_state_in_a_cache_is_compared_in_what_is_left_of_both_its_dimensions() -> None:
    torch.manual_seed(0)
    model, x = Scan().eval(), torch.randn(2, 4, 6)
    graph = trace(model, x)
    assert {name: group.columns for name, group in graph.groups.items()} == {"into": 12, "places": 5}
    selection = Selection(kept={"into": np.arange(0, 12, 2), "places": np.array([1, 2, 4])})
    pruned = copied(model)
    prune(pruned, graph, selection)
    assert pruned(x)["cache"].layers[0]["state"].shape == (2, 6, 3)
    report = check_equal(pruned, masked(model, graph, selection), x)
    assert report.equal and report.outputs == 2 and report.dtype == "float64"
    with torch.no_grad():
        pruned.decay[:, 0] += 0.5
    with pytest.raises(SurgeryError, match="not equal"):
        check_equal(pruned, masked(model, graph, selection), x)


class Experts(nn.Module):
    """Each token goes to two of three gated experts, whose weights are one tensor; computed expert by expert in one product."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 3)
        self.up = nn.Parameter(torch.randn(3, 2 * hidden, width) * 0.2)
        self.down = nn.Parameter(torch.randn(3, width, hidden) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        experts, order = chosen.reshape(-1).sort()
        ends = torch.histc(experts.float(), bins=3, min=0, max=2).cumsum(0, dtype=torch.int32)
        gate, up = torch._grouped_mm(x[order // 2], self.up.transpose(-2, -1), offs=ends).chunk(2, -1)
        made = torch._grouped_mm(F.silu(gate) * up, self.down.transpose(-2, -1), offs=ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        return (made * weights.reshape(-1)[order][:, None])[back].view(x.shape[0], 2, -1).sum(1)


class Mixture(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into, self.norm, self.experts, self.out = nn.Linear(6, width), nn.LayerNorm(width), Experts(width, hidden), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(x + self.experts(self.norm(x)))


def test_experts_are_cut_in_runs_that_their_kernel_takes() -> None:
    torch.manual_seed(0)
    model, x = Mixture(32, 24).eval(), torch.randn(7, 6)
    graph = trace(model, x)
    assert {name: group.columns for name, group in graph.groups.items()} == {"into": 4, "experts.up#2": 3}
    assert graph.macs(graph.dense_widths()) == 7 * 6 * 32 + 7 * 32 * 3 + 2 * 7 * (32 * 48 + 24 * 32) + 7 * 32 * 4
    for seed in range(3):
        selection = random_selection(graph, np.random.default_rng(seed), blocks=seed % 2)
        pruned = copied(model)
        prune(pruned, graph, selection)
        report = check_equal(pruned, masked(model, graph, selection), x)
        assert report.equal and report.dtype == "float32"  # the kernel has no float64
        assert pruned.to(torch.bfloat16)(x.bfloat16()).shape == (7, 4)


def test_experts_of_a_width_that_cannot_be_cut_in_runs_stay() -> None:
    graph = trace(Mixture(32, 20).eval(), torch.randn(7, 6))
    assert set(graph.groups) == {"into"}
    assert any("takes rows of a multiple of 8 channels" in kept.reason for kept in graph.kept_whole)
