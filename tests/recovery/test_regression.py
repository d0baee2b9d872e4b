"""The regression behind the refit: how strongly weights are pulled towards what they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import trace
from latprune.recovery import Refit, recover
from latprune.recovery.recover import output_error
from latprune.recovery.regression import Fit, ridge_change
from latprune.surgery import prune
from recovery.nets import half

STRENGTHS = [1e-2, 1e-1, 1.0, 10.0]


def problem(rows: int, inputs: int, noise: float, *, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs, and a result whose noise no input explains."""
    generator = torch.Generator().manual_seed(rows + inputs)
    x = torch.randn(rows, groups, inputs, generator=generator)
    weight = torch.randn(groups, inputs, 3, generator=torch.Generator().manual_seed(7)) / inputs**0.5
    return x, torch.einsum("rgi,gio->rgo", x, weight).flatten(1) + noise * torch.randn(rows, 3 * groups, generator=generator)


def error(fit: Fit, x: Tensor, target: Tensor) -> float:
    change = torch.einsum("rgi,gio->rgo", x.double(), fit.weight).flatten(1)
    return float((change + fit.constant - target).square().mean())


@pytest.mark.parametrize("groups", [1, 2])
def test_few_rows_and_many_inputs_are_pulled_more(groups: int) -> None:
    x, target = problem(90, 80, 1.0, groups=groups)
    other = problem(4000, 80, 1.0, groups=groups)
    options = {"present": torch.zeros_like(target), "target": target, "constant": True}
    plain = ridge_change(x, ridge=STRENGTHS[0], **options)
    chosen = ridge_change(x, ridge=STRENGTHS, judge=lambda fit: error(fit, *other), **options)
    assert plain.ridge is None and chosen.ridge in STRENGTHS[1:]
    assert error(chosen, *other) < 0.7 * error(plain, *other)
    alone = ridge_change(x, ridge=chosen.ridge, **options)
    torch.testing.assert_close(alone.weight, chosen.weight)


def test_where_rows_abound_the_least_pull_stays() -> None:
    x, target = problem(5000, 20, 0.1)
    other = problem(400, 20, 0.1)
    options = {"present": torch.zeros_like(target), "target": target, "constant": True, "bounds": (0.0, 6.0), "rounds": 3, "keep": 0.2}
    plain = ridge_change(x, ridge=STRENGTHS[0], **options)
    chosen = ridge_change(x, ridge=STRENGTHS, judge=lambda fit: error(fit, *other), **options)
    assert chosen.ridge is None and torch.equal(chosen.weight, plain.weight)


def test_strengths_are_tried_as_long_as_the_error_falls() -> None:
    x, target = problem(90, 80, 1.0)
    errors = iter([3.0, 2.0, 2.5, 0.0])
    fit = ridge_change(x, torch.zeros_like(target), target, ridge=STRENGTHS, constant=False, judge=lambda fit: next(errors))
    assert fit.ridge == 1e-1 and next(errors) == 0.0


def test_a_wide_layer_is_not_fitted_to_its_few_images() -> None:
    """More inputs than images: the least pull gives the images' own noise back, and other images the worse for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 160), nn.ReLU(), nn.Linear(160, 10)).eval()
    images, others = torch.randn(100, 32), torch.randn(500, 32)
    graph = trace(model, images[:2])
    selection = half(graph)
    found = {}
    for pulls in (1, 4):
        network = copy.deepcopy(model)
        prune(network, graph, selection)
        report = recover(network, model, [images], graph=graph, selection=selection, strategy=Refit(ridge=1e-4, pulls=pulls))
        found[pulls] = output_error(network, model, [others])
        assert any("ridge" in layer.note for layer in report.layers) == (pulls > 1)
    assert found[4] < 0.9 * found[1]


@pytest.mark.parametrize("pulls", [0, 1.5, True])
def test_a_number_of_strengths_is_a_whole_number(pulls: object) -> None:
    with pytest.raises(InvalidArgumentError, match="pulls"):
        Refit(pulls=pulls)  # type: ignore[arg-type]
