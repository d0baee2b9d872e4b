"""Models whose parts compute in a type of their own, whatever the model's: compared in the model's own type where float64 does not run."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.copying import copied
from latprune.errors import SurgeryError
from latprune.graph import Selection, trace
from latprune.importance import get_criterion
from latprune.surgery import check_equal, masked, prune


class TimeEmbedding(nn.Module):
    """An embedding of sines in explicit float32 (diffusion models)."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.body, self.out = nn.Linear(8, 16), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        steps = torch.exp(-math.log(1e4) * torch.arange(4, dtype=torch.float32) / 4)
        angles = t[:, None].float() * steps[None]
        return self.out(torch.relu(self.body(x) + self.time(torch.cat([angles.cos(), angles.sin()], dim=-1))))


class PlainTensor(nn.Module):
    """Filters that are an attribute, not a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = torch.randn(6, 6)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x @ self.filters)))


class OwnNorm(nn.Module):
    """A norm that computes and answers in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.last(torch.relu(self.second(x)))


class State(nn.Module):
    """A recurrent state made in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.cell, self.out = nn.Linear(6, 12), nn.GRUCell(12, 10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(x.shape[0], 10, dtype=torch.float32)
        for _ in range(2):
            state = self.cell(torch.relu(self.into(x)), state)
        return self.out(state)


class Autocast(nn.Module):
    """bfloat16 inside, by its own autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(x.float())


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
MODELS: dict[str, tuple[type[nn.Module], Any]] = {
    "time embedding": (TimeEmbedding, (X, torch.tensor([1, 50, 3, 9]))),
    "plain tensor": (PlainTensor, X),
    "own norm": (OwnNorm, X),
    "state": (State, X),
    "autocast": (Autocast, X),
}


def halves(graph: Any) -> Selection:
    return Selection(kept={name: np.arange(group.units // 2) for name, group in graph.groups.items() if group.rows == 1})


@pytest.mark.parametrize("name", list(MODELS))
def test_a_right_network_passes_in_its_own_type_and_a_wrong_one_does_not(name: str) -> None:
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    graph = trace(model, inputs)
    pruned = copied(model)
    selection = halves(graph)
    prune(pruned, graph, selection)
    assert selection.kept and sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    report = check_equal(pruned, masked(model, graph, selection), inputs)
    assert report.equal and report.dtype in ("float32", "bfloat16", "float64")
    with torch.no_grad():
        next(p for n, p in pruned.named_parameters() if n.startswith(("first", "body", "into")) and p.ndim > 1)[0] += 3.0
    with pytest.raises(SurgeryError, match="not equal"):
        check_equal(pruned, masked(model, graph, selection), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_held_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 3)).to(dtype).eval()
    x = X.to(dtype)
    graph = trace(model, x)
    pruned = copied(model)
    prune(pruned, graph, halves(graph))
    assert check_equal(pruned, masked(model, graph, halves(graph)), x).equal
    assert {p.dtype for p in pruned.parameters()} == {dtype}


class SpectralConv(nn.Module):
    """A complex matrix for each of the low frequencies, whose results are written into zeros of a size that an attribute holds."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.made = made
        self.weight = nn.Parameter(torch.randn(given, made, 3, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft2(x)
        out = torch.zeros(x.shape[0], self.made, found.shape[2], found.shape[3], dtype=found.dtype)
        out[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", found[:, :, :3, :3], self.weight.to(found.dtype))
        return torch.fft.irfft2(out, s=x.shape[-2:])


def test_fourier_layers_with_complex_weights() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), SpectralConv(12, 10), nn.GELU(), nn.Conv2d(10, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    graph = trace(net, x)
    assert set(graph.groups) == {"0", "1", "3"}
    selection = Selection(kept={name: np.arange(group.columns // 2) for name, group in graph.groups.items()})
    pruned = copy.deepcopy(net)
    prune(pruned, graph, selection)
    assert pruned[1].made == pruned[1].weight.shape[1] == 5
    report = check_equal(pruned, masked(net, graph, selection), x)
    assert report.dtype == "float64" and report.max_rel < 1e-9
    with torch.no_grad():
        pruned[1].weight[0, 0, 0, 0] += 0.5
    with pytest.raises(SurgeryError, match="not equal"):
        check_equal(pruned, masked(net, graph, selection), x)


@pytest.mark.parametrize("criterion", ["magnitude", "fpgm", "lamp", "taylor"])
def test_complex_networks_from_end_to_end(tmp_path: Path, criterion: str) -> None:
    """Complex inputs, weights and outputs."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Linear(a, b, dtype=torch.complex64) for a, b in ((6, 12), (12, 10), (10, 4))]
        return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).eval()

    x = torch.randn(2, 6, dtype=torch.complex64)
    method = latprune.Uniform(score=get_criterion(criterion))
    batches, loss = [(x, torch.tensor([0, 1]))], lambda model, batch: (model(batch[0]).abs() ** 2).mean()
    result = latprune.prune(make(), x, budget="params=60%", method=method, data=batches, loss=loss, recover=False, measure_latency=False)
    result.save(tmp_path / "result")
    restored = latprune.restore(make, tmp_path / "result").eval()
    assert torch.equal(restored(x), result.model.eval()(x)) and restored(x).is_complex()
