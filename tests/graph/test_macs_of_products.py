"""Multiply-adds of matrix products whose rows, inner places and columns all may carry channels: as PyTorch counts them after the cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import latprune
from latprune.graph import trace
from latprune.importance import MagnitudeConfig
from latprune.methods import MDP


class Channels(nn.Module):
    """Attention of channels over channels (DANet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        v = x.flatten(2)
        x = x + (torch.softmax(v @ v.transpose(1, 2), -1) @ v).view(x.shape)
        return self.head(torch.relu(self.b(x)).mean((2, 3)))


class Mixer(nn.Module):
    """A layer over tokens runs once for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 32), nn.Linear(32, 4)
        self.token1, self.token2, self.channel1, self.channel2 = nn.Linear(10, 20), nn.Linear(20, 10), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.token2(F.gelu(self.token1(x.transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.channel2(F.gelu(self.channel1(x)))).mean(1))


class Symmetric(nn.Module):
    """A weight that is computed from another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.weight = nn.Linear(8, 32), nn.Linear(32, 4), nn.Parameter(torch.randn(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(F.linear(torch.relu(self.a(x)), self.weight + self.weight.t())))


class LowRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 32), nn.Linear(32, 4)
        self.u, self.v = nn.Parameter(torch.randn(32, 6)), nn.Parameter(torch.randn(6, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.head(x + torch.einsum("bi,ij->bj", x, self.u @ self.v))


class Heads(nn.Module):
    """Attention written out, over tokens or (cross-covariance) over channels."""

    def __init__(self, over_channels: bool) -> None:
        super().__init__()
        self.stem, self.head, self.out = nn.Linear(8, 32), nn.Linear(32, 4), nn.Linear(32, 32)
        self.q, self.k, self.v = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.order = (0, 2, 3, 1) if over_channels else (0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        count, tokens, _ = x.shape
        q, k, v = (layer(x).view(count, tokens, 4, -1).permute(self.order) for layer in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        y = y.permute(0, 3, 1, 2) if self.order[2] == 3 else y.transpose(1, 2)
        return self.head((x + self.out(y.reshape(count, tokens, -1))).mean(1))


class PerChannel(nn.Module):
    """A product for each channel, which lie along its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head, self.weight = nn.Linear(8, 16), nn.Linear(16, 4), nn.Parameter(torch.randn(16, 10, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.bmm(torch.relu(self.a(x)).permute(2, 0, 1), self.weight).mean(2).t())


def counted(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


IMAGES, TOKENS, ROWS = torch.randn(2, 3, 12, 12), torch.randn(2, 10, 8), torch.randn(2, 8)
NETWORKS = {
    "channels": (Channels, IMAGES),
    "mixer": (Mixer, TOKENS),
    "symmetric": (Symmetric, ROWS),
    "low rank": (LowRank, ROWS),
    "heads": (lambda: Heads(False), TOKENS),
    "cross-covariance": (lambda: Heads(True), TOKENS),
    "per channel": (PerChannel, TOKENS),
}


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("budget", ["flops=40%", "flops=75%"])
def test_multiply_adds_of_the_cut_network_are_those_that_it_was_cut_to(kind: str, form: str, budget: str) -> None:
    build, x = NETWORKS[kind]
    torch.manual_seed(0)
    model = build().eval()
    graph = trace(model, x, form=form)
    assert graph.macs(graph.dense_widths()) == counted(model, x)
    method = MDP(score=MagnitudeConfig(), blocks=False)
    result = latprune.prune(model, x, budget=budget, method=method, measure_latency=False, recover=False, form=form, progress=None)
    assert result.record.pruned.macs == counted(result.model, x) < result.record.dense.macs
