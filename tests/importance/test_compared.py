"""The divergence of networks whose outputs follow from the images: detections after a threshold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latprune
from latprune.errors import InvalidArgumentError
from latprune.graph import trace
from latprune.importance import DivergenceConfig, MagnitudeConfig, score
from latprune.importance.compared import Compared, compared_at
from latprune.importance.outputs import output_error, output_kl
from latprune.methods import MDP

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CONFIG = DivergenceConfig(rank=MagnitudeConfig(), rivals=(), priors=(), narrowings=(), examples=16)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.n(self.a(x)))))


class Detector(nn.Module):
    """For each image the boxes whose score is above the mean of the scores of the batch; ``maps`` returns the scores beside them."""

    def __init__(self, maps: bool = False) -> None:
        super().__init__()
        self.maps, self.body, self.head = maps, Body(), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        found = self.head(self.body(x)).flatten(2).transpose(1, 2)
        kept = [each[each[:, 0] > found[:, :, 0].mean() + 0.1] for each in found]
        boxes = [{"boxes": each[:, 1:], "scores": each[:, 0], "labels": each.argmax(1)} for each in kept]
        return {"boxes": boxes, "maps": found} if self.maps else boxes


def detector(**options: Any) -> Detector:
    torch.manual_seed(0)
    return Detector(**options).eval()


def _boxes(number: int) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.rand(number, 4)}]


@pytest.mark.parametrize(("mine", "theirs"), [(3, 2), (1, 0), (0, 0), (1, 3)])
def test_outputs_of_other_shapes_are_not_compared(mine: int, theirs: int) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be compared"):
        output_error(_boxes(mine), _boxes(theirs))
    both = [{"boxes": torch.rand(mine, 4)}, torch.tensor([1.0, 3.0])], [{"boxes": torch.rand(theirs, 4)}, torch.tensor([1.0, 4.0])]
    assert output_error(*both)[0] == pytest.approx(0.5)
    with pytest.raises(InvalidArgumentError, match="cannot be compared"):
        output_kl(torch.rand(mine, 4), torch.rand(theirs, 4))


def test_detections_are_compared_at_the_sub_module_that_is_pruned() -> None:
    model = detector()
    graph = trace(model, IMAGES[:2], within="body")
    at = compared_at(model, graph, IMAGES[:8], "auto")
    assert at.within == "body"
    assert torch.equal(at.of(model, IMAGES[:2])[0], model.body(IMAGES[:2]))
    assert score(model, graph, CONFIG, [IMAGES]).curves
    result = latprune.prune(
        model, IMAGES[:2], within="body", budget="flops=60%", measure_latency=False, method=MDP(score=CONFIG), data=[IMAGES]
    )
    assert result.record.pruned.macs < result.record.dense.macs


def test_maps_beside_detections_are_compared_where_no_sub_module_is_pruned() -> None:
    model = detector(maps=True)
    at = compared_at(model, trace(model, IMAGES[:2]), IMAGES[:8], "auto")
    assert at == Compared(paths=frozenset({("maps",)}))
    assert [tuple(each.shape) for each in at.of(model, IMAGES[:2])] == [(2, 64, 5)]
    assert at.measure("auto") is output_error
    assert score(model, trace(model, IMAGES[:2]), CONFIG, [IMAGES]).curves


def test_outputs_of_one_shape_are_compared_as_they_are() -> None:
    model = nn.Sequential(Body(), nn.Flatten(), nn.Linear(512, 4)).eval()
    assert compared_at(model, trace(model, IMAGES[:2]), IMAGES[:8], "auto") == Compared()
    assert compared_at(model, trace(model, IMAGES[:2]), IMAGES[:8], "error") == Compared()


@pytest.mark.parametrize("measure", ["auto", "error"])
def test_a_detector_that_leaves_nothing_to_compare_is_told_before_it_is_evaluated(measure: str) -> None:
    evaluated: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        evaluated.append(model)
        return 1.0

    method = MDP(score=DivergenceConfig(measure=measure))
    with pytest.raises(InvalidArgumentError, match=r"Detector.*within=, --within.*wrap the model.*another criterion"):
        latprune.prune(detector(), IMAGES[:2], budget="flops=60%", measure_latency=False, method=method, data=[IMAGES], evaluate=evaluate)
    assert not evaluated
