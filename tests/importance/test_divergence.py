"""Measured curves: what is silenced, how a curve is drawn through what was measured, and what blocks are worth."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import Selection, trace
from latprune.importance import DivergenceConfig, MagnitudeConfig, SpLampConfig, TaylorConfig, best_units, read, score, width_curve
from latprune.importance.compared import moved_images
from latprune.importance.core import cross_entropy_loss
from latprune.importance.divergence import Divergences
from latprune.importance.divergence_config import example_count
from latprune.importance.outputs import output_error, output_js, output_kl
from latprune.importance.reference import parts_of
from latprune.importance.silenced import batch_statistics, silenced_block, silenced_units
from latprune.methods import MDP, StageContext
from latprune.pruning.least import least_of
from latprune.resources import MultiplyAdds
from latprune.surgery import prune
from support.synthetic_residual import batches, residual


class Block(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


class Residual(nn.Module):
    """Two blocks of two convolutions, the first of which hardly adds anything, and a block of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.a = Block(
            nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        )
        self.b = copy.deepcopy(self.a)
        self.single = Block(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.single(self.b(self.a(F.relu(self.stem(x))))).mean((2, 3)))


def network() -> Residual:
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        model.a.branch[4].weight.fill_(0.01)
        model.head.weight.mul_(5)
        for _ in range(5):
            model(torch.randn(16, 3, 8, 8))
    return model.eval()


IMAGES = [torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]


def test_a_curve_runs_through_what_was_measured_and_falls_to_nothing():
    curve = width_curve(8, {7: 0.1, 4: 0.5, 2: 2.0}, nothing=3.0)
    assert curve[7] == pytest.approx(0.1) and curve[4] == pytest.approx(0.5) and curve[2] == pytest.approx(2.0)
    assert curve[0] == pytest.approx(3.0) and curve[8] == 0.0
    assert (np.diff(curve) <= 0).all()
    assert width_curve(8, {}).tolist() == [0.0] * 9
    noisy = width_curve(8, {7: 0.3, 4: 0.2})  # a deeper cut never counts as a smaller one
    assert (np.diff(noisy) <= 1e-12).all()


def test_silenced_units_answer_as_the_cut_network_does_and_are_put_back():
    model = network()
    graph = trace(model, IMAGES[0])
    before = copy.deepcopy(model.state_dict())
    for name, group in graph.groups.items():
        kept = best_units(group, score(model, graph, MagnitudeConfig()).units[name], max(group.columns // 2, group.min_width))
        gone = np.ones(group.units, dtype=bool)
        gone[kept] = False
        cut = copy.deepcopy(model)
        prune(cut, graph, Selection(kept={name: kept}))
        with torch.no_grad(), silenced_units(model, group, gone):
            silenced = model(IMAGES[0])
        torch.testing.assert_close(silenced, cut(IMAGES[0]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_silenced_block_answers_as_the_network_without_it():
    model = network()
    graph = trace(model, IMAGES[0])
    for block in graph.blocks:
        cut = copy.deepcopy(model)
        prune(cut, graph, Selection(kept={}, removed_blocks=frozenset({block})))
        with torch.no_grad(), silenced_block(model, graph, block):
            silenced = model(IMAGES[0])
        torch.testing.assert_close(silenced, cut(IMAGES[0]), rtol=1e-4, atol=1e-5)


def test_a_layer_norm_over_silenced_units_keeps_its_scale():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 64), nn.LayerNorm(64), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x)))

    torch.manual_seed(0)
    model = Tokens().eval()
    x = torch.randn(50, 6)
    graph = trace(model, x)
    kept = np.arange(16)
    cut = copy.deepcopy(model)
    prune(cut, graph, Selection(kept={"a": kept}))
    gone = np.ones(64, dtype=bool)
    gone[kept] = False
    with torch.no_grad(), silenced_units(model, graph.groups["a"], gone):
        silenced = model(x)
    expected = cut(x).detach()
    assert float((silenced - expected).square().mean() / expected.var()) < 0.02


def test_statistics_are_the_batchs_and_buffers_are_put_back():
    model = network().train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    expected = model(IMAGES[0]).detach()
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    with batch_statistics(model):
        torch.testing.assert_close(model(IMAGES[0]), expected)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert model.training


