"""What happens to masked parameters at the borders of an optimizer's step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from latprune.errors import InvalidArgumentError
from latprune.surgery.mask_scaling import NormScaling
from latprune.surgery.mask_values import HeldValues

__all__ = ["MaskedSteps"]


class MaskedSteps:
    """Works at each step of the optimizers that it is attached to.

    Attributes:
        held: ``id`` of a parameter -> what is masked of it; empty while nothing is, or while the dense values are in place.

    Args:
        straight_through: Whether steps update the hidden dense values; else these keep theirs.
        weight_decay: Decay of the hidden values of the masked places, per unit of learning rate.
        scaling: Scales gradients in front of batch norms; None leaves them.
    """

    def __init__(self, *, straight_through: bool, weight_decay: float | None, scaling: NormScaling | None) -> None:
        self.held: Mapping[int, HeldValues] = {}
        self._straight_through = straight_through
        self._weight_decay = weight_decay
        self._scaling = scaling
        self._hooks: dict[int, tuple[Optimizer, tuple[RemovableHandle, RemovableHandle]]] = {}

    def attach(self, *optimizers: Optimizer) -> None:
        """Work at each step of these optimizers too."""
        for optimizer in optimizers:
            inner = _unwrapped(optimizer)
            if id(inner) not in self._hooks:
                hooks = (inner.register_step_pre_hook(self._before_step), inner.register_step_post_hook(self._after_step))
                self._hooks[id(inner)] = (inner, hooks)

    def detach(self, *optimizers: Optimizer) -> None:
        """Leave these optimizers alone from now on; without arguments all."""
        for key in [id(_unwrapped(o)) for o in optimizers] or list(self._hooks):
            if key in self._hooks:
                for hook in self._hooks.pop(key)[1]:
                    hook.remove()

    def _of(self, optimizer: Optimizer) -> Iterator[tuple[HeldValues, dict[str, Any]]]:
        """The masked parameters that an optimizer updates, with their parameter groups."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                held = self.held.get(id(parameter))
                if held is not None:
                    yield held, group

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.held:
            return
        if any(callable(a) for a in (*args[1:], *kwargs.values())):
            raise InvalidArgumentError(
                "optimizer.step(closure) runs the network within the step, where no mask is set; call backward() before it"
            )
        for held, _ in self._of(optimizer):
            if self._scaling is not None:
                self._scaling.apply(held)
            if self._straight_through:
                held.show()
            elif held.parameter.grad is not None:
                held.clear_like(held.parameter.grad)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for held, group in self._of(optimizer):
            if self._straight_through:
                held.hide()
                if self._weight_decay:
                    held.decay(1.0 - float(group["lr"]) * self._weight_decay)
                continue
            held.fix()
            for value in optimizer.state.get(held.parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == held.parameter.shape:
                    held.clear_like(value)


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside of a wrapper that is one itself (Accelerate's)."""
    inner = getattr(optimizer, "optimizer", None)
    return _unwrapped(inner) if isinstance(inner, Optimizer) else optimizer
