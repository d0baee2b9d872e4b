"""All strategies: names, data of all kinds, reports, and what each may change."""

from __future__ import annotations

import copy
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from latprune.errors import FileFormatError, InvalidArgumentError, LatpruneError
from latprune.graph import Selection, trace
from latprune.importance import best_units, score
from latprune.recovery import (
    Distil,
    LayerRecovery,
    ReconstructionConfig,
    Recovery,
    RecoveryReport,
    Refit,
    get_strategy,
    reconstruction_ranking,
    recover,
    reselected,
    selection_of_edits,
    strategies,
)
from latprune.recovery.batches import calibration_pieces
from latprune.recovery.contract import Situation
from latprune.recovery.recover import output_error
from latprune.recovery.stepper import held_values, record_operations
from latprune.recovery.walk import Layer, walk
from latprune.surgery import prune
from latprune.train import recalibrate_batch_norm
from recovery.nets import half, line, packed, resnet, transformer


def cut(model: nn.Module, graph: Any, selection: Selection) -> nn.Module:
    network = copy.deepcopy(model)
    prune(network, graph, selection)
    return network


@pytest.mark.parametrize("name", ["norms", "map", "shift", "fold", "refit", "distil"])
def test_every_strategy_adds_no_parameter_and_reports_every_layer(name: str) -> None:
    model, x = line(1)
    graph = trace(model, x[:2])
    selection = half(graph)
    network = cut(model, graph, selection)
    before = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    report = recover(network, model, [x, x.flip(2)], graph=graph, selection=selection, strategy=name)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == before
    assert all(bool(layer.action) != bool(layer.reason) for layer in report.layers)
    assert RecoveryReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    assert not any(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", ["map", "shift", "distil"])
def test_a_strategy_lowers_the_error_of_the_outputs(name: str) -> None:
    model, x = line(1)
    graph = trace(model, x[:2])
    selection = half(graph)
    network = cut(model, graph, selection)
    report = recover(
        network, model, [torch.cat([x] * 4) + 0.01 * torch.randn(192, *x.shape[1:])], graph=graph, selection=selection, strategy=name
    )
    assert report.output_before is not None and report.output_after is not None and any(layer.action for layer in report.layers)


def test_the_map_restores_duplicated_channels_exactly() -> None:
    model, x = line(1)
    with torch.no_grad():
        for k in range(6):
            model.a.weight[k + 6] = 2 * model.a.weight[k]
            model.n.weight[k + 6], model.n.bias[k + 6] = model.n.weight[k], model.n.bias[k]
            model.n.running_mean[k + 6] = 2 * model.n.running_mean[k]
            model.n.running_var[k + 6] = 4 * model.n.running_var[k] + 3 * model.n.eps
    graph = trace(model, x[:2])
    selection = Selection(kept={"a": np.arange(6)})
    for name in ("map", "fold"):
        network = cut(model, graph, selection)
        recover(network, model, [x], graph=graph, selection=selection, strategy=name)
        assert torch.allclose(network(x), model(x), atol=2e-2), name
    scores = reconstruction_ranking(model, graph, [x])["a"]
    kept = best_units(graph.groups["a"], scores, 6)
    assert sorted(k % 6 for k in kept.tolist()) == list(range(6))


def test_reconstruction_is_a_criterion() -> None:
    model, x = transformer()
    graph = trace(model, x[:2])
    importance = score(model, graph, ReconstructionConfig(), [(x, torch.zeros(len(x)))])
    for name, group in graph.groups.items():
        assert importance.units[name].shape == (group.units,)
        assert (importance.units[name] > 0).all()
        total = sum(importance.shares_of(name).values())
        assert np.allclose(total, importance.units[name])
    with pytest.raises(InvalidArgumentError, match="data"):
        score(model, graph, ReconstructionConfig())


class Pair(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


def test_batches_of_all_kinds_give_the_same_network_whatever_their_labels() -> None:
    model, x = line(1)
    graph = trace(model, x[:2])
    selection = half(graph)
    zeros, drawn = torch.zeros(len(x)), torch.randn(len(x))
    kinds: dict[str, Any] = {
        "tensor": [x],
        "pair": [(x, zeros)],
        "other labels": [(x, drawn)],
        "list": [[x, zeros]],
        "named tuple": [Pair(x, drawn)],
        "generator": ((b, None) for b in x.split(12)),
        "array": [(x.numpy(), zeros.numpy())],
        "inputs of several": [((x,), zeros)],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, drawn), batch_size=12),
    }
    networks = {}
    for kind, data in kinds.items():
        networks[kind] = cut(model, graph, selection)
        report = recover(networks[kind], model, data, graph=graph, selection=selection)
        assert report.changed and report.images + report.held_out == len(x) and report.held_out > 0
    expected = networks["tensor"].state_dict()
    for kind, network in networks.items():
        assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items()), kind


