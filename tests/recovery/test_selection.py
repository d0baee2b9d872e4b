"""Units by reconstruction: queries and keys by their logits, grouped convolutions group by group, and what nothing can be said of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latprune
from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, Selection, trace
from latprune.importance import DivergenceConfig, MagnitudeConfig, best_units, score
from latprune.methods import MDP, SPLAMP
from latprune.recovery import ReconstructionConfig, reconstruction_ranking, reselected

_HEADS, _SIZE = 4, 6


class Attention(nn.Module):
    """Two heads to a key head; ``how`` the product is made, and a rotation of queries and keys before it or none."""

    def __init__(self, how: str, rotated: bool = False) -> None:
        super().__init__()
        width = _HEADS * _SIZE
        self.how, self.rotated, self.heads, self.key_heads = how, rotated, _HEADS, _HEADS // 2
        self.cos, self.sin = (
            nn.Parameter(f(torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.3, 0.1] * 2))) for f in (torch.cos, torch.sin)
        )
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width // 2)
        self.v, self.o = nn.Linear(width, width // 2), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(len(x), x.shape[1], self.heads, -1).transpose(1, 2)
        k, v = (layer(x).view(len(x), x.shape[1], self.key_heads, -1).transpose(1, 2) for layer in (self.k, self.v))
        if self.rotated:
            q, k = (y * self.cos + torch.cat([-y.chunk(2, -1)[1], y.chunk(2, -1)[0]], -1) * self.sin for y in (q, k))
        k, v = (y.repeat_interleave(self.heads // self.key_heads, 1) for y in (k, v))
        if self.how == "function":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) * 0.4).softmax(-1) @ v
        return x + self.o(y.transpose(1, 2).reshape(len(x), x.shape[1], -1))


def _halves(model: nn.Module, x: Tensor, group: str, rows: int) -> tuple[ModelGraph, np.ndarray]:
    """The graph, and the places of half a row that the ranking keeps of a group, ``(rows, half)`` within its row."""
    graph = trace(model, x[:2])
    found, ranking = graph.groups[group], reconstruction_ranking(model, graph, [x])
    assert found.rows == rows
    return graph, best_units(found, ranking[group], found.columns // 2).reshape(rows, -1) % found.columns


@pytest.mark.parametrize("how", ["function", "hand"])
def test_queries_and_keys_keep_the_places_that_the_logits_need(how: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Attention(how), nn.Linear(24, 3)).eval(), torch.randn(40, 5, 24)
    alive = np.array([[1, 2, 4], [0, 3, 5]])
    attention = model[0]
    with torch.no_grad():
        for head in range(2):
            gone = [place for place in range(_SIZE) if place not in alive[head]]
            # Places that are large in the queries, and the same for all keys: they make nothing that softmax sees.
            attention.k.weight.view(2, _SIZE, -1)[head, gone] *= 0.01
            attention.k.bias.view(2, _SIZE)[head, gone] = 30.0
            attention.q.weight.view(2, 2, _SIZE, -1)[head][:, gone] *= 3
    graph, kept = _halves(model, x, "0.q", 2)
    assert np.array_equal(kept, alive)
    # What the method chose is replaced by a better choice, not by the first places.
    whole = {name: np.arange(group.units) for name, group in graph.groups.items()}
    by_size = best_units(graph.groups["0.q"], score(model, graph, MagnitudeConfig()).units["0.q"], 3)
    again = reselected(graph, Selection(kept=whole | {"0.q": by_size}), reconstruction_ranking(model, graph, [x]), streams=True)
    assert np.array_equal(again.kept["0.q"].reshape(2, 3) % _SIZE, alive)


def test_a_rotation_between_queries_and_logits_is_read_at_the_logits() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Attention("function", rotated=True), nn.Linear(24, 3)).eval(), torch.randn(40, 5, 24)
    with torch.no_grad():
        model[0].k.weight.view(2, _SIZE, -1)[:, [1, 4]] *= 1e-3
        model[0].k.bias.view(2, _SIZE)[:, [1, 4]] = 0
    graph = trace(model, x[:2])
    scores = reconstruction_ranking(model, graph, [x])["0.q#2"]
    assert scores.shape == (3,) and scores.argmin() == 1  # places 1 and 4 of each head turn into each other


class Grouped(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.a, self.g, self.o = nn.Conv2d(3, 16, 3), kind(16, 16, 3, groups=4), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.relu(self.g(F.relu(self.a(x))))).mean((2, 3))


@pytest.mark.parametrize("transposed", [False, True])
def test_what_grouped_convolutions_read_is_ranked_group_by_group(transposed: bool) -> None:
    torch.manual_seed(0)
    model, x = Grouped(transposed).eval(), torch.randn(40, 3, 8, 8)
    alive = np.array([[1, 2], [0, 3], [2, 3], [0, 1]])
    with torch.no_grad():
        for row in range(4):
            for place in set(range(4)) - set(alive[row].tolist()):
                # Of no use to what reads it, though its own filter is large.
                (model.g.weight[4 * row + place] if transposed else model.g.weight[4 * row : 4 * row + 4, place]).zero_()
                model.a.weight[4 * row + place] *= 5
    _, kept = _halves(model, x, "a", 4)
    assert np.array_equal(kept, alive)


def test_a_layer_that_is_used_twice_tells_what_its_inputs_are_worth() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x)) * self.head(self.b(x))

    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(64, 4)
    with torch.no_grad():
        model.head.weight[:, [0, 2, 5]] = 0
    _, kept = _halves(model, x, "a", 1)
    assert kept.tolist() == [[1, 3, 4]]


class Compared(nn.Module):
    """No layer reads the channels of ``a``: they meet those of ``b`` and are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.relu(self.c((self.a(x) * self.b(x)).sum(-1))))


