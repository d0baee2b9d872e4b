"""Cuts that follow each other, each relative to the dense graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune import zoo
from latprune.errors import InvalidArgumentError, SurgeryError
from latprune.graph import Selection, trace
from latprune.program import capture
from latprune.surgery import check_equal, masked, prune
from support.equivalence import randomise
from support.programs import NETWORKS as PROGRAMS
from support.programs import VisionTransformer
from support.staged import assert_staged_equals_once, chain


class DefaultScale(nn.Module):
    """Attention whose scale follows the head size, which surgery makes up for in the weights."""

    def __init__(self, width: int = 16, heads: int = 2, head_dim: int = 8) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, heads * head_dim) for _ in range(3))
        self.out, self.head = nn.Linear(heads * head_dim, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        h = self.norm(x)
        q, k, v = (f(h).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, self.heads * self.head_dim)
        return self.head(x + self.out(mixed))


class Gated(nn.Module):
    """Squeeze and excitation after a depthwise and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.down, self.up = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.depthwise(self.stem(x)))
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.head(x.mean((2, 3)))


IMAGE = (2, 3, 16, 16)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20_a": (lambda: zoo.cifar_resnet(20, "A"), IMAGE),
    "resnet20_b": (lambda: zoo.cifar_resnet(20, "B"), IMAGE),
    "bottleneck": (lambda: zoo.BottleneckResNet((1, 2, 2, 1), width=8, num_classes=10), (2, 3, 32, 32)),
    "mobilenet_v2": (lambda: zoo.mobilenet_v2(10, width_multiplier=0.25), (2, 3, 32, 32)),
    "densenet": (lambda: zoo.dense_network(4, (3, 3)), IMAGE),
    "unet": (lambda: zoo.unet(4, 3), IMAGE),
    "detection_neck": (lambda: zoo.detection_neck(4, 6), (2, 3, 32, 32)),
    "gated": (Gated, IMAGE),
    "default_scale": (DefaultScale, (2, 6, 16)),
    "vision_transformer": (VisionTransformer, (2, 3, 8, 8)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_cutting_in_steps_equals_cutting_once(name: str, seed: int) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(seed)
    model = randomise(build())
    x = torch.randn(shape, dtype=torch.float64)
    graph = trace(model, x)
    selections = chain(graph, np.random.default_rng(seed), 3)
    staged = assert_staged_equals_once(model, graph, selections, fresh=build().double())
    check_equal(staged, masked(model, graph, selections[-1]), x, tolerance=1e-9)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", PROGRAMS)
def test_cutting_a_program_in_steps_equals_cutting_once(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, x = PROGRAMS[name]()
    program = capture(model.eval(), x)
    graph = trace(program, x)
    selections = chain(graph, np.random.default_rng(seed), 3)
    assert_staged_equals_once(program, graph, selections, fresh=copy.deepcopy(program))


def _resnet() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = zoo.cifar_resnet(20, "A").eval()
    return model, trace(model, torch.randn(IMAGE))


def test_a_selection_that_brings_units_or_blocks_back_is_refused() -> None:
    model, graph = _resnet()
    name = next(iter(graph.groups))
    earlier = Selection(kept={name: np.arange(0, 8)}, removed_blocks=frozenset({"layer1.0"}))
    prune(model, graph, earlier)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidArgumentError, match=rf"kept\['{name}'\] keeps unit 8"):
        prune(model, graph, Selection(kept={name: np.arange(1, 9)}, removed_blocks=earlier.removed_blocks), since=earlier)
    with pytest.raises(InvalidArgumentError, match=r"removed_blocks lacks \['layer1.0'\]"):
        prune(model, graph, Selection(kept=earlier.kept), since=earlier)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_said_of_a_group_that_went_with_its_block_has_no_meaning() -> None:
    model, graph = _resnet()
    inner = next(n for n, g in graph.groups.items() if all("layer1.0" in m.blocks for m in g.members))
    earlier = Selection(kept={inner: np.arange(4)}, removed_blocks=frozenset({"layer1.0"}))
    prune(model, graph, earlier)
    edits = prune(model, graph, Selection(kept={}, removed_blocks=earlier.removed_blocks), since=earlier)
    assert edits.steps[0].tensors == () and edits.steps[0].attributes == () and edits.steps[0].blocks == ()


def test_a_model_that_was_not_cut_to_since_is_refused() -> None:
    model, graph = _resnet()
    name = next(iter(graph.groups))
    with pytest.raises(SurgeryError, match="the selection that it was cut to"):
        prune(model, graph, Selection(kept={name: np.arange(4)}), since=Selection(kept={name: np.arange(8)}))
    prune(model, graph, Selection(kept={name: np.arange(8)}))
    with pytest.raises(SurgeryError, match="the traced model had 16"):
        prune(model, graph, Selection(kept={name: np.arange(4)}))


@pytest.mark.parametrize("width", [3, 5, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_rounded_weights_that_keep_a_scale_count_as_equal(width: int, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = DefaultScale().eval().to(dtype)
    x = torch.randn(2, 6, 16, dtype=dtype)
    graph = trace(model, x)
    name = next(n for n, g in graph.groups.items() if g.columns == 8 and g.rows > 1)
    selection = Selection(kept={name: np.concatenate([r * 8 + np.arange(width) for r in range(graph.groups[name].rows)])})
    dense = copy.deepcopy(model)
    prune(model, graph, selection)
    assert check_equal(model, masked(dense, graph, selection), x).tolerance == tolerance
    assert check_equal(copy.deepcopy(dense), masked(dense, graph, Selection(kept={})), x).tolerance == 1e-9
    with torch.no_grad():
        model.q.weight.mul_(1.01)
    with pytest.raises(SurgeryError, match="not equal"):
        check_equal(model, masked(dense, graph, selection), x)
