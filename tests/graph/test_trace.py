"""Tracing: groups, kernels, sizes and reasons of networks that can be counted by hand."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latprune
from latprune import zoo
from latprune.errors import BudgetInfeasibleError, CaptureError, InvalidArgumentError
from latprune.graph import ModelGraph, Role, register_rule, trace
from latprune.modes import preserved_modes
from support.equivalence import assert_pruned_equals_masked, random_widths, randomise


def _columns(graph: ModelGraph) -> dict[str, tuple[int, int]]:
    return {name: (g.rows, g.columns) for name, g in graph.groups.items()}


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.conv2(x)), 4).flatten(1))


def test_chain_groups_members_and_axes() -> None:
    graph = trace(Chain(), torch.randn(2, 3, 8, 8))
    assert _columns(graph) == {"conv1": (1, 8), "conv2": (1, 12)}
    roles = {(m.tensor, m.dim): m.role for m in graph.groups["conv1"].members}
    assert roles == {
        ("conv1.weight", 0): Role.PRODUCER,
        ("conv1.bias", 0): Role.BIAS,
        ("bn1.weight", 0): Role.NORM,
        ("bn1.bias", 0): Role.NORM,
        ("bn1.running_mean", 0): Role.NORM,
        ("bn1.running_var", 0): Role.NORM,
        ("conv2.weight", 1): Role.CONSUMER,
    }
    flat = next(m for m in graph.groups["conv2"].members if m.tensor == "fc.weight")
    assert flat.positions.tolist() == list(range(192))
    assert flat.units.tolist() == [p // 16 for p in range(192)]
    axis = graph.tensor_axes["fc.weight"][1]
    assert axis.pieces[0].factor == 16
    assert axis.size({"conv1": 8, "conv2": 5}) == 80
    kernel = graph.kernels["conv2"]
    assert (kernel.kind, kernel.module) == ("conv", "conv2")
    assert kernel.attributes["kernel_size"] == [3, 3]
    assert kernel.macs * 8 * 12 == 2 * 12 * 8 * 8 * 8 * 9
    assert {k.what for k in graph.kept_whole} == {"fc", "conv1.weight"} or any(k.reason == "the network's output" for k in graph.kept_whole)


def test_macs_and_parameters_follow_the_widths() -> None:
    model = Chain()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    dense = graph.dense_widths()
    assert graph.parameters(dense) == sum(p.numel() for p in model.parameters())
    assert graph.macs(dense) == 8 * 3 * 9 * 64 + 12 * 8 * 9 * 64 + 192 * 10
    assert graph.macs({"conv1": 2, "conv2": 3}) == 2 * 3 * 9 * 64 + 3 * 2 * 9 * 64 + 48 * 10


def test_option_a_shortcuts_are_sums_of_groups() -> None:
    graph = trace(zoo.cifar_resnet(8, "A"), torch.randn(1, 3, 32, 32))
    assert [g.columns for n, g in graph.groups.items() if n.endswith("conv2") or n == "conv1"] == [16, 16, 32]
    stream = graph.tensor_axes["layer3.0.conv2.weight"][0]
    assert {p.groups[0] for p in stream.pieces} == {"conv1", "layer2.0.conv2", "layer3.0.conv2"}
    assert stream.size({**graph.dense_widths(), "conv1": 3, "layer2.0.conv2": 5, "layer3.0.conv2": 7}) == 15


class FixedPad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(F.pad(x, (0, 0, 0, 0, 4, 4)) + self.b(x))


def test_padding_fixed_in_the_code_stays_with_a_reason() -> None:
    graph = trace(FixedPad(), torch.randn(1, 3, 4, 4))
    assert _columns(graph) == {"a": (1, 8)}
    assert any("fixed in the code" in k.reason and k.channels == 8 for k in graph.kept_whole)
    assert_pruned_equals_masked(randomise(FixedPad()), torch.randn(1, 3, 4, 4, dtype=torch.float64))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 6, 1)
        self.c = nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.c(torch.cat([a, self.b(x), a], 1)).sum(1)


def test_concat_is_a_sum_with_repeats() -> None:
    graph = trace(Concat(), torch.randn(1, 3, 2, 2))
    axis = graph.kernels["c"].axes[0]
    assert axis.size({"a": 1, "b": 2, "c": 5}) == 4
    assert dict(zip([p.groups[0] for p in axis.pieces], [p.factor for p in axis.pieces], strict=True)) == {"a": 2, "b": 1}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.twice(torch.relu(self.twice(x)))))


def test_shared_module_has_two_kernels_and_one_group() -> None:
    graph = trace(Shared(), torch.randn(1, 5))
    assert [k for k in graph.kernels if graph.kernels[k].kind == "linear"] == ["stem", "twice", "twice#2", "head"]
    assert _columns(graph) == {"stem": (1, 8)}
    assert_pruned_equals_masked(randomise(Shared()), torch.randn(3, 5, dtype=torch.float64))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.g = nn.Conv2d(12, 24, 3, groups=4, padding=1)
        self.d = nn.Conv2d(24, 48, 3, groups=24)
        self.head = nn.Conv2d(48, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.d(torch.relu(self.g(torch.relu(self.a(x)))))))


def test_grouped_convolution_has_groups_and_columns() -> None:
    graph = trace(Grouped(), torch.randn(1, 3, 6, 6))
    assert sorted(_columns(graph).values()) == [(1, 4), (4, 3), (4, 6)]
    within = [m.within for g in graph.groups.values() for m in g.members if m.tensor == "g.weight" and m.dim == 1]
    assert within == [(0, 6), (6, 12), (12, 18), (18, 24)]
    assert graph.kernels["d"].kind == "depthwise"
    for seed in range(3):
        assert_pruned_equals_masked(randomise(Grouped()), torch.randn(2, 3, 6, 6, dtype=torch.float64), seed=seed)


def test_keep_is_honoured_and_shown() -> None:
    model = zoo.cifar_resnet(8, "B")
    x = torch.randn(1, 3, 16, 16)
    graph = trace(model, x, keep=["layer2.*.conv1"], blocks_keep=["layer1.*"])
    assert "layer2.0.conv1" not in graph.groups
    assert any("keep" in k.reason and k.what.startswith("layer2.0.conv1") for k in graph.kept_whole)
    assert not graph.blocks["layer1.0"].removable
    assert "blocks_keep" in graph.blocks["layer1.0"].reason
    assert "named in keep" in graph.describe()


class Rooted(nn.Module):
    """A block in the network's own code, between layers of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.outer, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + F.conv2d(torch.relu(self.inner(x)), self.outer.weight, self.outer.bias, padding=1))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize("pattern", ["layer1.0", "layer1.0.*", "layer1.0.conv2", "layer1.*.conv1", "layer1"])
