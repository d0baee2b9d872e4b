"""Encoders whose layers share a bias that the first one makes, with gated feed-forward parts and norms that compute in float32."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.copying import copied
from latprune.errors import FileFormatError
from latprune.graph import Selection, trace
from latprune.surgery import ArchitectureEdits, check_equal, masked, prune, replay
from support.equivalence import random_selection


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(self.weight.dtype)


class Attention(nn.Module):
    """Returns its result and the bias that it used, made here or given."""

    def __init__(self, width: int, heads: int, head: int, *, makes: bool) -> None:
        super().__init__()
        self.heads, self.head = heads, head
        self.q, self.k, self.v = (nn.Linear(width, heads * head, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * head, width, bias=False)
        self.bias = nn.Embedding(16, heads) if makes else None

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, -1, self.heads, self.head).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(3, 2)
        if bias is None:
            assert self.bias is not None
            places = torch.arange(length)
            bias = self.bias((places[None] - places[:, None]).abs()).permute(2, 0, 1)[None]
        mixed = F.softmax((scores + bias[:, :, -length:]).float(), dim=-1).type_as(scores) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1)), bias


class Layer(nn.Module):
    def __init__(self, width: int, *, makes: bool) -> None:
        super().__init__()
        self.first, self.second = Norm(width), Norm(width)
        self.attention = Attention(width, 4, 4, makes=makes)
        self.gate, self.up, self.down = nn.Linear(width, 24), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        mixed, bias = self.attention(self.first(x), bias)
        x = x + mixed
        h = self.second(x)
        return x + self.down(F.gelu(self.gate(h)) * self.up(h)), bias


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 16)
        self.layers = nn.ModuleList(Layer(16, makes=k == 0) for k in range(3))
        self.last, self.head = Norm(16), nn.Linear(16, 30, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x, bias = self.table(ids), None
        for layer in self.layers:
            x, bias = layer(x, bias)
        return self.head(self.last(x) * 16**-0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_cuts_with_their_blocks(dtype: torch.dtype) -> None:
    model, ids = Encoder().to(dtype).eval(), torch.randint(0, 30, (2, 7))
    graph = trace(model, ids)
    for seed in range(3):
        selection = random_selection(graph, np.random.default_rng(seed), blocks=1)
        pruned = copied(model)
        prune(pruned, graph, selection)
        assert check_equal(pruned, masked(model, graph, selection), ids).equal


def test_a_branch_whose_module_makes_what_others_read_stays() -> None:
    model, ids = Encoder().eval(), torch.randint(0, 30, (2, 7))
    graph = trace(model, ids)
    first, second = (graph.blocks[f"layers.{k}"] for k in (0, 1))
    assert not first.removable and "'layers.0.attention' also returns values that are read outside of the branch" in first.reason
    assert second.removable
    pruned = copied(model)
    selection = Selection(kept={}, removed_blocks=frozenset({"layers.1", "layers.2"}))
    prune(pruned, graph, selection)
    assert check_equal(pruned, masked(model, graph, selection), ids).equal


def test_a_removed_branch_hands_on_what_it_was_given_beside() -> None:
    """The middle layer returns the bias that it was given, and the last one reads it: there and back through a file."""
    model, ids = Encoder().eval(), torch.randint(0, 30, (2, 7))
    graph = trace(model, ids)
    selection = Selection(kept={}, removed_blocks=frozenset({"layers.1"}))
    pruned, again = copied(model), copied(model)
    edits = prune(pruned, graph, selection)
    assert check_equal(pruned, masked(model, graph, selection), ids).equal
    (part,) = [p for block in edits.steps[-1].blocks for p in block.parts if p.passed]
    assert part.module == "layers.1.attention" and part.passed == ((1, 1),)
    replay(again, ArchitectureEdits.from_dict(json.loads(json.dumps(edits.to_dict()))))
    again.load_state_dict(pruned.state_dict())
    assert torch.equal(again(ids), pruned(ids))
    broken = edits.to_dict()
    broken["steps"][-1]["blocks"][0]["parts"][-1]["passed"] = [[2, 0]]
    with pytest.raises(FileFormatError, match="place 2 with argument 0 does not exist"):
        ArchitectureEdits.from_dict(broken)
