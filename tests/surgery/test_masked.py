"""The masked executor against computations written out by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import CaptureError, InvalidArgumentError, SurgeryError
from latprune.graph import Selection, trace
from latprune.surgery import check_equal, compare, masked, prune, random_inputs
from latprune.zoo import cifar_resnet
from support.equivalence import randomise


def select(graph, removed_blocks=(), **units: list[int]) -> Selection:
    kept = {name.replace("__", "."): np.array(values) for name, values in units.items()}
    return Selection(kept=kept, removed_blocks=frozenset(removed_blocks))


def only(values: Tensor, kept: list[int], dim: int = 1) -> Tensor:
    mask = torch.zeros(values.shape[dim], dtype=torch.bool)
    mask[kept] = True
    return values * mask.view([-1 if d == dim else 1 for d in range(values.ndim)])


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.norm(self.a(x))))


def test_a_removed_channel_reads_as_zero_after_norm_and_activation() -> None:
    model = randomise(Chain())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    graph = trace(model, x)
    expected = model.b(only(torch.sigmoid(model.norm(model.a(x))), [0, 3, 4]))
    got = masked(model, graph, select(graph, a=[0, 3, 4]))(x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_nothing_removed_is_the_dense_model() -> None:
    model = randomise(cifar_resnet(8))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = trace(model, x)
    assert torch.equal(masked(model, graph, Selection(kept={}))(x), model(x))


def test_the_model_is_left_alone() -> None:
    model = randomise(cifar_resnet(8)).train()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = trace(model, x)
    before = copy.deepcopy(model.state_dict())
    kept = {name: np.arange(max(1, group.columns // 2)) for name, group in graph.groups.items()}
    first = masked(model, graph, Selection(kept=kept))(x)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(masked(model, graph, Selection(kept=kept))(x), first)


def test_a_removed_block_adds_nothing() -> None:
    model = randomise(cifar_resnet(8, "B"))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = trace(model, x)
    stem = F.relu(model.bn1(model.conv1(x)))
    out = F.relu(model.layer2[0].shortcut(model.layer1[0](stem)))
    expected = model.linear(model.layer3[0](out).mean((2, 3)))
    got = masked(model, graph, select(graph, removed_blocks=["layer2.0"]))(x)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class Statistics(nn.Module):
    """A linear layer, an operation over its pruned features, and a reader."""

    def __init__(self, operation, inner: int = 8) -> None:
        super().__init__()
        self.a = nn.Linear(5, inner)
        self.b = nn.Linear(inner, 3)
        self.scale = nn.Parameter(torch.rand(inner) + 0.5)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.operation(self.a(x), self.scale))


KEPT = [1, 2, 5, 7]


STATISTICS = {
    "layer_norm": lambda h, s: F.layer_norm(h, s.shape, s),
    "rms_norm": lambda h, s: F.rms_norm(h, s.shape, s, 1e-6),
    "own_rms_norm": lambda h, s: h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * s,
    "softmax": lambda h, s: F.softmax(h, -1) * s,
    "log_softmax": lambda h, s: F.log_softmax(h, -1) * s,
    "standardise": lambda h, s: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True) * s,
    "variance": lambda h, s: h * torch.var(h, -1, unbiased=False, keepdim=True),
    "mean_of_all": lambda h, s: h * h.mean(),
    "var_mean": lambda h, s: h * torch.var_mean(h, -1, keepdim=True)[0] + torch.var_mean(h, -1, keepdim=True)[1],
    "normalise": lambda h, s: h / torch.linalg.vector_norm(h, dim=-1, keepdim=True) * s,
    "amax": lambda h, s: (h - 9.0) - (h - 9.0).amax(-1, keepdim=True),
    "logsumexp": lambda h, s: h - h.logsumexp(-1, keepdim=True),
    "product": lambda h, s: h * h.prod(-1, keepdim=True),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_use_the_kept_coordinates_only(name: str) -> None:
    torch.manual_seed(0)
    model = Statistics(STATISTICS[name]).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    graph = trace(model, x)
    (group,) = graph.groups
    hidden = F.linear(x, model.a.weight[KEPT], model.a.bias[KEPT])
    expected = F.linear(STATISTICS[name](hidden, model.scale[KEPT]), model.b.weight[:, KEPT], model.b.bias)
    got = masked(model, graph, Selection(kept={group: np.array(KEPT)}))(x)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


class GroupNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.b = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


def test_group_norm_uses_the_kept_channels_of_each_group() -> None:
    torch.manual_seed(0)
    model = randomise(GroupNormed())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = trace(model, x)
    (group,) = graph.groups.values()
    assert (group.rows, group.columns) == (2, 4)
    kept = [0, 2, 5, 6]
    hidden = F.conv2d(x, model.a.weight[kept], model.a.bias[kept])
    expected = F.conv2d(F.group_norm(hidden, 2, model.norm.weight[kept], model.norm.bias[kept]), model.b.weight[:, kept], model.b.bias)
    torch.testing.assert_close(masked(model, graph, Selection(kept={group.name: np.array(kept)}))(x), expected, rtol=1e-10, atol=1e-12)


class Inplace(nn.Module):
    """In-place activations and sums, and a write through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.c = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).exp_()
        h += self.c(x)
        h.mul_(h).add_(1.0)
        return self.b(h)


