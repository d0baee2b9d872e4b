"""Sizes that a forward takes from another tensor: ``view_as`` and its kin, lengths, strides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.errors import InvalidArgumentError
from latprune.importance import MagnitudeConfig
from latprune.methods import MDP

X = torch.randn(1, 3, 12, 12)


class Branch(nn.Module):
    """What comes out of a branch is brought to the stream's shape."""

    def __init__(self, bring: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.up, self.out, self.head = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 16, 1),
            nn.Conv2d(16, 16, 1),
            nn.Linear(16, 5),
        )
        self.bring = bring

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head((x + self.out(self.bring(self.up(x), x))).mean((2, 3)))


BRINGING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "view_as": lambda y, x: y.flatten(2).view_as(x),
    "reshape_as": lambda y, x: y.flatten(2).reshape_as(other=x),
    "expand_as": lambda y, x: y.mean((2, 3), keepdim=True).expand_as(x),
    "length": lambda y, x: y.view(len(x), len(x[0]), -1).view(x.shape),
    "stride": lambda y, x: y.flatten(2).view(-1, x.stride(0) // x.stride()[1], 12, 12),
}


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize("name", BRINGING)
def test_sizes_of_another_tensor_follow_its_channels(name: str, form: str) -> None:
    torch.manual_seed(0)
    model = Branch(BRINGING[name]).eval()
    result = latprune.prune(
        model, X, budget="flops=50%", method=MDP(score=MagnitudeConfig(), blocks=False), measure_latency=False, form=form, recover=False
    )
    assert 0.4 < result.record.pruned.macs / result.record.dense.macs <= 0.5
    assert result.model(X).shape == (1, 5)


def test_memory_that_is_read_in_another_shape_keeps_the_channels() -> None:
    model = Branch(lambda y, x: y.contiguous().as_strided(x.size(), x.stride())).eval()
    with pytest.raises(InvalidArgumentError, match="used as a number in the forward; form='program' can prune it"):
        latprune.prune(model, X, budget="flops=50%", measure_latency=False)
