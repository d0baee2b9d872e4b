"""Batch norms that get some of the dense network's spread back after the refit, where class probabilities come nearer by it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import trace
from latprune.importance.outputs import output_js
from latprune.recovery import Refit, recover
from latprune.recovery.batches import Piece
from latprune.recovery.contract import Situation
from latprune.recovery.spread import _surely, restore_spread, vectors_of
from latprune.recovery.values import Values
from latprune.recovery.watching import Watch
from latprune.surgery import prune
from latprune.train import recalibrate_batch_norm
from recovery.nets import half, line, transformer


def pictures(count: int, seed: int = 1) -> Tensor:
    """Images that differ as a whole, so that a network without training tells them apart."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randn(count, 3, 1, 1, generator=generator) + torch.randn(count, 1, 4, 1, generator=generator).repeat(1, 1, 2, 1)
    return scale * torch.ones(count, 3, 8, 8) + 0.3 * torch.randn(count, 3, 8, 8, generator=generator)


def deep(depth: int = 10, width: int = 24) -> nn.Module:
    """A plain convolutional network whose norms have the statistics of such images."""
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for k in range(depth):
        layers += [nn.Conv2d(3 if k == 0 else width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 6))
    recalibrate_batch_norm(model, [(pictures(512, seed=9), None)], batches=1)
    with torch.no_grad():
        model[-1].weight.mul_(20)
    return model.eval()


def situation_of(dense: nn.Module, pruned: nn.Module, images: Tensor) -> Situation:
    graph = trace(dense, images[:2])
    fitted, held_out = list(images[:-32].split(32)), [images[-32:]]
    situation = Situation(pruned=pruned, dense=dense, graph=graph, selection=half(graph, 1.0), fitted=fitted, held_out=held_out, seed=0)
    situation.watch = Watch(situation, [Piece(inputs=held_out[0], place="batch 0")], Values(pruned))
    return situation


def damped(dense: nn.Module, images: Tensor) -> tuple[nn.Module, dict[int, Tensor]]:
    """The network with four fifths of the spread in each norm, and what the norms had before."""
    network = copy.deepcopy(dense)
    start = vectors_of(situation_of(dense, network, images))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(0.8)
    return network, start


def divergence(dense: nn.Module, network: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return output_js(dense(images), network(images))[0]


def test_norms_that_lost_their_spread_get_it_back() -> None:
    dense, images = deep(), pictures(160)
    network, start = damped(dense, images)
    before = divergence(dense, network, images[-32:])
    entry = restore_spread(situation_of(dense, network, images), start)
    assert entry is not None and entry.action == "spread" and entry.note.startswith("100% of the way")
    assert entry.held_out_before == pytest.approx(before, rel=1e-3)
    assert entry.held_out_after == pytest.approx(divergence(dense, network, images[-32:]), rel=1e-3)
    assert entry.held_out_after < 0.2 * before and not network.training


def test_norms_whose_spread_is_right_keep_it() -> None:
    dense, images = deep(), pictures(160)
    network = copy.deepcopy(dense)
    start = {place: 2 * value for place, value in vectors_of(situation_of(dense, network, images)).items()}
    with torch.no_grad():
        before = network(images[:8])
        assert restore_spread(situation_of(dense, network, images), start) is None
        torch.testing.assert_close(network(images[:8]), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("made", [transformer, lambda: line(1)], ids=["no norms of batches", "no class scores"])
def test_other_networks_are_left_alone(made: Any) -> None:
    model, inputs = made()
    model = model if made is transformer else nn.Sequential(model, nn.Flatten(0))
    few = {k: v[:2] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:2]
    graph = trace(model, few)
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    report = recover(network, model, [inputs], graph=graph, selection=half(graph))
    assert not any(layer.action == "spread" for layer in report.layers)


class _Wrapped(nn.Module):
    """A network whose class scores come as boxes would, by what is done with them."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x))


@pytest.mark.parametrize(
    "change", [lambda y: y[:, :, None].repeat(1, 1, 5), lambda y: (y, 2 * y), lambda y: y[:, :1]], ids=["3d", "two", "one"]
)
def test_what_is_not_one_table_of_class_scores_is_not_judged_by_probabilities(change: Callable[[Tensor], Any]) -> None:
    dense, images = _Wrapped(deep(), change), pictures(160)
    network, start = damped(dense, images)
    before = copy.deepcopy(network.state_dict())
    assert restore_spread(situation_of(dense, network, images), start) is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_without_held_out_images_nothing_is_decided() -> None:
    dense, images = deep(), pictures(160)
    network = copy.deepcopy(dense)
    start = {place: 0.5 * value for place, value in vectors_of(situation_of(dense, network, images)).items()}
    situation = situation_of(dense, network, images)
    situation.held_out = []
    assert restore_spread(situation, start) is None


def test_it_comes_after_the_refit_where_other_images_gain_too() -> None:
    dense, images, others = deep(16), pictures(320), pictures(200, seed=5)
    graph = trace(dense, images[:2])
    selection = half(graph, 0.6)
    found = {}
    for spread in (False, True):
        network = copy.deepcopy(dense)
        prune(network, graph, selection)
        report = recover(network, dense, [images], graph=graph, selection=selection, strategy=Refit(spread=spread))
        found[spread] = divergence(dense, network, others)
        assert report.output_after is not None and report.output_before is not None and report.output_after <= report.output_before
    taken = report.layers[-1].action == "spread"
    assert found[True] < found[False] if taken else found[True] == pytest.approx(found[False], rel=1e-3)


def test_a_gain_within_its_error_is_none() -> None:
    assert _surely(torch.tensor([0.3, 0.2, 0.25, 0.28]))
    assert not _surely(torch.tensor([0.9, -0.8, 0.5, -0.4]))
    assert not _surely(torch.tensor([0.5]))
    assert not _surely(torch.full((4,), -float("inf")))


def test_it_is_a_flag() -> None:
    with pytest.raises(InvalidArgumentError, match="spread"):
        Refit(spread=1)  # type: ignore[arg-type]
