"""Filters and tables that a network makes as it runs: they stay, everything else is pruned as without them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latprune
from latprune.errors import CaptureError
from latprune.graph import recorder, trace
from latprune.methods import MDP

X = torch.randn(2, 3, 12, 12)


class Hyper(nn.Module):
    """Filters of one convolution from a layer over a fixed latent."""

    def __init__(self, shape: tuple[int, ...], apply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1), nn.Linear(24, 5)
        self.maker = nn.Linear(4, torch.Size(shape).numel())
        self.register_buffer("latent", torch.randn(4))
        self.shape, self.apply_to = shape, apply

    def forward(self, x: Tensor) -> Tensor:
        x = self.apply_to(torch.relu(self.first(x)), self.maker(self.latent).view(self.shape))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class PerImage(nn.Module):
    """Depthwise filters for each image from the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1), nn.Linear(24, 5)
        self.maker = nn.Linear(16, 16 * 9)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        n, c, h, w = x.shape
        filters = self.maker(x.mean((2, 3))).view(n * c, 1, 3, 3)
        x = F.conv2d(x.reshape(1, n * c, h, w), filters, padding=1, groups=n * c).view(n, c, h, w)
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Table(nn.Module):
    """Rows that are looked up in a table that a layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.hidden, self.head = nn.Linear(4, 64), nn.Linear(16, 32), nn.Linear(32, 5)
        self.register_buffer("latent", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        rows = F.embedding(torch.arange(4), self.maker(self.latent).view(4, 16))
        return self.head(torch.relu(self.hidden(rows)))[None] + x.mean()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Hyper((16, 16, 1, 1), F.conv2d),
    "grouped": lambda: Hyper((16, 4, 3, 3), lambda x, w: F.conv2d(x, w, padding=1, groups=4)),
    "depthwise": lambda: Hyper((16, 1, 3, 3), lambda x, w: F.conv2d(x, w, padding=1, groups=16)),
    "transposed": lambda: Hyper((16, 16, 3, 3), lambda x, w: F.conv_transpose2d(x, w, padding=1)),
    "for each image": PerImage,
    "table": Table,
}


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_what_reads_made_filters_is_kept_and_the_rest_is_pruned(kind: str, form: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[kind]().eval()
    result = latprune.prune(
        model,
        X,
        budget="flops=80%",
        method=MDP(score=latprune.importance.MagnitudeConfig()),
        measure_latency=False,
        form=form,
        recover=False,
    )
    assert result.record.pruned.macs <= 0.8 * result.record.dense.macs
    maker = trace(NETWORKS[kind]().eval(), X).kernels["maker"]
    assert maker.axes[-1].size({}) == maker.attributes["output_shape"][-1]


def test_a_tensor_with_a_name_that_programs_use_is_refused_in_words() -> None:
    model = nn.Module()
    model.register_buffer("code", torch.ones(3))
    model.head = nn.Linear(3, 2)
    model.forward = lambda x: model.head(x * model.code)  # type: ignore[method-assign]
    with pytest.raises(CaptureError, match="a buffer of the model is called 'code', which a program cannot have"):
        latprune.capture(model, torch.randn(2, 3))


def test_a_rule_that_fails_is_not_said_to_be_the_models_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(step: object) -> None:
        raise ValueError("too many places")

    found = recorder.find_rule
    monkeypatch.setattr(recorder, "find_rule", lambda func: fails if "relu" in str(func) else found(func))
    with pytest.raises(CaptureError, match=r"relu.* is of a form that this operation's rule does not take \(ValueError: too many places\)"):
        trace(NETWORKS["plain"]().eval(), X)
