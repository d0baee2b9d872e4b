"""A running average of a network's weights (Polyak averaging), which often does better than the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from latprune.states import state_tensors

__all__ = ["RunningAverage"]


class RunningAverage:
    """The exponential average of a model's parameters and floating-point buffers; other buffers are those of the last step.

    Args:
        model: The model; its present values are where the average begins.
        decay: Share of the average that stays at each update, once enough updates were made.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in state_tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's values in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in state_tensors(model).items():
            mine = self.values[name]
            if mine.is_floating_point():
                mine.lerp_(value.to(mine.dtype), 1.0 - decay)
            else:
                mine.copy_(value)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the average into the model, in place."""
        for name, value in state_tensors(model).items():
            value.copy_(self.values[name])

    @contextmanager
    def shown_in(self, model: nn.Module) -> Iterator[None]:
        """For a while the model holds the average."""
        own = {name: value.detach().clone() for name, value in state_tensors(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in state_tensors(model).items():
                    value.copy_(own[name])

    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Take up a saved average."""
        for name, mine in self.values.items():
            mine.copy_(values[name])
        self.updates = updates
