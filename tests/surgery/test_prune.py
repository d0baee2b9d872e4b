"""Surgery: parameters stay parameters, edits are data, and a fresh model is brought to the pruned architecture."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune import zoo
from latprune.errors import CheckpointError, FileFormatError, InvalidArgumentError, SurgeryError
from latprune.graph import Selection, trace
from latprune.surgery import ArchitectureEdits, RemovedBranch, prune, replay
from support.equivalence import random_selection, randomise


def _half(graph: Any) -> dict[str, np.ndarray]:
    return {
        name: np.concatenate([np.arange(max(1, g.columns // 2)) + r * g.columns for r in range(g.rows)]) for name, g in graph.groups.items()
    }


def test_parameters_keep_their_nature() -> None:
    model = zoo.cifar_resnet(8, "B").to(torch.bfloat16).to(memory_format=torch.channels_last)
    model.conv1.weight.requires_grad_(False)
    model.layer1[0].conv1.weight.grad = torch.ones_like(model.layer1[0].conv1.weight)
    model.layer1[0].conv1.weight.note = "kept"  # type: ignore[attr-defined]
    graph = trace(model, torch.randn(1, 3, 16, 16, dtype=torch.bfloat16))
    old = model.layer1[0].conv1.weight
    prune(model, graph, Selection(kept=_half(graph)))
    new = model.layer1[0].conv1.weight
    assert isinstance(new, nn.Parameter) and new is not old and new.dtype == torch.bfloat16
    assert new.is_contiguous(memory_format=torch.channels_last)
    assert new.grad is not None and new.grad.shape == new.shape
    assert new.note == "kept"  # type: ignore[attr-defined]
    assert not model.conv1.weight.requires_grad and new.requires_grad
    assert model.conv1.weight.shape[0] == model.conv1.out_channels == 8
    assert model.bn1.num_features == 8 and model.linear.in_features == model.linear.weight.shape[1]


def test_training_goes_on_after_pruning() -> None:
    model = zoo.cifar_resnet(8, "A").train()
    graph = trace(model, torch.randn(2, 3, 16, 16))
    prune(model, graph, random_selection(graph, np.random.default_rng(0), blocks=1))
    assert model.training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = F.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_replay_brings_a_fresh_model_to_the_architecture(shortcut: Any) -> None:
    model = randomise(zoo.cifar_resnet(14, shortcut))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    graph = trace(model, x)
    edits = prune(model, graph, random_selection(graph, np.random.default_rng(1), blocks=2))
    text = json.dumps(edits.to_dict())
    fresh = replay(zoo.cifar_resnet(14, shortcut).double().eval(), ArchitectureEdits.from_dict(json.loads(text)))
    fresh.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))


def test_edits_of_stages_compose() -> None:
    model = randomise(zoo.cifar_resnet(14, "A"))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    edits = ArchitectureEdits()
    for stage in range(3):
        graph = trace(model, x)
        selection = random_selection(graph, np.random.default_rng(stage), blocks=1, low=0.6)
        edits = edits.then(prune(model, graph, selection))
    assert len(edits.steps) == 3
    fresh = replay(zoo.cifar_resnet(14, "A").double().eval(), ArchitectureEdits.from_dict(edits.to_dict()))
    fresh.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))


class Tied(nn.Module):
    """The output weights are the embedding, as in many language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.fc1 = nn.Linear(8, 12)
        self.fc2 = nn.Linear(12, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        return self.head(y + self.fc2(torch.relu(self.fc1(y))))


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    graph = trace(model, torch.randint(0, 20, (2, 5)))
    before = graph.parameters(graph.dense_widths())
    assert before == sum(p.numel() for p in model.parameters())
    prune(model, graph, Selection(kept=_half(graph)))
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.shape == (20, 4)
    assert model.embed.embedding_dim == model.head.in_features == 4
    assert model(torch.randint(0, 20, (2, 5))).shape == (2, 5, 20)


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_reparametrised_weights_run_or_are_refused_in_words(wrap: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), wrap(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(3, 4)
    graph = trace(model, x)
    pruned = copy.deepcopy(model)
    prune(pruned, graph, Selection(kept=_half(graph)))
    assert pruned(x).shape == (3, 2)
    assert all(k.reason for k in graph.kept_whole)


def test_selections_are_checked() -> None:
    model = zoo.cifar_resnet(8, "A")
    graph = trace(model, torch.randn(1, 3, 16, 16), min_widths={"layer1.0.conv1": 4}, blocks_keep=["layer1.0"])
    cases: list[tuple[Selection, str]] = [
        (Selection(kept={"nothing": np.array([0])}), "no channel group"),
        (Selection(kept={"layer1.0.conv1": np.array([], dtype=np.int64)}), "increasing unit indices"),
        (Selection(kept={"layer1.0.conv1": np.array([3, 2])}), "increasing unit indices"),
        (Selection(kept={"layer1.0.conv1": np.array([0, 99])}), "increasing unit indices"),
        (Selection(kept={"layer1.0.conv1": np.array([0, 1])}), "at least 4"),
        (Selection(kept={}, removed_blocks=frozenset({"nothing"})), "no block"),
        (Selection(kept={}, removed_blocks=frozenset({"layer1.0"})), "blocks_keep"),
    ]
    for selection, match in cases:
        with pytest.raises(InvalidArgumentError, match=match):
            prune(model, graph, selection)
    assert model.conv1.weight.shape[0] == 16


def test_rows_keep_equal_counts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1))
    graph = trace(model, torch.randn(1, 3, 4, 4))
    name = next(n for n, g in graph.groups.items() if g.rows == 2)
    with pytest.raises(InvalidArgumentError, match="same number of units in each of the 2 rows"):
        prune(model, graph, Selection(kept={name: np.array([0, 1, 4])}))