def test_operations_in_place() -> None:
    torch.manual_seed(0)
    model = randomise(Inplace())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    graph = trace(model, x)
    (group,) = graph.groups
    expected = model.b(only((model.a(x).exp() + model.c(x)).square() + 1.0, [1, 4]))
    torch.testing.assert_close(masked(model, graph, Selection(kept={group: np.array([1, 4])}))(x), expected, rtol=1e-12, atol=1e-12)


class Fork(nn.Module):
    """Takes another course on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 2)
        self.other = False

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h.tanh() if self.other else h.relu())


def test_another_course_is_refused() -> None:
    model = Fork()
    graph = trace(model, torch.randn(2, 4))
    run = masked(model, graph, Selection(kept={"a": np.array([0, 1])}))
    model.other = True
    with pytest.raises(CaptureError, match=r"aten.tanh.default, but the recorded run had aten.relu.default"):
        run(torch.randn(2, 4))


def test_other_shapes_of_the_channels_are_refused() -> None:
    model = Fork()
    graph = trace(model, torch.randn(2, 4))
    run = masked(model, graph, Selection(kept={"a": np.array([0, 1])}))
    model.a = nn.Linear(4, 5)
    model.b = nn.Linear(5, 2)
    with pytest.raises(CaptureError, match="lay on"):
        run(torch.randn(2, 4))


def test_other_batch_sizes_run() -> None:
    model = Fork().double()
    graph = trace(model, torch.randn(2, 4, dtype=torch.float64))
    x = torch.randn(7, 4, dtype=torch.float64)
    expected = model.b(only(model.a(x).relu(), [0, 1]))
    torch.testing.assert_close(masked(model, graph, Selection(kept={"a": np.array([0, 1])}))(x), expected)


def test_unknown_names_are_refused() -> None:
    model = Fork()
    graph = trace(model, torch.randn(2, 4))
    with pytest.raises(InvalidArgumentError, match="'nowhere'"):
        masked(model, graph, Selection(kept={"nowhere": np.array([0])}))
    with pytest.raises(InvalidArgumentError, match="unit 6"):
        masked(model, graph, Selection(kept={"a": np.array([6])}))
    with pytest.raises(InvalidArgumentError, match="removed_blocks"):
        masked(model, graph, Selection(kept={}, removed_blocks=frozenset(["a"])))


def test_the_check_tells_right_from_wrong() -> None:
    torch.manual_seed(0)
    model = cifar_resnet(8).eval()
    x = torch.randn(1, 3, 8, 8)
    graph = trace(model, x)
    kept = {name: np.arange(max(1, group.columns // 2)) for name, group in graph.groups.items()}
    selection = Selection(kept=kept, removed_blocks=frozenset(["layer1.0"]))
    pruned = copy.deepcopy(model)
    prune(pruned, graph, selection)
    report = check_equal(pruned, masked(model, graph, selection), x)
    assert report.equal and report.dtype == "float64" and report.outputs == 1 and report.max_rel < 1e-12
    assert check_equal(pruned, masked(model, graph, selection), x, double=False).dtype == "float32"
    with torch.no_grad():
        pruned.layer3[0].conv1.weight[0, 0, 1, 1] += 0.1
    with pytest.raises(SurgeryError, match="not equal to the masked one"):
        check_equal(pruned, masked(model, graph, selection), x)
    pruned.linear = nn.Linear(3, 10)
    with pytest.raises(SurgeryError, match="does not run"):
        check_equal(pruned, masked(model, graph, selection), x)


def test_outputs_of_other_shapes_or_numbers_are_a_problem() -> None:
    model = Fork()
    x = torch.randn(2, 4)
    graph = trace(model, x)
    run = masked(model, graph, Selection(kept={}))
    assert "shape (2, 6)" in compare(model.a, run, x).problem
    with torch.no_grad():
        model.b.bias.fill_(float("nan"))
    assert "NaN" in compare(model, run, x).problem


def test_random_inputs_keep_shapes_and_whole_numbers() -> None:
    inputs = {"image": torch.randn(2, 3), "ids": torch.arange(4), "nested": [torch.full((3,), 2.0)]}
    drawn = random_inputs(inputs, 0)
    assert drawn["image"].shape == (2, 3) and not torch.equal(drawn["image"], inputs["image"])
    assert torch.equal(drawn["ids"], inputs["ids"]) and drawn["nested"][0].shape == (3,)
    assert torch.equal(random_inputs(inputs, 0)["image"], drawn["image"])
