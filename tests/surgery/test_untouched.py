"""Attributes that other methods than ``forward`` read follow the cut where their meaning is certain, and are listed where it is not."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.errors import InvalidArgumentError, RebuiltWarning
from latprune.export import save_result
from latprune.graph import ModelGraph, Selection, trace
from latprune.surgery import ArchitectureEdits, prune, replay
from support.equivalence import assert_pruned_equals_masked, randomise


def _halved(graph: ModelGraph, *names: str) -> Selection:
    kept = {n: np.sort(np.concatenate([np.arange(r * g.columns, r * g.columns + g.columns // 2) for r in range(g.rows)]))
            for n, g in graph.groups.items() if g.columns > 1 and (not names or n in names)}  # fmt: skip
    return Selection(kept=kept)


class Deployable(nn.Module):
    """Two parallel convolutions that another method folds into one, built from attributes."""

    def __init__(self, given: int, made: int, groups: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups, self.deployed = given, made, groups, False
        self.wide = nn.Conv2d(given, made, 3, padding=1, groups=groups)
        self.point = nn.Conv2d(given, made, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.one(x) if self.deployed else self.wide(x) + self.point(x))

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        self.one = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1, groups=self.groups)
        self.one.weight.copy_(self.wide.weight + nn.functional.pad(self.point.weight, [1, 1, 1, 1]))
        self.one.bias.copy_(self.wide.bias + self.point.bias)
        self.deployed = True


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = Deployable(3, 16), Deployable(16, 24, groups=2)
        self.num_features = 24
        self.head = nn.Linear(24, 5)

    def reset_classifier(self, classes: int) -> None:
        self.head = nn.Linear(self.num_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def test_the_sizes_that_another_method_builds_of_follow() -> None:
    net, x = Classifier().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x)
    prune(net, graph, _halved(graph))
    assert net.stem.in_channels == 3
    assert net.stem.out_channels == net.stem.wide.out_channels == net.body.in_channels < 16
    assert net.body.out_channels == net.num_features == net.head.in_features < 24
    assert net.body.groups == net.body.wide.groups
    wanted = net(x)
    net.stem.switch_to_deploy(), net.body.switch_to_deploy()
    assert torch.allclose(net(x), wanted, atol=1e-5)
    net.reset_classifier(7)
    assert net(x).shape == (2, 7)


class Config:
    """As libraries of transformers keep one: an object that all parts share."""

    def __init__(self, **sizes: int) -> None:
        self.__dict__.update(sizes)


class Layer(nn.Module):
    def __init__(self, config: Config, inner: int, *, reads: bool) -> None:
        super().__init__()
        self.config, self.reads = config, reads
        self.up, self.down = nn.Linear(config.hidden_size, inner), nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.up(x))
        if self.reads:
            h = h.view(h.shape[0], self.config.parts, self.config.intermediate_size // self.config.parts).flatten(1)
        return self.down(h)


class Stack(nn.Module):
    def __init__(self, config: Config, *, inner: tuple[int, ...] = (), reads: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(3, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, n, reads=reads) for n in (inner or (config.intermediate_size,) * 2))
        self.out = nn.Linear(config.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


def test_a_configuration_follows_while_widths_stay_alike() -> None:
    config = Config(hidden_size=8, intermediate_size=12, image_size=12, parts=3)
    net = Stack(config)
    graph = trace(net, torch.randn(2, 3))
    before = copy.deepcopy(net)
    edits = prune(net, graph, Selection(kept={n: np.arange(6) for n in ("layers.0.up", "layers.1.up")}))
    assert (net.config.intermediate_size, net.config.hidden_size, net.config.image_size) == (6, 8, 12)
    assert all(layer.config is net.config for layer in net.layers)
    assert (config.intermediate_size, edits.stale) == (12, ())  # the user's own object stays: further models are built of it
    read = ArchitectureEdits.from_dict(edits.to_dict())
    assert read == edits
    assert replay(before, read).config.intermediate_size == 6


def test_unlike_widths_are_listed() -> None:
    net = Stack(Config(hidden_size=8, intermediate_size=12))
    graph = trace(net, torch.randn(2, 3))
    assert "config.intermediate_size = 12: the size of" in graph.describe()
    assert {a["attribute"] for a in graph.to_dict()["may_be_stale"]} >= {"config.intermediate_size"}
    edits = prune(net, graph, Selection(kept={"layers.0.up": np.arange(6)}))
    assert edits.stale == ("config.intermediate_size",) == ArchitectureEdits.from_dict(edits.to_dict()).stale
    assert net.config.intermediate_size == 12
    # What a further cut makes alike again follows.
    selection = Selection(kept={"layers.0.up": np.arange(6), "layers.1.up": np.arange(6)})
    later = prune(net, graph, selection, since=Selection(kept={"layers.0.up": np.arange(6)}))
    assert (net.config.intermediate_size, later.stale) == (6, ())


def test_a_configuration_that_the_forward_reads_is_traced() -> None:
    net, x = randomise(Stack(Config(hidden_size=8, intermediate_size=12, parts=3), reads=True)), torch.randn(2, 3).double()
    graph = trace(net, x)
    assert type(net.config.intermediate_size) is int
    assert any("layers.0.up" in name for name in graph.groups)
    pruned = copy.deepcopy(net)
    selection = _halved(graph)
    prune(pruned, graph, selection)
    assert pruned.config.intermediate_size == pruned.layers[0].up.out_features < 12
    assert_pruned_equals_masked(net, x)


@pytest.mark.parametrize("holder", [SimpleNamespace(width=12), {"width": 12}])
def test_dictionaries_and_namespaces_are_configurations(holder: object) -> None:
    net = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 2))
    net.config = holder
    graph = trace(net, torch.randn(2, 3))
    prune(net, graph, Selection(kept={"0": np.arange(5)}))
    values = net.config if isinstance(net.config, dict) else vars(net.config)
    assert values["width"] == 5


class Lists(nn.Module):
    """A list of widths, and integers that only look like one."""

    def __init__(self) -> None:
        super().__init__()
        self.dims, self.patch_size, self.memory = [6, 10], 10, 10
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def test_lists_follow_and_what_has_no_certain_meaning_is_listed() -> None:
    net = Lists()
    graph = trace(net, torch.randn(2, 3))
    edits = prune(net, graph, Selection(kept={"a": np.arange(4), "b": np.arange(7)}))
    assert net.dims == [4, 7] and isinstance(net.dims, list)
    assert (net.patch_size, net.memory, edits.stale) == (10, 10, ("memory",))


def test_a_run_says_what_may_be_stale() -> None:
    result = latprune.prune(Lists(), torch.randn(2, 3), budget="params=60%", method="uniform", measure_latency=False)
    assert any("memory" in note and "check the methods that read them" in note for note in result.record.notes)
    assert "memory" in str(result)


class Listed(nn.Module):
    """One entry of a list is read by the forward, the other by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_sizes=[6, 10])
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))).reshape(-1, self.config.hidden_sizes[-1]))


