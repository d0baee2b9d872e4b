"""Which parameters behind a layer are a part of it: those with a value for each of its channels, and not for as many tokens or pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import trace
from latprune.recovery import RecoveryReport, recover
from latprune.recovery.sites import find_sites
from latprune.recovery.stepper import record_operations
from latprune.surgery import prune
from recovery.nets import half, settled


class Tokens(nn.Module):
    """Eight tokens, and eight channels are left of the layer that the factor follows."""

    def __init__(self, parameter: Tensor, expanded: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.gate = nn.Parameter(parameter)
        self.expanded = expanded

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        gate = self.gate.expand(8, y.shape[-1]) if self.expanded else self.gate
        return self.head(F.relu(self.c(F.relu(y * gate))).mean(1))


class Pixels(nn.Module):
    """Four by four pixels, or sixteen columns, and sixteen channels are left of the convolution."""

    def __init__(self, parameter: Tensor, expanded: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 5)
        self.gate = nn.Parameter(parameter)
        self.expanded = expanded

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        gate = self.gate.expand(1, *y.shape[1:]) if self.expanded else self.gate
        return self.head(F.relu(self.c(F.relu(y + gate if self.gate.dim() == 1 else y * gate))).mean((2, 3)))


FACTORS: dict[str, tuple[Callable[[Tensor, bool], nn.Module], Tensor, tuple[int, ...]]] = {
    "tokens": (Tokens, torch.linspace(0.1, 4, 8)[:, None], (8, 6)),
    "pixels": (Pixels, torch.linspace(0.1, 4, 16).reshape(1, 1, 4, 4), (3, 4, 4)),
    "columns added": (Pixels, torch.linspace(-2, 2, 16), (3, 2, 16)),
}


def recovered(model: nn.Module, x: Tensor) -> tuple[nn.Module, RecoveryReport]:
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    return network, recover(network, model, [x], graph=graph, selection=half(graph))


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_of_places_is_not_taken_for_one_of_as_many_channels(name: str) -> None:
    kind, parameter, shape = FACTORS[name]
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))
    found = []
    for expanded in (False, True):
        torch.manual_seed(0)
        found.append(recovered(kind(parameter.clone(), expanded).eval(), x))
    (network, report), (other, its) = found
    with torch.no_grad():
        assert torch.allclose(network(x), other(x), atol=1e-4)
    assert [layer.layer for layer in report.layers] == [layer.layer for layer in its.layers]
    assert {layer.layer: layer.reason for layer in report.left}["gate"].startswith("nothing is fitted here")


class TokenNorm(nn.Module):
    """A batch norm over tokens, as many as the channels that are left."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.c = nn.Linear(6, 16), nn.BatchNorm1d(8), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.norm(self.a(x))).mean(1))


def test_a_batch_norm_over_tokens_is_not_taken_for_one_of_as_many_channels() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 8, 6)
    network, report = recovered(settled(TokenNorm(), x), x)
    assert not find_sites(record_operations(network, x[:2]), network)[0].affine
    assert "norm" in {layer.layer for layer in report.left}
    assert report.output_after is not None and report.output_before is not None and report.output_after < report.output_before


class Behind(nn.Module):
    """Factors and shifts of channels, wherever these lie."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 8, bias=False)
        self.maps, self.last = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(8))
        self.tokens, self.shift = nn.Parameter(torch.rand(1, 1, 8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x) * self.maps)
        x = F.relu(self.b(x).permute(0, 2, 3, 1) * self.last)
        return F.relu(self.c(x.flatten(1, 2)) * self.tokens + self.shift)


def test_factors_of_channels_belong_to_their_layer_wherever_the_channels_lie() -> None:
    model = Behind().eval()
    sites = {site.name: len(site.affine) for site in find_sites(record_operations(model, torch.randn(8, 3, 8, 8)), model)}
    assert sites == {"a": 1, "b": 1, "c": 2}