def test_curves_value_widths_by_the_measured_divergence():
    model = network()
    graph = trace(model, IMAGES[0])
    config = DivergenceConfig(removed=(0.25, 0.5), examples=24, prior=0)
    importance = score(model, graph, config, iter(IMAGES))
    group = graph.groups["b.branch.0"]
    gone = np.ones(group.units, dtype=bool)
    gone[best_units(group, importance.units["b.branch.0"], 8)] = False
    with batch_statistics(model):
        dense = [model(x) for x in IMAGES[:2]]
        with silenced_units(model, group, gone):
            now = [model(x) for x in IMAGES[:2]]
    lost = np.mean([output_kl(a, b)[0] for a, b in zip(dense, now, strict=True)])
    curve = importance.curves["b.branch.0", ("b",)]
    assert curve[16] - curve[8] == pytest.approx(lost, rel=1e-5)


@pytest.mark.parametrize("bare", [False, True])
def test_a_block_is_worth_its_own_divergence_with_or_without_groups_inside(bare):
    model = network()
    graph = trace(model, IMAGES[0])
    assert set(graph.blocks) == {"a", "b"}
    if bare:
        graph = replace(graph, groups={"stem.0": graph.groups["stem.0"]})
    importance = score(model, graph, DivergenceConfig(examples=24, prior=0), IMAGES)
    with batch_statistics(model):
        dense = [model(x) for x in IMAGES[:2]]
        for block in graph.blocks:
            with silenced_block(model, graph, block):
                now = [model(x) for x in IMAGES[:2]]
            lost = np.mean([output_kl(x, y)[0] for x, y in zip(dense, now, strict=True)])
            gained = sum(float(curve[-1]) for (_, blocks), curve in importance.curves.items() if block in blocks)
            assert gained == pytest.approx(lost, rel=1e-4), block


def test_the_block_that_adds_nothing_goes_first():
    model = network()
    graph = trace(model, IMAGES[0])
    choices = {name: (group.columns,) for name, group in graph.groups.items()}
    importance = score(model, graph, DivergenceConfig(examples=36), IMAGES)
    widths = graph.dense_widths()
    context = StageContext(graph=graph, importance=importance, resource=MultiplyAdds(graph), choices=choices, widths=widths)
    assert MDP(channels=False).prepare(context).propose(0.75 * context.current).removed_blocks == ("a",)


def test_units_that_are_gone_cost_nothing_and_score_nothing():
    model = network()
    graph = trace(model, IMAGES[0])
    group = graph.groups["b.branch.0"]
    members = tuple(replace(member, units=member.units + 4) for member in group.members)
    view = replace(graph, groups={**graph.groups, "b.branch.0": replace(group, columns=20, members=members)})
    config = DivergenceConfig(examples=24)
    plain, seen = (score(model, found, config, IMAGES) for found in (graph, view))
    np.testing.assert_allclose(seen.units["b.branch.0"], np.concatenate((np.zeros(4), plain.units["b.branch.0"])), rtol=1e-6)
    full = plain.curves["b.branch.0", ("b",)]
    np.testing.assert_allclose(seen.curves["b.branch.0", ("b",)], np.concatenate((full, np.repeat(full[-1], 4))), rtol=1e-6)