def test_a_block_stays_in_which_a_kept_module_runs(pattern: str, form: str) -> None:
    blocks = trace(zoo.cifar_resnet(8, "B"), torch.randn(1, 3, 16, 16), keep=[pattern], form=form).blocks
    assert not blocks["layer1.0"].removable and f"named in keep ('{pattern}')" in blocks["layer1.0"].reason
    assert blocks["layer2.0"].removable and blocks["layer3.0"].removable


@pytest.mark.parametrize(("kept", "stays"), [("inner", True), ("outer", True), ("*", True), ("head", False), ("stem", False)])
def test_a_block_at_the_root_stays_with_what_runs_in_it(kept: str, stays: bool) -> None:
    graph = trace(Rooted(), torch.randn(1, 3, 8, 8), keep=[kept], form="program")
    assert graph.blocks[""].removable is not stays


def test_a_block_at_the_root_has_a_name_for_people() -> None:
    x = torch.randn(1, 3, 8, 8)
    graph = trace(Rooted(), x, form="program")
    assert "  (the model itself)  [identity shortcut, " in graph.describe() and "(in (the model itself))" in graph.describe()
    kept = trace(Rooted(), x, form="program", blocks_keep=["(the model itself)"]).blocks[""]
    assert kept.reason == "named in blocks_keep ('(the model itself)')"
    with pytest.raises(InvalidArgumentError, match=r"matches no block; blocks: \['\(the model itself\)'\]"):
        trace(Rooted(), x, form="program", blocks_keep=["nope"])


def test_minimum_widths() -> None:
    graph = trace(Chain(), torch.randn(1, 3, 8, 8), min_widths={"conv*": 4})
    assert {g.min_width for g in graph.groups.values()} == {4}


