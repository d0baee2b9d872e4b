"""Models that are not defined everywhere (logarithms, roots), and outputs that rule a class out by an infinity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.errors import InvalidArgumentError, SurgeryError
from latprune.graph import Selection, trace
from latprune.surgery import check_equal, masked, prune, random_inputs

POSITIVE = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))


class Perceptron(nn.Module):
    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.last(torch.relu(self.first(self.before(x)))))


def as_it_is(x: Tensor) -> Tensor:
    return x


def log_energy(x: Tensor) -> Tensor:
    return torch.log(x + 1e-6)


def last_ruled_out(x: Tensor) -> Tensor:
    return x.masked_fill(torch.arange(4) == 3, -torch.inf)


def half_pruned(model: nn.Module, inputs: Tensor) -> latprune.Result:
    return latprune.prune(model, inputs, budget="flops=50%", method="sp_lamp", measure_latency=False, progress=None)


@pytest.mark.parametrize("inputs", [POSITIVE, torch.ones(4, 8)], ids=["in a range", "one value"])
def test_a_model_of_positive_inputs_is_pruned(inputs: Tensor) -> None:
    result = half_pruned(Perceptron(log_energy, as_it_is), inputs)
    assert result.model.first.out_features == 16 and result.model(inputs).isfinite().all()


def test_random_inputs_stay_in_the_range_of_the_given_ones() -> None:
    drawn = random_inputs(POSITIVE, 1)
    assert POSITIVE.min() <= drawn.min() and drawn.max() <= POSITIVE.max() and not torch.equal(drawn, POSITIVE)
    assert random_inputs(torch.zeros(1000), 1).std() == pytest.approx(1.0, abs=0.1)


def test_a_class_that_is_ruled_out_is_compared_too() -> None:
    assert half_pruned(Perceptron(as_it_is, last_ruled_out), POSITIVE).model(POSITIVE)[:, 3].isinf().all()
    model = Perceptron(as_it_is, last_ruled_out)
    graph = trace(model, POSITIVE)
    kept = Selection(kept={next(iter(graph.groups)): np.arange(8)})
    other = Perceptron(as_it_is, as_it_is)
    hidden = masked(model, graph, kept)
    prune(other, graph, kept)
    with pytest.raises(SurgeryError, match="infinite values in other places"):
        check_equal(other, hidden, POSITIVE)


@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
def test_outputs_that_hold_no_number_cannot_be_compared(number: float) -> None:
    model = Perceptron(as_it_is, lambda x: torch.full_like(x, number))
    graph = trace(model, POSITIVE)
    with pytest.raises(SurgeryError, match="cannot be compared with the masked one: output 0 of the masked network holds NaN, or nothing"):
        check_equal(model, masked(model, graph, Selection(kept={})), POSITIVE)


def test_nan_on_the_example_inputs_is_told_before_anything_is_measured() -> None:
    with pytest.raises(InvalidArgumentError, match=r"output 0 of the model holds 16 NaN of 16 values on the example inputs; "):
        latprune.prune(Perceptron(lambda x: torch.log(x - 5), as_it_is), POSITIVE, budget="50%", progress=None)


@pytest.mark.parametrize("form", ["class", "program"])
def test_inputs_that_another_module_computed_are_taken_as_they_are(form: str) -> None:
    made = nn.Linear(8, 8)(POSITIVE)
    result = latprune.prune(
        Perceptron(as_it_is, as_it_is), made, budget="flops=50%", method="sp_lamp", measure_latency=False, form=form, progress=None
    )
    assert result.record.pruned.macs == 0.5 * result.record.dense.macs and made.grad_fn is not None
