"""Which norm a kernel's channels go into: by the flow of data, in whatever order the forward calls its layers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from latprune import trace

FORMS = ("class", "program")


class Steps(nn.Module):
    """One convolution, what lies behind it, and a classifier."""

    def __init__(self, forward: Callable[["Steps", Tensor], Tensor], features: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.first_half, self.second_half = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.last = nn.LayerNorm(4)
        self.again = nn.Conv2d(4, 4, 1)
        self.classifier = nn.Linear(features, 5)
        self.steps = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.steps(self, x).mean((2, 3)))


def summed(m: Steps, x: Tensor) -> Tensor:
    x = m.conv(x)
    return m.norm(x) + x


def halves(m: Steps, x: Tensor) -> Tensor:
    a, b = m.conv(x).chunk(2, 1)
    return torch.cat([m.second_half(b), m.first_half(a)], 1)


def one_half(m: Steps, x: Tensor) -> Tensor:
    a, b = m.conv(x).chunk(2, 1)
    return torch.cat([m.first_half(a), b.relu()], 1)


CASES = {
    "straight": (lambda m, x: m.norm(m.conv(x)), {"conv": "norm"}),
    "last": (lambda m, x: m.last(m.conv(x).flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8)), {"conv": "last"}),
    "cast": (lambda m, x: m.norm(m.conv(x).double().float().contiguous()), {"conv": "norm"}),
    "rows cut": (lambda m, x: m.norm(m.conv(x)[:, :, 1:]), {"conv": "norm"}),
    "activation between": (lambda m, x: m.norm(m.conv(x).relu()), {}),
    "pool between": (lambda m, x: m.norm(nn.functional.avg_pool2d(m.conv(x), 2)), {}),
    "also read beside": (summed, {}),
    "two norms": (lambda m, x: (lambda y: m.norm(y) * m.other(y))(m.conv(x)), {}),
    "norm of a norm": (lambda m, x: m.other(m.norm(m.conv(x))), {"conv": "norm"}),
    "one norm for two": (lambda m, x: m.norm(m.again(m.norm(m.conv(x)))), {"conv": "norm", "again": "norm"}),
    "weights run again, same norm": (lambda m, x: m.norm(m.again(m.norm(m.again(m.conv(x))))), {"again": "norm"}),
    "weights run again, other norm": (lambda m, x: m.other(m.again(m.norm(m.again(m.conv(x))))), {}),
    "weights run again, no norm": (lambda m, x: m.again(m.norm(m.again(m.conv(x)))), {}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_the_norm_of_a_kernel(case, form):
    forward, expected = CASES[case]
    graph = trace(Steps(forward).eval(), torch.randn(2, 3, 8, 8), form=form)
    assert graph.norms == expected


# The class computes with its width when it cuts in two, which ties the halves; a program has two groups.
PARTS = [
    (halves, "class", {("first_half", "second_half")}),
    (halves, "program", {("first_half",), ("second_half",)}),
    (one_half, "class", {()}),
    (one_half, "program", {("first_half",), ()}),
]


@pytest.mark.parametrize("forward, form, expected", PARTS)
def test_parts_of_what_a_kernel_makes_have_norms_of_their_own(forward, form, expected):
    graph = trace(Steps(forward).eval(), torch.randn(2, 3, 8, 8), form=form)
    members = [m for group in graph.groups.values() for m in group.members]
    assert not graph.norms
    assert {m.norms for m in members if m.tensor == "conv.weight" and m.dim == 0} == expected
    assert {m.norms for m in members if m.tensor == "conv.bias"} == expected
    assert {m.norms for m in members if m.tensor.startswith(("first_half", "classifier.weight"))} == {None}


@pytest.mark.parametrize("form", FORMS)
def test_a_result_that_is_handed_out_has_no_norm(form):
    class Both(Steps):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, self.classifier(self.norm(y).mean((2, 3)))

    assert trace(Both(summed).eval(), torch.randn(2, 3, 8, 8), form=form).norms == {}