@pytest.mark.parametrize("order", [("conv1", "conv*"), ("conv*", "conv1")])
def test_of_several_minimum_widths_the_largest_counts(order: tuple[str, str]) -> None:
    widths = {"conv1": 6, "conv*": 4}
    graph = trace(Chain(), torch.randn(1, 3, 8, 8), min_widths={name: widths[name] for name in order})
    found = {name: group.min_width for name, group in graph.groups.items()}
    assert found.pop("conv1") == 6 and set(found.values()) == {4}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"keep": ["nothing"]}, "keep names 'nothing'"),
        ({"blocks_keep": ["nothing"]}, "blocks_keep names 'nothing'"),
        ({"min_widths": {"nothing": 2}}, "min_widths names 'nothing'"),
        ({"min_widths": {"conv1": 9}}, r"must be from 1 to 8"),
        ({"within": "nothing"}, "no module"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        trace(Chain(), torch.randn(1, 3, 8, 8), **arguments)


def test_a_model_that_does_not_run_says_where() -> None:
    with pytest.raises(CaptureError, match="conv1"):
        trace(Chain(), torch.randn(1, 4, 8, 8))


def test_the_model_is_left_as_it_was() -> None:
    model = Chain().train()
    model.bn1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    keys = set(vars(model.conv1))
    trace(model, torch.randn(2, 3, 8, 8))
    assert model.training and not model.bn1.training and model.conv1.training
    assert set(vars(model.conv1)) == keys
    assert type(model.conv1.in_channels) is int
    assert not model.conv1._forward_hooks and not model.conv1._forward_pre_hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_within_prunes_only_the_inside() -> None:
    graph = trace(zoo.cifar_resnet(8, "B"), torch.randn(1, 3, 16, 16), within="layer2")
    assert all(n.startswith("layer2") for n in graph.groups)
    assert all(b.removable == n.startswith("layer2") for n, b in graph.blocks.items())


class Selecting(nn.Module):
    """What runs before and after the backbone depends on the data: so do the number of operations and of results."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = zoo.cifar_resnet(8, "B")
        self.score = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int((x > 0).sum()) % 23):
            x = x * 1.1 - 0.1
        scores = self.score(self.backbone(x))
        best = scores[scores.max(1).values > scores.mean()]
        return scores + sum((row.sort().values for row in best), torch.zeros(4, dtype=x.dtype))


def test_within_a_model_that_takes_another_course_each_time() -> None:
    torch.manual_seed(0)
    model = randomise(Selecting())
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    graph = trace(model, x, within="backbone")
    assert graph.groups and all(n.startswith("backbone") for n in graph.groups)
    assert all(call.module.startswith("backbone") for call in graph.calls)
    for seed in range(3):
        assert_pruned_equals_masked(model, x, seed=seed, graph=graph)
    # What runs outside carries no channels, so it may differ where the whole model is traced too.
    assert_pruned_equals_masked(model, x)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 4)
        self.c = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.linalg.matrix_exp(self.a(x).unsqueeze(-1) * torch.ones(1, 6))[..., 0])))


def test_an_unknown_operation_keeps_its_channels_and_is_named() -> None:
    graph = trace(Unknown(), torch.randn(2, 4))
    assert "b" in graph.groups and "a" not in graph.groups
    assert any(k.what == "a" and "matrix_exp" in k.reason or "carry no channels" in k.reason for k in graph.kept_whole)


def test_a_registered_rule_is_used() -> None:
    library = torch.library.Library("latprune_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")

    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.b = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.ops.latprune_test.twice(self.a(x)))

    graph = trace(Custom(), torch.randn(2, 4))
    assert not graph.groups
    assert "latprune_test.twice" in next(k.reason for k in graph.kept_whole if k.what == "a")

    @register_rule("latprune_test::twice")
    def twice(step: Any) -> Any:
        return step.fields(step.args[0])

    assert _columns(trace(Custom(), torch.randn(2, 4))) == {"a": (1, 6)}
    with pytest.raises(InvalidArgumentError, match="already registered; pass replace=True"):
        register_rule("latprune_test::twice")(twice)
    with pytest.raises(InvalidArgumentError, match="namespace::name"):
        register_rule("twice")(twice)


def test_dict_inputs_and_dict_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.b = nn.Linear(6, 3)

        def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
            hidden = torch.relu(self.a(first) + self.a(second))
            return {"out": self.b(hidden)}

    graph = trace(Two(), {"first": torch.randn(2, 4), "second": torch.randn(2, 4)})
    assert _columns(graph) == {"a": (1, 6)}


def test_json_and_text() -> None:
    graph = trace(zoo.cifar_resnet(8, "A"), torch.randn(1, 3, 16, 16))
    data = json.loads(graph.to_json())
    assert data["format"] == "latprune/graph"
    assert {g["name"] for g in data["groups"]} == set(graph.groups)
    text = graph.describe()
    for name in (*graph.groups, *graph.blocks):
        assert name in text


def test_names_are_stable_and_tracing_is_deterministic() -> None:
    x = torch.randn(1, 3, 16, 16)
    first, second = (trace(zoo.cifar_resnet(14, "A"), x) for _ in range(2))
    assert first.to_json() == second.to_json()


def test_calls_name_the_units_of_each_class() -> None:
    graph = trace(Chain(), torch.randn(1, 3, 8, 8))
    conv2 = [c for c in graph.calls if c.op == "aten.convolution.default"][1]
    field = conv2.fields[0]
    assert field is not None and field.shape == (1, 8, 1, 1)
    units = [graph.class_units[int(c)] for c in field.reshape(-1)]
    assert units == [(("conv1", k),) for k in range(8)]


def test_random_widths_stay_in_bounds() -> None:
    graph = trace(Grouped(), torch.randn(1, 3, 6, 6))
    rng = np.random.default_rng(0)
    for _ in range(20):
        widths = random_widths(graph, rng)
        assert all(1 <= widths[name] <= group.columns for name, group in graph.groups.items())
        assert graph.macs(widths) <= graph.macs(graph.dense_widths())


class Merging(nn.Module):
    """A layer that does more in ``train`` than to set its flag, as layers with merged adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        self.merged = not mode
        return super().train(mode)


def test_modes_come_back_module_by_module() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(), Merging())
    model.train()
    model[0].eval()
    with pytest.raises(KeyError), preserved_modes(model):
        model.eval()
        assert model[2].merged
        raise KeyError
    assert [m.training for m in model.modules()] == [True, False, True, True]
    assert not model[2].merged


