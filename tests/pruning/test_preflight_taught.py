"""A distillation that cannot work is told before anything is cut, and nothing of its trial stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latprune
from latprune.errors import InvalidArgumentError
from latprune.train import Distillation, Recipe, matching_loss

X = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [(X[i : i + 8], torch.rand(8, 4)) for i in range(0, 24, 8)]


class Losing(nn.Module):
    """Gives a dict of losses while it trains on targets, and one of boxes for each image otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.drop = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Dropout(0.2)
        self.b, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        found = self.head(self.drop(self.b(F.relu(self.n(self.a(x))))).mean((2, 3)))
        if self.training and targets is not None:
            return {"boxes": F.smooth_l1_loss(found, targets)}
        return found


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    output = model(*batch)
    return sum(output.values()) if isinstance(output, dict) else F.smooth_l1_loss(output, batch[1])


@pytest.mark.parametrize(
    ("distillation", "words"),
    [
        (Distillation(), "compares class scores"),
        (Distillation(loss=matching_loss), "does not work on the first batch: outputs to match are {boxes: float32"),
        (Distillation(loss=lambda student, teacher: student["maps"].sum()), "does not work on the first batch.*maps"),
        (Distillation(weight=0.0, features=("nowhere",)), "does not work on the first batch.*'nowhere'"),
    ],
)
def test_a_distillation_that_cannot_work_is_told_first(distillation: Distillation, words: str) -> None:
    torch.manual_seed(0)
    model = Losing().eval()
    model.drop.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    evaluated: list[nn.Module] = []
    with pytest.raises(InvalidArgumentError, match=words):
        latprune.prune(
            model,
            X[:2],
            budget="flops=60%",
            measure_latency=False,
            method="uniform",
            data=DATA,
            loss=own_loss,
            evaluate=lambda found: evaluated.append(found) or 1.0,
            fit=Recipe(epochs=1, learning_rate=0.01, distillation=distillation),
        )
    assert not evaluated
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_trial_changes_nothing_of_a_training_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Losing().eval()
        recipe = Recipe(epochs=1, learning_rate=0.01, distillation=Distillation(weight=0.0, features=("b",)))
        options: dict[str, Any] = {"budget": "flops=60%", "measure_latency": False, "method": "uniform"}
        return latprune.prune(model, X[:2], data=DATA, loss=own_loss, fit=recipe, **options).model.state_dict()

    tried = trained()
    monkeypatch.setattr("latprune.pruning.preflight.check_taught_step", lambda *arguments: None)
    assert all(torch.equal(value, tried[name]) for name, value in trained().items())


@pytest.mark.parametrize(
    ("data", "recipe", "words"),
    [
        ([({"x": X[:8]}, torch.zeros(8).long())], Recipe(epochs=1, learning_rate=0.1, mixup=0.2), "mixup blends one floating-point tensor"),
        ([(X[:8], torch.rand(8, 4))], Recipe(epochs=1, learning_rate=0.1, cutmix=1.0), "cutmix needs one class index"),
        ([(X[:8], torch.zeros(8).long())], Recipe(epochs=1, learning_rate=0.1, precision="fp16"), "precision"),
    ],
)
def test_what_a_recipe_cannot_do_with_the_data_or_the_weights_is_told_first(data: Any, recipe: Recipe, words: str) -> None:
    torch.manual_seed(0)
    model = Losing().eval()
    if recipe.precision == "fp16":
        model, data = model.half(), [(x.half(), y) for x, y in data]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = data[0][0]
    with pytest.raises(InvalidArgumentError, match=words):
        latprune.prune(model, x, budget="flops=60%", method="uniform", data=data, fit=recipe, measure_latency=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