def test_a_graph_of_another_model_is_refused() -> None:
    graph = trace(zoo.cifar_resnet(14, "A"), torch.randn(1, 3, 16, 16))
    with pytest.raises(SurgeryError, match="traced model"):
        prune(zoo.cifar_resnet(8, "A"), graph, Selection(kept=_half(graph)))


def test_edits_of_another_architecture_are_refused() -> None:
    model = zoo.cifar_resnet(8, "A")
    graph = trace(model, torch.randn(1, 3, 16, 16))
    edits = prune(model, graph, random_selection(graph, np.random.default_rng(0), blocks=1, high=0.8))
    for other in (zoo.cifar_resnet(8, "A", num_classes=3), zoo.dense_network(4, (2, 2)), model):
        if other is model or not hasattr(other, "layer1"):
            with pytest.raises(CheckpointError, match="another architecture"):
                replay(other, edits)


def _valid() -> dict[str, Any]:
    model = zoo.cifar_resnet(8, "B")
    graph = trace(model, torch.randn(1, 3, 16, 16))
    return prune(model, graph, Selection(kept=_half(graph), removed_blocks=frozenset({"layer2.0"}))).to_dict()


def test_edit_files_are_validated() -> None:
    good = _valid()
    assert ArchitectureEdits.from_dict(good).to_dict() == good

    def broken(change: Any) -> dict[str, Any]:
        data = copy.deepcopy(good)
        change(data)
        return data

    cases: list[tuple[Any, str]] = [
        (lambda d: d.update(version=2), "version"),
        (lambda d: d.update(format="other"), "format"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["steps"][0]["index_sets"][0].reverse(), "index_sets.0"),
        (lambda d: d["steps"][0]["tensors"][0]["keep"].update({"9": 0}), "keep"),
        (lambda d: d["steps"][0]["tensors"][0]["keep"].update({"0": 999}), "keep.0"),
        (lambda d: d["steps"][0]["blocks"][0].update(module=""), "blocks.0"),
        (lambda d: d["steps"][0]["blocks"][0]["tail"].append({}), "blocks.0.tail"),
    ]
    for change, path in cases:
        with pytest.raises(FileFormatError, match=path.replace(".", r"\.")):
            ArchitectureEdits.from_dict(broken(change))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(SurgeryError, match="unknown"):
        RemovedBranch(nn.Sequential(), argument=0, shortcut=(), tail=({"op": "system", "args": []},))
    with pytest.raises(SurgeryError, match="does not exist"):
        RemovedBranch(nn.Sequential(), argument=0, shortcut=("nowhere",), tail=())


class _Listed(nn.Module):
    """A layer that says where its input comes from, as the layers of a configuration file do."""

    def __init__(self, layer: nn.Module, source: int | list[int], add: bool) -> None:
        super().__init__()
        self.layer, self.source, self.add = layer, source, add

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x) if self.add else self.layer(x)


class _ByList(nn.Module):
    """Its forward goes by what the layers say."""

    def __init__(self) -> None:
        super().__init__()
        branch = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1))
        layers = [nn.Conv2d(3, 8, 3, padding=1), branch, nn.Conv2d(8, 8, 1)]
        sources: list[int | list[int]] = [-1, [0], -1]
        self.layers = nn.ModuleList(_Listed(layer, source, layer is layers[1]) for layer, source in zip(layers, sources, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for layer in self.layers:
            x = layer(x if layer.source == -1 else kept[layer.source[0]])
            kept.append(x)
        return x.mean((2, 3))


def test_a_removed_block_has_the_attributes_that_the_forward_around_it_reads() -> None:
    torch.manual_seed(0)
    model, x = _ByList().eval(), torch.randn(1, 3, 8, 8)
    graph = trace(model, x)
    assert list(graph.blocks) == ["layers.1"]
    pruned = copy.deepcopy(model)
    edits = prune(pruned, graph, Selection(kept={}, removed_blocks=frozenset({"layers.1"})))
    assert isinstance(pruned.layers[1], RemovedBranch) and pruned.layers[1].source == [0] and pruned.layers[1].add
    plain = copy.deepcopy(model)
    for value in plain.layers[1].layer[2].parameters():
        nn.init.zeros_(value)
    assert torch.allclose(pruned(x), plain(x)) and torch.equal(replay(copy.deepcopy(model), edits)(x), pruned(x))
    with pytest.raises(AttributeError, match="layer"):
        _ = pruned.layers[1].layer


class State(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.fc1 = nn.Linear(5, 9)
        self.fc2 = nn.Linear(9, 11)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.lstm(self.embed(x))[0])))


def test_the_state_of_recurrent_layers_is_refused_and_the_rest_is_pruned() -> None:
    model = State()
    x = torch.randint(0, 11, (2, 4))
    graph = trace(model, x)
    assert list(graph.groups) == ["embed#2", "fc1"]
    assert any("lstm" in k.reason for k in graph.kept_whole)
    prune(model, graph, Selection(kept=_half(graph)))
    assert model(x).shape == (2, 4, 11)