def test_entries_of_one_list_follow_for_different_reasons() -> None:
    net = Listed()
    edits = prune(net, trace(net, torch.randn(2, 3)), Selection(kept={"a": np.arange(4), "b": np.arange(7)}))
    assert net.config.hidden_sizes == [4, 7]
    assert replay(Listed(), ArchitectureEdits.from_dict(edits.to_dict())).config.hidden_sizes == [4, 7]


def test_a_network_that_was_rebuilt_is_saved_as_a_program(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return Classifier().eval()

    result = latprune.prune(make(), torch.randn(2, 3, 8, 8), budget="params=60%", method="uniform", measure_latency=False)
    result.save(tmp_path / "before")
    wanted, x = copy.deepcopy(result.model).eval(), torch.randn(2, 3, 8, 8)
    result.model.stem.switch_to_deploy()
    with pytest.warns(RebuiltWarning, match=r"\('stem.one.weight' is new\): it is saved as a captured program"):
        result.save(tmp_path / "after")
    fused = latprune.restore(make, tmp_path / "after")
    assert type(fused).__name__ == "ProgramModule" and torch.equal(fused(x), result.model.eval()(x))
    with pytest.raises(InvalidArgumentError, match=r"did not have when it was pruned.*Save the result first"):
        save_result(tmp_path / "refused", result.model, result.record)
    assert not (tmp_path / "refused").exists()
    restored = latprune.restore(make, tmp_path / "before")
    restored.stem.switch_to_deploy()
    assert torch.allclose(restored(x), wanted(x), atol=1e-5)


def test_the_widths_of_keys_and_values_follow_the_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
    net = nn.Sequential(nn.Linear(5, 16), layer, nn.Linear(16, 3)).eval()
    graph = trace(net, torch.randn(2, 4, 5))
    name = next(n for n, group in graph.groups.items() if any(m.tensor == "0.weight" for m in group.members))
    group = graph.groups[name]
    kept = np.concatenate([row * group.columns + np.arange(group.columns // 2) for row in range(group.rows)])
    prune(net, graph, Selection(kept={name: kept}))
    attention = layer.self_attn
    assert attention.embed_dim == attention.kdim == attention.vdim == net[0].out_features == 8
