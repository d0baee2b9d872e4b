"""Tensors and modules that a model keeps beside its registries, in plain attributes, lists and dictionaries, are exchanged there too."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import Selection, trace
from latprune.surgery import check_equal, masked, prune


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))
        self.weights = [self.body[0].weight]
        self.by_name = {"bias": self.body[0].bias}
        self.__dict__["middle"] = self.body[2]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.linear(x, self.weights[0], self.by_name["bias"]))
        return self.body[4](torch.relu(self.middle(x)))


def test_tensors_in_lists_and_dictionaries_are_cut_with_their_parameter() -> None:
    net, x = Beside().eval(), torch.randn(2, 4)
    graph = trace(net, x)
    selection = Selection(kept={name: np.arange(5) for name in graph.groups})
    pruned = copy.deepcopy(net)
    prune(pruned, graph, selection)
    assert pruned.weights[0] is pruned.body[0].weight and pruned.by_name["bias"] is pruned.body[0].bias
    assert pruned.middle is pruned.body[2]
    assert check_equal(pruned, masked(net, graph, selection), x).equal


class Layered(nn.Module):
    """Runs its residual layers from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.order = [*self.blocks]
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.order:
            x = block(x)
        return self.last(x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def test_a_removed_block_goes_from_the_list_too() -> None:
    net, x = Layered().eval(), torch.randn(2, 4)
    graph = trace(net, x)
    selection = Selection(kept={}, removed_blocks=frozenset({"blocks.1"}))
    pruned = copy.deepcopy(net)
    prune(pruned, graph, selection)
    assert pruned.order[1] is pruned.blocks[1] and not list(pruned.order[1].parameters())
    assert check_equal(pruned, masked(net, graph, selection), x).equal