def test_a_group_that_nothing_can_be_said_of_keeps_the_units_of_the_method() -> None:
    torch.manual_seed(0)
    model, x = Compared().eval(), torch.randn(64, 5, 4)
    graph = trace(model, x[:2])
    ranking = reconstruction_ranking(model, graph, [x])
    assert "a" in graph.groups and "a" not in ranking and "c" in ranking
    kept = {name: np.arange(group.units - 2, group.units) for name, group in graph.groups.items()}
    assert reselected(graph, Selection(kept=kept), ranking, streams=True).kept["a"].tolist() == [6, 7]
    with pytest.raises(InvalidArgumentError, match=r"reads those of 'a'.*keep="):
        score(model, graph, ReconstructionConfig(), [x])


_OPTIONS = {"budget": "flops=70%", "measure_latency": False}


def test_what_the_criterion_cannot_score_is_told_before_the_dense_network_is_evaluated() -> None:
    torch.manual_seed(0)
    model, x = Compared().eval(), torch.randn(64, 5, 4)
    evaluated: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        evaluated.append(model)
        return 1.0

    for criterion in (ReconstructionConfig(), DivergenceConfig(rank=ReconstructionConfig(), rivals=())):
        with pytest.raises(InvalidArgumentError, match="reads those of 'a'"):
            latprune.prune(model, x[:2], method=MDP(score=criterion), data=[x], evaluate=evaluate, **_OPTIONS)
    assert not evaluated
    told: list[str] = []
    latprune.prune(model, x[:2], method="uniform", units="reconstruction", data=[x], progress=told.append, **_OPTIONS)
    assert any("their units are the method's" in line for line in told)


@pytest.mark.parametrize("criterion", [ReconstructionConfig(), DivergenceConfig(rank=ReconstructionConfig())])
def test_a_criterion_of_the_dense_run_is_refused_by_several_stages(criterion: object) -> None:
    torch.manual_seed(0)
    model, x = Grouped(False).eval(), torch.randn(8, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidArgumentError, match="ReconstructionConfig follows the run of the dense network.*2 stages"):
        latprune.prune(model, x[:2], method=SPLAMP(stages=2, score=criterion), data=[x], **_OPTIONS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_chain_without_branches_has_no_streams() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    graph = trace(model, torch.randn(2, 6))
    ((name, group),) = graph.groups.items()
    ranking = {name: np.arange(group.units, dtype=float)}
    assert reselected(graph, Selection(kept={name: np.arange(3)}), ranking).kept[name].tolist() == [5, 6, 7]


@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("traced", [torch.contiguous_format, torch.channels_last])
def test_images_may_lie_in_memory_as_they_like(given: torch.memory_format, traced: torch.memory_format) -> None:
    """A pooling to 1 x 1 does one operation more where channels lie last."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()
    x = torch.randn(16, 3, 8, 8)
    graph = trace(model, x[:1].contiguous(memory_format=traced))
    scores = reconstruction_ranking(model, graph, [x.contiguous(memory_format=given)])
    expected = reconstruction_ranking(model, graph, [x.contiguous(memory_format=traced)])
    assert sorted(scores) == sorted(graph.groups)
    for group, found in scores.items():
        np.testing.assert_allclose(found, expected[group], rtol=1e-6)
