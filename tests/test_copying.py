from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from latprune.copying import copied
from latprune.errors import CaptureError


class Hooked(nn.Module):
    """A backbone whose hooks write features that the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
        self.features: dict[str, torch.Tensor] = {}
        features = self.features

        def keep(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
                features[name] = output

            return hook

        for index, layer in enumerate(self.body):
            layer.register_forward_hook(keep(str(index)))
        self.scaled = lambda x: x * self.factor
        self.factor = 2.0
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.body(x)
        return self.head(self.scaled(self.features["0"] + self.features["1"]))


def test_hooks_and_functions_of_a_copy_belong_to_the_copy() -> None:
    model, x = Hooked(), torch.randn(2, 4)
    model(x)  # the features that it holds now have a history
    clone = copied(model)
    assert torch.equal(clone(x), model(x))
    kept = {name: value.clone() for name, value in model.features.items()}
    clone.factor = 3.0
    with torch.no_grad():
        clone.body[0].weight.zero_()
    assert not torch.equal(clone(x), model(x))
    clone(torch.randn(2, 4))
    assert all(torch.equal(value, kept[name]) for name, value in model.features.items())


def test_functions_that_close_over_nothing_of_the_model_stay() -> None:
    seen: list[int] = []
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *_: seen.append(1))
    copied(model)(torch.randn(1, 2))
    assert seen == [1]


def test_weights_that_a_hook_derives_are_copied() -> None:
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Linear(3, 3))
    x = torch.randn(2, 3)
    model(x)
    assert torch.equal(copied(model)(x), model(x))


def test_what_cannot_be_copied_is_told() -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(CaptureError, match="cannot be copied.*lock"):
        copied(model)