def test_a_prior_draws_curves_together_and_leaves_their_order():
    model = network()
    graph = trace(model, IMAGES[0])
    measured, drawn, prior = (score(model, graph, DivergenceConfig(examples=24, prior=p), IMAGES) for p in (0.0, 0.5, 1.0))
    heights = {}
    for label, importance in (("measured", measured), ("drawn", drawn), ("prior", prior)):
        for key, curve in importance.curves.items():
            lost = curve[-1] - curve
            assert (np.diff(lost) <= 1e-12).all() and lost[-1] == 0
            heights[label, key] = lost[graph.groups[key[0]].columns // 2]
    for key in measured.curves:
        expected = np.sqrt(heights["measured", key] * heights["prior", key])
        assert heights["drawn", key] == pytest.approx(expected, rel=1e-6)
    spread = {label: np.ptp(np.log([heights[label, key] for key in measured.curves])) for label in ("measured", "drawn")}
    assert spread["drawn"] != spread["measured"]


def test_readings_are_judged_by_the_whole_networks_divergence():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = trace(model, IMAGES[0])
    found = read(model, graph, DivergenceConfig(examples=24, prior=0.5, priors=(0.0, 0.5, 1.0)), iter(IMAGES))
    assert list(found.importances) == ["prior 0.5", "prior 0", "prior 1", "narrowing x2", "SpLamp"]  # no labels: no Taylor scores
    assert list(found.left_out) == ["Taylor"] and "label" in found.left_out["Taylor"]

    def broken(model: nn.Module, batch: object) -> Tensor:
        raise TypeError("mine")

    with pytest.raises(InvalidArgumentError, match="mine"):  # the caller's own loss is not passed over
        _ = read(model, graph, DivergenceConfig(examples=24), IMAGES, loss=broken).importances
    labelled = [(x, torch.arange(len(x)) % 5) for x in IMAGES]
    with_labels = read(model, graph, DivergenceConfig(examples=24, priors=(), narrowings=()), labelled)
    assert list(with_labels.importances) == ["prior 0.5", "SpLamp", "Taylor"]
    expected = score(model, graph, TaylorConfig(), labelled).units
    assert all(np.array_equal(values, expected[name]) for name, values in with_labels.importances["Taylor"].units.items())
    for prior in (0.0, 0.5, 1.0):
        alone = score(model, graph, DivergenceConfig(examples=24, prior=prior), IMAGES)
        for key, curve in found.importances[f"prior {prior:g}"].curves.items():
            np.testing.assert_allclose(curve, alone.curves[key])
    assert (found.divergences(Selection(kept={})) == 0).all()
    kept = {"b.branch.0": np.arange(8), "stem.0": np.arange(0, graph.groups["stem.0"].units, 2)}
    for selection in (Selection(kept=kept), Selection(kept={}, removed_blocks=frozenset("a"))):
        cut = copy.deepcopy(model)
        prune(cut, graph, selection)
        with batch_statistics(model), batch_statistics(cut):
            moved = [moved_images(x) for x in IMAGES]
            expected = np.average([output_js(model(x), cut(x))[0] for x in moved], weights=[len(x) for x in moved])
        assert found.divergences(selection).mean() == pytest.approx(float(expected), rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert read(model, graph, SpLampConfig()) is None


def test_a_dearer_narrowing_leaves_what_blocks_cost():
    model = network()
    graph = trace(model, IMAGES[0])
    measured = Divergences(model, graph, DivergenceConfig(examples=24), IMAGES, cross_entropy_loss)
    plain, dearer = measured.importance(0.5), measured.importance(0.5, 3.0)
    for name in graph.groups:
        height = [
            sum(float(curve[-1] - curve[1]) for (group, _), curve in found.curves.items() if group == name) for found in (plain, dearer)
        ]
        assert height[1] == pytest.approx(3.0 * height[0], rel=1e-6)
    blocks = {gates[-1] for _, gates in plain.curves if gates}
    assert blocks
    for block in blocks:
        whole = [sum(float(curve[-1]) for (_, gates), curve in found.curves.items() if block in gates) for found in (plain, dearer)]
        assert whole[0] == pytest.approx(whole[1], rel=1e-6)
    with pytest.raises(InvalidArgumentError, match="narrowings"):
        DivergenceConfig(narrowings=(0.0,))


def test_outputs_are_judged_by_parts_of_a_batch():
    logits = torch.arange(80.0).view(40, 2)
    parts = parts_of({"logits": logits, "hidden": (logits, None)})
    assert [len(part["logits"]) for part in parts] == [20, 20] and len(parts_of(logits[:3])) == 1
    assert torch.equal(torch.cat([part["hidden"][0] for part in parts]), logits)
    unlike = {"logits": logits, "loss": torch.tensor(1.0)}
    assert parts_of(unlike) == [unlike]


def test_the_most_cautious_of_equal_readings_is_taken():
    model = network()
    found = read(model, trace(model, IMAGES[0]), DivergenceConfig(examples=24, prior=0.5, priors=(0.0, 1.0)), iter(IMAGES))
    assert found.caution == {"prior 0.5": 0.5, "prior 0": 0.0, "prior 1": 1.0, "narrowing x2": 0.5, "SpLamp": 1.0, "Taylor": -1.0}
    noise = np.random.default_rng(0).normal(size=50)
    noise -= noise.mean()
    values = {"prior 0": 1.0 + 0.0 * noise, "prior 0.5": 1.1 + noise, "prior 1": 1.5 + 0.1 * noise, "SpLamp": np.full(50, np.inf)}
    assert least_of(values, found.caution) == "prior 0.5"  # 0.5 apart is more than the parts leave open, 0.1 is not
    assert least_of({"a": np.array([2.0]), "b": np.array([1.0])}, {"a": 1.0}) == "b"
    assert least_of({"a": np.array([np.inf]), "b": np.array([np.inf])}, {}) == "a"


def test_images_are_moved_and_nothing_else_is():
    columns = torch.arange(32.0).expand(1, 1, 16, 32)
    assert moved_images(columns)[0, 0, 0].tolist() == [*range(29, -1, -1), 31, 30]  # mirrored, then two to the left
    rows = torch.arange(16.0)[:, None].expand(1, 1, 16, 32)
    assert moved_images({"x": rows})["x"][0, 0, :, 0].tolist() == [15, *range(15)]
    for other in (torch.arange(6).view(1, 6), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)):
        assert moved_images(other) is other


def test_the_number_of_examples_follows_from_the_work():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.zeros(1, 3, 12, 12)
    graph = trace(model, x)
    assert example_count(graph, DivergenceConfig()) == 256
    assert example_count(graph, DivergenceConfig(examples=7)) == 7
    heavy = replace(graph, kernels={name: replace(kernel, macs=1e8 * kernel.macs) for name, kernel in graph.kernels.items()})
    assert example_count(heavy, DivergenceConfig()) == 32
    runs = len(graph.groups) * 4 + 1
    scale = 5e12 / (100 * runs * graph.macs(graph.dense_widths()))
    between = replace(graph, kernels={name: replace(kernel, macs=scale * kernel.macs) for name, kernel in graph.kernels.items()})
    assert example_count(between, DivergenceConfig()) in (99, 100)


def test_measures_and_options_are_checked():
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    expected = F.kl_div(second.log_softmax(1), first.softmax(1), reduction="batchmean")
    assert output_kl(first, {"logits": second} and second)[0] == pytest.approx(float(expected), rel=1e-5)
    assert output_error([first, {"x": first}], [first, {"x": first + 1}])[0] == pytest.approx(
        0.5 / float(first.var(correction=0)), rel=1e-5
    )
    middle = 0.5 * (first.softmax(1) + second.softmax(1))
    halves = [F.kl_div(middle.log(), x.softmax(1), reduction="batchmean") for x in (first, second)]
    assert output_js(first, second)[0] == pytest.approx(float(sum(halves)) / 2, rel=1e-4)
    with pytest.raises(InvalidArgumentError, match="choose measure='error'"):
        output_kl(torch.randn(3), torch.randn(3))
    for wrong in (
        {"removed": ()},
        {"removed": (0.5, 0.25)},
        {"examples": 1},
        {"prior": 1.5},
        {"priors": (0.5, -1.0)},
        {"measure": "guess"},
    ):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong)).rstrip("s")):
            DivergenceConfig(**wrong)
    model, graph = residual()
    with pytest.raises(InvalidArgumentError, match=r"data \(=None\)"):
        score(model, graph, DivergenceConfig())
    score(model, graph, DivergenceConfig(), batches())


class Pair(nn.Module):
    """Two inputs, as a detector with a memory has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x) + self.second(memory)))


def test_positional_inputs_count_as_named_ones_do():
    model = Pair().eval()
    x, memory, labels = torch.randn(12, 4), torch.randn(12, 3), torch.arange(12) % 5
    graph = trace(model, (x[:1], memory[:1]))
    config = DivergenceConfig(rivals=(), priors=(), examples=8)
    positional = score(model, graph, config, [((x, memory), labels)])
    named = score(model, graph, config, [{"x": x, "memory": memory, "labels": labels}])
    assert positional.curves and positional.curves.keys() == named.curves.keys()
    for key, curve in positional.curves.items():
        np.testing.assert_allclose(curve, named.curves[key], rtol=1e-6)
