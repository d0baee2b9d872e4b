"""No strategy does harm unseen: where outputs cannot be compared, another place is, and values that are not finite never stay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, trace
from latprune.recovery import LayerRecovery, Recovery, Refit, recover
from latprune.recovery.backing_off import kept_where_it_helps
from latprune.recovery.output_error import output_error, relative_error
from latprune.surgery import prune
from recovery.nets import half, line, settled


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv1d(2, 12, 3, padding=1), nn.BatchNorm1d(12)
        self.b = nn.Conv1d(12, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.n(self.a(x)))).mean(2)


class Detector(nn.Module):
    """As many results as scores lie above a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), nn.Linear(6, 3)
        self.after = nn.BatchNorm1d(3)
        with torch.no_grad():
            self.head.weight.mul_(20.0)  # scores far apart

    def forward(self, x: Tensor) -> list[Tensor]:
        scores = self.after(self.head(self.body(x)))
        return [row[row > 0.1] for row in scores]


class Classes(nn.Module):
    """The class alone, an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).argmax(1)


class Turned(Recovery):
    name = "turned"

    def run(self, situation):
        with torch.no_grad():
            situation.pruned.body.b.weight.mul_(-3.0)
        return [LayerRecovery(layer="b", action="turned")]


def made(cls: type[nn.Module], within: str | None = None) -> tuple[nn.Module, nn.Module, Tensor, ModelGraph]:
    torch.manual_seed(0)
    x = torch.randn(64, 2, 8)
    model = settled(cls(), x)
    graph = trace(model, x[:2], within=within)
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    return model, network, x, graph


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("cls", "within", "place"),
    [(Detector, "body", "output of 'body'"), (Classes, None, "last layers"), (Classes, "body", "output of 'body'")],
)
def test_harm_is_seen_where_outputs_cannot_be_compared(cls: type[nn.Module], within: str | None, place: str) -> None:
    model, network, x, graph = made(cls, within)
    before = values(network)
    report = recover(network, model, [x], graph=graph, selection=half(graph), strategy=Turned())
    assert report.compared == place and same(network, before)
    assert "undone: the error of the " + place in report.layers[0].reason
    report = recover(network, model, [x], graph=graph, selection=half(graph))
    assert report.output_after < report.output_before and report.changed


def test_what_is_left_where_the_number_of_outputs_changes_is_another_place() -> None:
    """Before the strategy both networks give as many values; behind it they do not."""
    model, _, x, graph = made(Detector, "body")
    full = copy.deepcopy(model)
    before = values(full)
    report = recover(full, model, [x], graph=graph, selection=half(graph, 1.0), strategy=Turned())
    assert report.compared == "output of 'body'" and same(full, before)


def test_where_nothing_can_be_compared_only_a_strategy_that_checks_each_layer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, network, x, graph = made(Classes)
    monkeypatch.setattr("latprune.recovery.watching.Watch._of_last_layers", lambda self: None)
    before = values(network)
    for strategy in (Turned(), "norms", "map", "fold"):
        report = recover(network, model, [x], graph=graph, selection=half(graph), strategy=strategy)
        assert same(network, before) and report.compared == ""
        assert "nothing can be compared" in report.layers[0].reason and not report.changed
    assert recover(network, model, [x], graph=graph, selection=half(graph), strategy=Refit(rounds=0)).changed


@pytest.mark.parametrize("strategy", ["refit", "map", "norms", "fold"])
@pytest.mark.parametrize("where", [0, 60])
def test_images_that_are_not_finite_are_refused_by_their_batch(strategy: str, where: int) -> None:
    model, x = line(1)
    x = torch.cat([x, x])
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    before = values(network)
    x[where] = float("nan")
    with pytest.raises(InvalidArgumentError, match=f"batch {where // 24} of data holds values that are not finite"):
        recover(network, model, x.split(24), graph=graph, selection=half(graph), strategy=strategy)
    assert same(network, before)


def test_a_dense_network_without_finite_outputs_is_refused_by_its_batch() -> None:
    model, x = line(1)
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    x[38] = 3e38
    with pytest.raises(InvalidArgumentError, match="results on batch 3 of the data are not finite"):
        recover(network, model, x.split(12), graph=graph, selection=half(graph))


def test_a_pruned_network_that_gives_no_finite_outputs_counts_as_worse_and_is_undone() -> None:
    class Broken(Recovery):
        name = "broken"

        def run(self, situation):
            with torch.no_grad():
                situation.pruned.c.weight.mul_(1e38)
                situation.pruned.b.weight.mul_(1e38)
            return [LayerRecovery(layer="c", action="broken")]

    class Nan(Recovery):
        name = "nan"
        needs_data = False

        def run(self, situation):
            with torch.no_grad():
                situation.pruned.c.weight[0, 0] = float("nan")
            return [LayerRecovery(layer="c", action="nan")]

    model, x = line(1)
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    before = values(network)
    for strategy, data, reason in ((Broken(), [x], "would"), (Nan(), [x], "'c.weight' would hold"), (Nan(), None, "'c.weight' would hold")):
        report = recover(network, model, data, graph=graph, selection=half(graph), strategy=strategy)
        assert same(network, before) and reason in report.layers[0].reason


def test_scores_that_both_networks_mask_out_count_nothing() -> None:
    masked = torch.tensor([[1.0, -torch.inf], [3.0, -torch.inf]])
    assert relative_error([([masked + 1.0], [masked], "batch 0")]) == pytest.approx(1.0)
    with pytest.raises(InvalidArgumentError, match="batch 7"):
        relative_error([([masked.nan_to_num()], [masked], "batch 7")])
    assert output_error(nn.Identity(), nn.Identity(), []) is None


@pytest.mark.parametrize("strategy", ["norms", "map", "fold"])
def test_of_changes_that_do_harm_together_those_that_help_stay(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer's change is spoiled; the others stay, and each entry has the errors that decided."""
    model, x = line(1)
    x = torch.cat([x, x + 0.01 * torch.randn_like(x)])
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    name = {"norms": "n.running_var", "map": "b.weight", "fold": "b.weight"}[strategy]
    before = values(network)

    def spoiled(situation, start, changes):
        with torch.no_grad():
            situation.pruned.state_dict()[name].mul_(50.0)
        return kept_where_it_helps(situation, start, changes)

    for module in ("fold", "norms", "one_pass"):
        monkeypatch.setattr(f"latprune.recovery.{module}.kept_where_it_helps", spoiled)
    report = recover(network, model, [x], graph=graph, selection=half(graph), strategy=strategy)
    (entry,) = [layer for layer in report.layers if layer.layer == name.partition(".")[0]]
    assert not entry.action and "on images that were held out would grow" in entry.reason and entry.at == "outputs"
    assert entry.held_out_after > entry.held_out_before
    assert torch.equal(network.state_dict()[name], before[name]) or any(layer.action for layer in report.layers)
    assert report.output_after <= report.output_before
    decided = [layer for layer in report.layers if layer.action]
    assert all(layer.held_out_after <= layer.held_out_before for layer in decided)


def test_norms_outside_of_what_was_pruned_stay() -> None:
    model, network, x, graph = made(Detector, "body")
    with torch.no_grad():
        network.body.n.running_mean.add_(1.0)  # measured again it is better
    before = values(network)
    report = recover(network, model, [x + 0.5], graph=graph, selection=half(graph), strategy="norms")
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert [layer.layer for layer in report.layers] == ["body.n"]
    assert changed and all(name.startswith("body.n.") for name in changed)
