"""What the walk holds: counted with all that waits for its layer, and shortened where that is too much."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import trace
from latprune.recovery import Refit, recover
from latprune.recovery.goals import Goals
from latprune.recovery.pairing import Pairing
from latprune.recovery.sites import find_sites
from latprune.recovery.stepper import Stepper, held_values, record_operations
from latprune.surgery import prune
from recovery.nets import half, resnet


class Early(nn.Module):
    """The skip's convolution runs first and is added last."""

    def __init__(self, early: bool, depth: int = 6, width: int = 8) -> None:
        super().__init__()
        self.early = early
        self.stem, self.skip = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(depth)))
        self.out, self.head = nn.Conv2d(width, width, 1), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        skip = self.skip(x) if self.early else None
        y = self.out(self.body(x))
        return self.head(F.relu((self.skip(x) if skip is None else skip) + y).mean((2, 3)))


def goals_of(model: nn.Module, x: Tensor) -> tuple[Goals, int]:
    graph = trace(model, x[:2])
    selection = half(graph)
    network = copy.deepcopy(model)
    prune(network, graph, selection)
    dense, pruned = record_operations(model, x), record_operations(network, x)
    pairing = Pairing(graph, selection, dense, pruned, model, network)
    goals = Goals(pairing, dense, pruned, find_sites(pruned, network), corrected=True, ahead=True)
    return goals, held_values(dense) + held_values(pruned)


def test_what_waits_for_its_layer_is_counted() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    tensor = 4 * 8 * 8 * 8
    early, plain = goals_of(Early(True).eval(), x)
    late, _ = goals_of(Early(False).eval(), x)
    # Six layers' results wait at once; the run itself holds three.
    assert early.held >= plain + 3 * tensor
    assert late.held <= plain + 2 * tensor


def test_a_far_sum_is_compared_before_it_where_the_memory_asks_for_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    goals, plain = goals_of(Early(True).eval(), x)
    joined = [index for index, (_, behind) in goals.of.items() if behind]
    goals.shorten(goals.held)
    assert not goals.notes
    goals.shorten(plain)
    (skip,) = goals.notes
    assert skip in joined and not goals.of[skip][1] and goals.held < plain + 3 * 4 * 8 * 8 * 8


def test_residual_networks_are_compared_as_they_were() -> None:
    model, x = resnet()
    goals, plain = goals_of(model, x[:4])
    before = dict(goals.of)
    goals.shorten(1.5 * plain)
    assert goals.of == before and sum(behind for _, behind in goals.of.values()) >= 6


@pytest.mark.parametrize("early", [False, True])
def test_no_more_is_held_than_was_counted(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Early(early).eval(), torch.randn(32, 3, 8, 8)
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    held: list[int] = []
    steppers: list[Stepper] = []
    create, step = Stepper.__init__, Stepper.advance

    def created(self: Stepper, *args: object, **options: object) -> None:
        create(self, *args, **options)
        if len(self) > 1:
            steppers.append(self)

    def stepped(self: Stepper, number: int, stop: int) -> None:
        step(self, number, stop)
        tensors = [t for s in steppers for b in s._batches for t in (*b.live.values(), *b.pinned.values())]
        held.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()))

    monkeypatch.setattr(Stepper, "__init__", created)
    monkeypatch.setattr(Stepper, "advance", stepped)
    counted = 4 * goals_of(model, x)[0].held
    said: list[str] = []
    recover(network, model, [x], graph=graph, selection=half(graph), strategy=Refit(rounds=0), progress=said.append)
    assert 0.5 * counted < max(held) <= counted
    held.clear()
    steppers.clear()
    limit = counted / 2
    report = recover(
        network, model, x.split(4), graph=graph, selection=half(graph), strategy=Refit(rounds=0, activations=limit), progress=said.append
    )
    assert max(held) <= limit
    skip = next(layer for layer in report.layers if layer.layer == "skip")
    assert ("before its sum" in skip.note) == early
