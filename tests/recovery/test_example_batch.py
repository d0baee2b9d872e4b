"""An example batch of one image, which PyTorch may compute with other operators than the batches of the data, recovers as one of two."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, Selection, trace
from latprune.recovery import RecoveryReport, kept_channels, reconstruction_ranking, recover, strategies
from latprune.recovery.elimination import unread_groups
from latprune.recovery.pairing import UNKNOWN, Pairing
from latprune.recovery.stepper import record_operations
from latprune.surgery import prune
from recovery.nets import half, mixed, resnet


class Alone(nn.Module):
    """PyTorch's attention beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


class Encoders(nn.Module):
    """PyTorch's encoder over tokens."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def net(kind: str) -> tuple[nn.Module, Tensor]:
    if kind in ("resnet", "mixed"):
        model, x = {"resnet": resnet, "mixed": mixed}[kind]()
        return model, x[:48]
    torch.manual_seed(0)
    model = Alone() if kind == "attention" else Encoders(norm_first=kind == "norm first")
    return model.eval(), torch.randn(80, 6, 16)


def recovered(
    model: nn.Module, x: Tensor, examples: int, *, form: str, blocks: int = 0, strategy: str = "refit"
) -> tuple[RecoveryReport, ModelGraph, Selection]:
    graph = trace(model, x[:examples], form=form)
    dense: nn.Module = graph.program if graph.program is not None else model
    removed = tuple(b.name for b in graph.blocks.values() if b.removable)[:blocks]
    selection = half(graph, 0.75, removed)
    network = copy.deepcopy(dense)
    prune(network, graph, selection)
    return recover(network, dense, x.split(8), graph=graph, selection=selection, strategy=strategy), graph, selection


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("attention", "program"),
        ("norm first", "program"),
        ("norm last", "program"),
        ("norm first", "class"),
        ("norm last", "class"),
        ("resnet", "class"),
        ("resnet", "program"),
        ("mixed", "class"),
    ],
)
def test_the_batch_of_the_example_makes_no_difference(kind: str, form: str, blocks: int) -> None:
    model, x = net(kind)
    (one, graph, first), (two, other, second) = (recovered(model, x, examples, form=form, blocks=blocks) for examples in (1, 2))
    assert list(graph.groups) == list(other.groups) and first.removed_blocks == second.removed_blocks
    assert one.output_before == pytest.approx(two.output_before, rel=1e-4)
    assert one.output_after == pytest.approx(two.output_after, rel=1e-3)
    assert [(layer.layer, bool(layer.action), layer.reason) for layer in one.layers] == [
        (layer.layer, bool(layer.action), layer.reason) for layer in two.layers
    ]
    assert not any(layer.reason == UNKNOWN for layer in one.layers)


@pytest.mark.parametrize(("kind", "form"), [("attention", "program"), ("norm first", "class"), ("norm last", "program")])
def test_reconstruction_ranks_alike_whatever_the_batch_of_the_example(kind: str, form: str) -> None:
    model, x = net(kind)
    ranked = []
    for examples in (1, 2):
        graph = trace(model, x[:examples], form=form)
        ranked.append(reconstruction_ranking(graph.program or model, graph, x.split(8)))
        assert unread_groups(graph.program or model, graph, x[:8]) == [name for name in graph.groups if name not in ranked[-1]]
    one, two = ranked
    assert list(one) == list(two) and one
    for name, scores in one.items():
        np.testing.assert_allclose(scores, two[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("strategy", sorted(strategies()))
@pytest.mark.parametrize(("kind", "form"), [("attention", "program"), ("norm first", "program"), ("norm last", "class")])
def test_every_strategy_runs_with_an_example_of_one(kind: str, form: str, strategy: str) -> None:
    model, x = net(kind)
    one, two = (recovered(model, x, examples, form=form, strategy=strategy)[0] for examples in (1, 2))
    assert one.output_after is not None and one.output_before is not None and one.output_after <= one.output_before
    assert one.output_after == pytest.approx(two.output_after, rel=1e-2)


@pytest.mark.parametrize("strategy", sorted(strategies()))
@pytest.mark.parametrize(("kind", "form"), [("attention", "program"), ("norm first", "program"), ("norm last", "class")])
def test_layers_whose_kept_channels_are_not_known_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, kind: str, form: str, strategy: str
) -> None:
    """Where the network cannot be traced on the data: a reason in words, never values at other places."""
    monkeypatch.setattr(sys.modules["latprune.recovery.recover"], "graph_on", lambda graph, *_: graph)
    model, x = net(kind)
    report, _, _ = recovered(model, x, 1, form=form, strategy=strategy)
    assert report.output_after is not None and report.output_before is not None and report.output_after <= report.output_before
    if strategy in ("refit", "shift") and form == "program":
        assert any(UNKNOWN in layer.reason for layer in report.left)
        assert report.changed  # the other layers are fitted all the same


def test_not_found_is_told_from_all_kept() -> None:
    model, x = net("attention")
    graph = trace(model, x[:1], form="program")
    dense, selection = graph.program, half(graph)
    assert dense is not None
    network = copy.deepcopy(dense)
    prune(network, graph, selection)
    runs = record_operations(dense, x[:8]), record_operations(network, x[:8])
    pairing = Pairing(graph, selection, *runs, dense, network)
    at = next(k for k, op in enumerate(runs[0].operations) if op.name == "aten.mm")
    assert at not in pairing.call_of and not pairing.known(at)
    with pytest.raises(InvalidArgumentError, match="not known"):
        pairing.mask(at)
    last = len(runs[0].operations) - 1
    assert pairing.known(last) and pairing.mask(last) is None
    # What has its dense size is whole, whether or not its call is found.
    same = copy.deepcopy(dense)
    whole = Pairing(graph, half(graph, 1.0), runs[0], record_operations(same, x[:8]), dense, same)
    assert at not in whole.call_of and whole.mask(at) is None


def test_features_whose_kept_channels_are_not_known_are_refused() -> None:
    model, x = net("attention")
    graph = trace(model, x[:1])
    with pytest.raises(InvalidArgumentError, match="'attention'.*not known"):
        kept_channels(model, replaced(graph), half(graph), x[:8], ["attention"])


def replaced(graph: ModelGraph) -> ModelGraph:
    """The graph without its calls of the attention."""
    return replace(graph, calls=tuple(call for call in graph.calls if call.module != "attention"))


def test_a_network_of_torch_attention_is_pruned_and_recovered_with_an_example_of_one() -> None:
    model, x = net("norm last")
    data = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(8)]
    for form in ("class", "program"):
        result = latprune.prune(
            copy.deepcopy(model), x[:1], budget="params=80%", method="uniform", measure_latency=False, form=form, data=data
        )
        assert result.record.recovery is not None
        report = RecoveryReport.from_dict(result.record.recovery)
        assert report.changed and not any(layer.reason == UNKNOWN for layer in report.layers)
