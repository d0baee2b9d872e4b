"""Every layer gains or is listed with the reason: layers of all kinds, in both forms and inside of a larger model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import trace
from latprune.recovery import RecoveryReport, recover
from latprune.surgery import prune
from recovery.nets import half, settled

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Convolutions(nn.Module):
    """Plain, grouped, depthwise and (grouped) transposed convolutions in one to three dimensions."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv, transposed = _CONV[dims], _TRANSPOSED[dims]
        self.stem = conv(3, 16, 3, padding=1, bias=False)
        self.norm = _NORM[dims](16)
        self.grouped = conv(16, 16, 3, stride=2, padding=1, groups=2)
        self.point = conv(16, 12, 1)
        self.depthwise = conv(12, 12, 3, padding=1, groups=12)
        self.up = transposed(12, 12, 2, stride=2, groups=2)
        self.last = transposed(12, 8, 3, padding=1)
        self.out = conv(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.norm(self.stem(x)))))
        x = F.relu6(self.depthwise(F.relu(self.point(x))))
        return self.out(F.gelu(self.last(F.relu(self.up(x)))))


class Norms(nn.Module):
    """Norms whose statistics change with the cut, a slope per channel, and a factor and a shift that stand alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.group = nn.GroupNorm(4, 16)
        self.mid = nn.Conv2d(16, 16, 3, padding=1)
        self.slope = nn.PReLU(16)
        self.layer, self.rms = nn.LayerNorm(16), nn.RMSNorm(16)
        self.first, self.second, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.place = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.mid(F.relu(self.group(self.stem(x)))))
        x = x.flatten(2).transpose(1, 2) + self.place
        return self.out(self.second(self.rms(F.gelu(self.first(self.layer(x))))).mean(1))


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(F.relu(self.up(x))))


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.memory, self.out = nn.Linear(5, 16), nn.LSTM(16, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.memory(F.relu(self.first(x)))[0])


class Inside(nn.Module):
    """What is pruned lies within; around it the course depends on the data."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x * 2 if float(x.abs().max()) > 1e6 else x).relu()


def _images(dims: int) -> Tensor:
    return torch.randn(60, 3, *((24,), (8, 8), (4, 6, 4))[dims - 1])


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "convolutions-1d": lambda: (settled(Convolutions(1), _images(1)), _images(1)),
    "convolutions-2d": lambda: (settled(Convolutions(2), _images(2)), _images(2)),
    "convolutions-3d": lambda: (settled(Convolutions(3), _images(3)), _images(3)),
    "norms": lambda: (Norms().eval(), _images(2)),
    "embedding": lambda: (Tied(False).eval(), torch.randint(0, 20, (80, 6))),
    "tied embedding": lambda: (Tied(True).eval(), torch.randint(0, 20, (80, 6))),
    "recurrent": lambda: (Recurrent().eval(), torch.randn(80, 6, 5)),
}


def _recovered(name: str, form: str, within: bool) -> tuple[nn.Module, RecoveryReport]:
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    model = Inside(model).eval() if within else model
    options: dict[str, Any] = {"within": "trunk"} if within else {}
    graph = trace(model, x[:2], form=form, **options)
    dense = graph.program if graph.program is not None else model
    network = copy.deepcopy(dense)
    selection = half(graph, 0.75)
    prune(network, graph, selection)
    return network, recover(network, dense, [x], graph=graph, selection=selection)


CASES = [
    *((name, "class", False) for name in NETWORKS),
    ("convolutions-2d", "program", False),
    ("norms", "program", False),
    ("tied embedding", "program", False),
    ("convolutions-1d", "class", True),
    ("norms", "class", True),
]


@pytest.mark.parametrize(("name", "form", "within"), CASES)
def test_every_layer_gains_or_is_listed_with_the_reason(name: str, form: str, within: bool) -> None:
    network, report = _recovered(name, form, within)
    layers = {layer.layer: layer for layer in report.layers}
    assert len(layers) == len(report.layers)
    for layer in report.layers:
        assert bool(layer.action) != bool(layer.reason)
        if layer.action:
            assert layer.held_out_after is not None and layer.held_out_before is not None
            assert layer.held_out_after <= layer.held_out_before
    folded = {"norm"}  # a batch norm right behind its convolution is a part of it
    for key, _ in network.named_parameters():
        owner = key.rpartition(".")[0] or key
        assert owner in layers or key in layers or owner.rpartition(".")[2] in folded, (key, list(layers))
    assert report.output_after is not None and report.output_before is not None
    if "tied" in name:  # the head cannot follow, and with it the layers before it: undone, and said
        assert report.output_after == report.output_before and all(layer.reason for layer in report.layers)
    else:
        assert report.changed > 0 and report.output_after < report.output_before


REASONS = {
    "norms": {name: "nothing is fitted here" for name in ("group", "slope", "layer", "rms", "place")},
    "embedding": {"embed": "looked-up"},
    "tied embedding": {"embed": "looked-up", "head": "2 places"},
    "recurrent": {"memory": "no regression"},
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_says_what_it_is(name: str) -> None:
    _, report = _recovered(name, "class", False)
    reasons = {layer.layer: layer.reason for layer in report.left}
    for layer, words in REASONS[name].items():
        assert words in reasons[layer]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_every_kind_are_fitted(dims: int) -> None:
    _, report = _recovered(f"convolutions-{dims}d", "class", False)
    layers = {layer.layer: layer for layer in report.layers}
    assert all(layers[name].action for name in ("grouped", "point", "out"))
    for layer in layers.values():  # where held-out images refuse a fit, there was one
        assert layer.fitted_after is not None and layer.fitted_before is not None and layer.fitted_after <= layer.fitted_before