class Growing(nn.Module):
    """Each run resizes buffers and leaves entries in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)
        self.register_buffer("table", torch.arange(4.0))
        self.register_buffer("short", torch.arange(6.0))
        self.register_buffer("other", torch.zeros(3))
        self.seen: list[int] = []
        self._own: deque[int] = deque(maxlen=2)
        self.found: dict[str, Any] = {"kept": [0], "deep": {"er": [1]}}
        self.kinds: set[int] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = len(self.seen) + 8
        self.table.resize_(size).copy_(torch.arange(float(size)))
        self.short.resize_(2)
        self.other.data = torch.ones(7, dtype=torch.float64)
        self.seen.append(1)
        self._own.append(size)
        self.found["kept"].append(2)
        self.found["deep"]["er"].append(3)
        self.found["new"] = 4
        self.kinds.add(size)
        return self.last(torch.relu(self.first(x)))


def test_resized_buffers_and_entries_of_containers_are_put_back() -> None:
    model, x = Growing().eval(), torch.randn(2, 3, 4, 4)
    held = {name: (id(buffer), buffer.clone()) for name, buffer in model.named_buffers()}

    def check() -> None:
        for name, buffer in model.named_buffers():
            assert id(buffer) == held[name][0] and buffer.dtype == held[name][1].dtype and torch.equal(buffer, held[name][1])
        assert (model.seen, list(model._own), model.kinds) == ([], [], set())
        assert model.found == {"kept": [0], "deep": {"er": [1]}}

    trace(model, x)
    check()
    data = [(x, torch.zeros(2, 4, 4, dtype=torch.long))]
    for method in ("uniform", latprune.MDP()):
        with pytest.raises(BudgetInfeasibleError):
            latprune.prune(model, x, budget="params=0.1%", method=method, data=data, measure_latency=False)
        check()
    with pytest.raises(CaptureError):
        latprune.capture(model, x)
    check()


def test_observers_that_never_ran_stay_so() -> None:
    from torch.ao.quantization import default_per_channel_weight_fake_quant

    model = nn.Sequential(nn.Conv2d(3, 16, 1), default_per_channel_weight_fake_quant(), nn.Conv2d(16, 8, 1)).eval()
    held = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trace(model, torch.randn(2, 3, 4, 4))
    assert all(torch.equal(buffer, held[name]) for name, buffer in model.named_buffers())