def test_a_mapping_may_hold_labels() -> None:
    model, inputs = packed()
    example = {k: v[:2] for k, v in inputs.items()}
    graph = trace(model, example)
    selection = half(graph)
    report = recover(cut(model, graph, selection), model, [{**inputs, "labels": torch.zeros(64)}], graph=graph, selection=selection)
    reasons = {layer.layer: layer.reason for layer in report.left}
    assert report.changed > 0 and "looked-up" in reasons["embed"]


def test_no_more_images_are_taken_than_asked_for() -> None:
    model, x = line(1)
    graph = trace(model, x[:2])
    selection = half(graph)
    report = recover(cut(model, graph, selection), model, x.split(10), graph=graph, selection=selection, images=25)
    assert report.images + report.held_out == 24  # pieces of two


def test_all_pieces_have_one_size() -> None:
    """A network that computes anchors anew for another batch size takes one course on all of them; a batch of fewer stays whole."""
    fitted, held = calibration_pieces(torch.arange(256.0).reshape(256, 1).split(24), 512, torch.device("cpu"))
    assert {len(piece.inputs) for piece in (*fitted, *held)} == {25} and len(fitted) == 9 and len(held) == 1
    fitted, held = calibration_pieces([torch.zeros(3, 1)], 3, torch.device("cpu"), size=2)
    assert [len(piece.inputs) for piece in (*fitted, *held)] == [2, 1]


def test_errors_say_what_to_give() -> None:
    model, x = line(1)
    graph = trace(model, x[:2])
    selection = half(graph)
    network = cut(model, graph, selection)
    with pytest.raises(InvalidArgumentError, match="needs data"):
        recover(network, model, None, graph=graph, selection=selection)
    with pytest.raises(InvalidArgumentError, match="no batch"):
        recover(network, model, [], graph=graph, selection=selection)
    with pytest.raises(InvalidArgumentError, match="images"):
        recover(network, model, [x], graph=graph, selection=selection, images=0)
    with pytest.raises(InvalidArgumentError, match="strategy"):
        recover(network, model, [x], graph=graph, selection=selection, strategy="magic")
    with pytest.raises(FileFormatError, match="recovery"):
        RecoveryReport.from_dict({"format": "latprune/recovery"})
    assert recover(network, model, None, graph=graph, selection=selection, strategy="fold").images == 0


def test_names_and_objects_are_strategies() -> None:
    assert set(strategies()) == {"distil", "fold", "map", "norms", "refit", "shift"}
    mine = Refit(ridge=0.1)
    assert get_strategy(mine) is mine
    assert isinstance(get_strategy("refit"), Recovery)


def test_distillation_that_does_harm_is_undone() -> None:
    model, x = line(1)
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    report = recover(
        network, model, [x], graph=graph, selection=half(graph, 1.0), strategy=Distil(first=False, relative_rate=10.0, epochs=1)
    )
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), model.parameters(), strict=True))
    assert "is no lower" in report.layers[-1].reason  # it was 0


