"""The plan that a traced model hands to surgery."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from latprune import zoo
from latprune.graph import SurgeryPlan, trace
from latprune.graph.surgery_plan import BranchCut, ModuleReplacement, PartReplacement, TailStep


def test_a_network_of_residual_blocks() -> None:
    plan = trace(zoo.cifar_resnet(8, "B"), torch.randn(1, 3, 16, 16)).plan
    assert isinstance(plan, SurgeryPlan)
    assert plan.parameters[0] == "conv1.weight"
    assert plan.within == ""
    dims = plan.tensors["layer1.0.conv2.weight"].dims
    assert {dim: [places.group for places in found] for dim, found in dims.items()} == {0: ["conv1"], 1: ["layer1.0.conv1"]}
    assert plan.tensors["layer1.0.conv2.weight"].groups == 0
    assert plan.removals["layer1.0"] == ModuleReplacement(module="layer1.0", argument=0)
    assert plan.removals["layer2.0"] == ModuleReplacement(
        module="layer2.0", argument=0, shortcut=("shortcut",), tail=(TailStep(op="relu"),)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.within = "layer1"  # type: ignore[misc]


def test_a_captured_program_has_branches_to_cut() -> None:
    plan = trace(zoo.cifar_resnet(8, "B"), torch.randn(1, 3, 16, 16), form="program").plan
    removal = plan.removals["layer1.0"]
    assert isinstance(removal, BranchCut)
    assert "layer1.0.conv1.weight" in removal.tensors and len(removal.skipped) == 1


def test_each_group_of_a_grouped_convolution_chooses_its_own_inputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 4, 1))
    conv = trace(model.eval(), torch.randn(1, 3, 8, 8)).plan.tensors["2.weight"]
    assert conv.groups == 2
    assert [places.units.shape for places in conv.dims[1]] == [(2, 4)] * len(conv.dims[1])


class Attention(nn.Module):
    """Scaled dot-product attention beside a shortcut, in a module that does nothing else."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim))


class Layer(nn.Module):
    """A residual branch written into the forward of a module with more in it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.attention = nn.Linear(8, 16), nn.LayerNorm(16), Attention()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.attention(self.norm(x))


def test_attributes_scales_and_parts_of_an_attention_layer() -> None:
    graph = trace(Layer().eval(), torch.randn(2, 5, 8))
    plan = graph.plan
    assert {(a.module, a.attribute) for a in plan.attributes} == {("attention", "num_heads"), ("attention", "head_dim")}
    assert [(scale.exponent, scale.axis.size(graph.dense_widths())) for scale in plan.scales] == [(-0.5, 4)]
    assert {target.tensor for scale in plan.scales for target in scale.targets} == {"attention.qkv.weight", "attention.qkv.bias"}
    (parts,) = plan.removals.values()
    assert isinstance(parts, tuple)
    assert parts[-1] == PartReplacement(module="attention", argument=0, zero="scalar")