def test_the_selection_of_several_stages_is_read_from_their_edits() -> None:
    model, x = resnet()
    graph = trace(model, x[:2])
    first = half(graph, 0.75)
    network = copy.deepcopy(model)
    edits = [prune(network, graph, first)]
    again = trace(network, x[:2])
    removed = next(b.name for b in again.blocks.values() if b.removable)
    second = half(again, 0.75, (removed,), seed=1)
    edits.append(prune(network, again, second))
    selection = selection_of_edits(graph, edits)
    assert selection.removed_blocks == {removed}
    direct = cut(model, graph, selection)
    assert {k: v.shape for k, v in direct.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    with torch.no_grad():
        assert torch.allclose(direct.eval()(x), network.eval()(x), atol=1e-5)


def test_units_are_chosen_anew_at_the_same_widths() -> None:
    model, x = resnet()
    graph = trace(model, x[:2])
    selection = half(graph)
    ranking = {name: np.arange(group.units, dtype=np.float64) for name, group in graph.groups.items()}
    again = reselected(graph, selection, ranking)
    streams = [name for name, group in graph.groups.items() if not all(member.blocks for member in group.members)]
    for name, group in graph.groups.items():
        width = selection.kept[name].size
        expected = selection.kept[name] if name in streams else np.arange(group.units - width, group.units)
        assert np.array_equal(again.kept[name], expected)
    assert streams and len(streams) < len(graph.groups)
    everywhere = reselected(graph, selection, ranking, streams=True)
    name = streams[0]
    assert everywhere.kept[name].size == selection.kept[name].size
    assert everywhere.kept[name].max() == graph.groups[name].units - 1


def test_elimination_keeps_what_reconstructs_the_consumers_best() -> None:
    """Two of three channels: the pair whose least-squares fit of the consumer's result is best, found by trying all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.randn(400, 4)
    graph = trace(model, x[:2])
    with torch.no_grad():
        read = model[1](model[0](x)).double()
        result = read @ model[2].weight.double().T
    errors = []
    for gone in range(3):
        left = read[:, [k for k in range(3) if k != gone]]
        solved = torch.linalg.lstsq(left, result).solution
        errors.append(float((left @ solved - result).square().sum()))
    scores = reconstruction_ranking(model, graph, [x], rows=400, ridge=1e-8)["0"]
    assert int(scores.argmin()) == int(np.argmin(errors))
    assert scores.min() * float(result.square().sum()) == pytest.approx(min(errors), rel=0.05)


@pytest.mark.parametrize("images", [1, 2, 9, 400])
def test_a_recovery_that_makes_the_outputs_worse_is_undone(images: int) -> None:
    class Worse(Recovery):
        name = "worse"

        def run(self, situation):
            with torch.no_grad():
                for parameter in situation.pruned.parameters():
                    parameter.mul_(3.0)
            return [LayerRecovery(layer="all", action="tripled")]

    model, x = resnet()
    x = x[:images]
    graph = trace(model, x[:1])
    selection = half(graph)
    pruned = cut(model, graph, selection)
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    report = recover(pruned, model, [x], graph=graph, selection=selection, strategy=Worse())
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())
    assert report.changed == 0 and "undone" in report.left[0].reason and report.output_after == report.output_before


def test_as_many_images_are_used_as_their_activations_fit_into_memory() -> None:
    model, x = resnet()
    graph = trace(model, x[:2])
    selection = half(graph)
    batches, said = [x[place : place + 4] for place in range(0, 16, 4)], []
    recover(cut(model, graph, selection), model, batches, graph=graph, selection=selection, strategy=Refit(rounds=0), progress=said.append)
    assert not any("images are used" in line for line in said)
    strategy = Refit(rounds=0, activations=1e5)
    report = recover(
        cut(model, graph, selection), model, batches, graph=graph, selection=selection, strategy=strategy, progress=said.append
    )
    (line,) = [line for line in said if "images are used" in line]
    assert "8 of 16 images are used at the first layer and 16 from layer 9 of 14 on" in line and "MB an image" in line
    assert report.images + report.held_out == 16
    fewer = ["of 16 images are used here" in layer.note for layer in report.layers if layer.action]
    assert fewer[0] and not fewer[-1] and fewer == sorted(fewer, reverse=True)


def test_images_that_come_in_later_are_run_through_the_refitted_layers() -> None:
    model, x = resnet()
    graph = trace(model, x[:2])
    selection = half(graph)
    batches = [x[place : place + 4] for place in range(0, 16, 4)]
    layers: list[dict[str, Layer]] = []
    for activations in (1e5, 1e9):
        network = cut(model, graph, selection)
        situation = Situation(
            pruned=network, dense=model, graph=graph, selection=selection, fitted=batches[:3], held_out=batches[3:], seed=0
        )
        layers.append({})
        for layer in walk(situation, rows=10**6, least_rows=10**6, memory=1e9, activations=activations):
            layers[-1][layer.site.name] = layer
            layer.site.weight.detach().mul_(1.1)  # as a strategy that changes every layer does
    few, all_images = layers
    assert few.keys() == all_images.keys()
    same = [name for name in few if few[name].note == all_images[name].note]
    assert 0 < len(same) < len(few)
    for name in same:
        for part in ("fitted", "held_out"):
            for values in ("x", "target", "present"):
                torch.testing.assert_close(getattr(getattr(few[name], part), values), getattr(getattr(all_images[name], part), values))


def test_what_a_run_holds_is_what_something_later_reads() -> None:
    class Long(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = x * 2.0  # 12 values, read at the end through a view
            seen = first.view(-1)
            for _ in range(3):
                x = torch.relu(x)
            return x.view(-1) + seen

    # The first product, and one result of the chain at a time.
    assert held_values(record_operations(Long(), torch.zeros(3, 4))) == 24


def test_the_outputs_error_is_the_same_however_the_images_come() -> None:
    model, x = line(1)
    graph = trace(model, x[:2])
    selection = half(graph)
    pruned = cut(model, graph, selection)
    with torch.no_grad():
        model.c.bias.add_(1e4)  # a mean that is large beside the variation
        pruned.c.bias.add_(1e4)
        theirs, mine = model(x).double(), pruned(x).double()
    expected = float((mine - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum())
    for size in (1, 5, len(x)):
        assert output_error(pruned, model, list(x.split(size))) == pytest.approx(expected, rel=1e-2)  # runs of other sizes round otherwise
    assert output_error(pruned, model, []) is None


def test_a_strategy_that_changes_the_structure_is_refused_and_its_values_are_put_back() -> None:
    class Biased(Recovery):
        name = "biased"

        def run(self, situation):
            conv = situation.pruned.conv1
            with torch.no_grad():
                conv.weight.mul_(2.0)
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
            return []

    model, x = resnet()
    graph = trace(model, x[:1])
    selection = half(graph)
    pruned = cut(model, graph, selection)
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    with pytest.raises(LatpruneError, match="'biased' changed the network's structure.*'conv1.bias' was absent"):
        recover(pruned, model, [x], graph=graph, selection=selection, strategy=Biased())
    assert all(torch.equal(pruned.state_dict()[name], value) for name, value in before.items())


class Maps(nn.Module):
    """A fully convolutional network: it takes single images without a word."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(image)))


def test_single_examples_are_told_as_such_where_the_model_would_take_them_too() -> None:
    torch.manual_seed(0)
    model, x = Maps().eval(), torch.randn(12, 3, 6, 6)
    graph = trace(model, x[:2])
    selection = half(graph)
    network = cut(model, graph, selection)
    kinds: list[Any] = [x, torch.utils.data.TensorDataset(x, torch.zeros(12))]
    for data in kinds:
        with pytest.raises(InvalidArgumentError, match=r"3, 6, 6\].*single examples; give DataLoader\(data, batch_size=64\)"):
            recover(network, model, data, graph=graph, selection=selection)
    with pytest.raises(InvalidArgumentError, match="single examples"):
        reconstruction_ranking(model, graph, x)
    by_name = trace(model, {"image": x[:2]})
    with pytest.raises(InvalidArgumentError, match="single examples"):
        recover(network, model, [{"image": image} for image in x], graph=by_name, selection=selection)
    assert recover(network, model, [{"image": x, "label": torch.zeros(12)}], graph=by_name, selection=selection).layers


def test_keys_that_forward_does_not_take_are_named() -> None:
    model, x = line(1)
    graph = trace(model, x[:2])
    selection = half(graph)
    network = cut(model, graph, selection)
    with pytest.raises(InvalidArgumentError, match=r"batch 0 of the data.*'image', which are passed as keyword arguments.*takes 'x'"):
        recover(network, model, [{"image": x, "label": torch.zeros(len(x))}], graph=graph, selection=selection)


@pytest.mark.parametrize("strategy", sorted(strategies()))
def test_layers_of_removed_blocks_are_left_out(strategy: str) -> None:
    """With narrowed streams they read what is cut, and strategies that change a copy of the dense network change them too."""
    model, x = resnet()
    graph = trace(model, x[:2])
    removed = sorted(graph.blocks)[0]
    selection = half(graph, removed=(removed,))
    network = cut(model, graph, selection)
    before = output_error(network, model, [x])
    report = recover(network, model, [x], graph=graph, selection=selection, strategy=strategy)
    gone = {name for name, _ in model.named_modules()} - {name for name, _ in network.named_modules()}
    assert gone and not gone & {layer.layer for layer in report.layers if layer.action}
    assert report.changed and output_error(network, model, [x]) < before


class Domains(nn.Module):
    """A network with batch norms of two domains, of which the images show one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.here, self.elsewhere = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.b, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, domain: int = 0) -> torch.Tensor:
        norm = self.here if domain == 0 else self.elsewhere
        return self.head(self.b(torch.relu(norm(self.a(x)))).mean((2, 3)))


def test_norms_that_do_not_run_keep_their_statistics() -> None:
    torch.manual_seed(0)
    model, x = Domains(), torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        for domain in (0, 1):
            model(x + domain, domain)
    model.eval()
    graph = trace(model, x[:2])
    selection = half(graph)
    network = cut(model, graph, selection)
    kept = {name: value.clone() for name, value in network.elsewhere.state_dict().items()}
    assert recalibrate_batch_norm(network, [(x, None)]) == 1
    report = recover(network, model, [x], graph=graph, selection=selection, strategy="norms")
    assert all(torch.equal(value, kept[name]) for name, value in network.elsewhere.state_dict().items())
    assert [layer.layer for layer in report.layers if layer.action == "norms"] == ["here"]


class Masked(nn.Module):
    """Scores of which some classes are ruled out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.b(torch.relu(self.a(x))).mean((2, 3)))
        return scores.masked_fill(torch.tensor([False, False, True, False]), -torch.inf)


def test_scores_that_both_networks_rule_out_count_nothing_in_distillation() -> None:
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.randn(96, 3, 8, 8)
    graph = trace(model, x[:2])
    selection = half(graph)
    report = recover(cut(model, graph, selection), model, [x], graph=graph, selection=selection, strategy=Distil(first=False, epochs=8))
    assert [layer.action for layer in report.layers] == ["distil"] and report.output_after < report.output_before


def test_batches_without_images_are_named_and_the_callers_images_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.randn(32, 3, 8, 8)
    data = [x[:16].clone(), x[16:].clone()]
    graph = trace(model, x[:2].clone())
    selection = half(graph)
    recover(cut(model, graph, selection), model, data, graph=graph, selection=selection)
    assert torch.equal(torch.cat(data), x)
    with pytest.raises(InvalidArgumentError, match="batch 1 of data holds no image"):
        recover(cut(model, graph, selection), model, [data[0], x[:0]], graph=graph, selection=selection)
