"""What stands in the place of a removed residual branch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from latprune.errors import SurgeryError
from latprune.graph.tensors import flatten_tensors

__all__ = ["ACTIVATIONS", "RemovedBranch", "RemovedPart"]

ACTIVATIONS: Mapping[str, Callable[..., torch.Tensor]] = {
    "relu": torch.relu,
    "gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "silu": F.silu,
    "hardtanh": lambda x, low=-1.0, high=1.0: F.hardtanh(x, low, high),
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky_relu": lambda x, slope=0.01: F.leaky_relu(x, slope),
    "elu": lambda x, alpha=1.0, *rest: F.elu(x, alpha),
    "mish": F.mish,
    "softplus": lambda x, beta=1.0, threshold=20.0: F.softplus(x, beta, threshold),
}
"""Activations that may follow a sum, by operator name."""
_OF_MODULES = frozenset(vars(nn.Module()))
"""What every module has."""


class _StandIn(nn.Module):
    """A module in another one's place, which the code around it may ask for attributes of the one that was there."""

    was: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        """What the original had under a name that this module has nothing under."""
        was = self.__dict__.get("was", {})
        return was[name] if name in was and name not in self.__dict__["_modules"] else super().__getattr__(name)


class RemovedBranch(_StandIn):
    """The shortcut of a residual block, and what follows the sum, without the branch.

    The modules that stay keep the names that they had, so that the keys of a state dict stay the user's own. Plain attributes read as they
    were (a model's forward may go by where a layer stands in its list).

    Args:
        original: The module whose branch goes.
        argument: Which of its tensor arguments (flattened in order) enters the shortcut.
        shortcut: Paths of the children that make the shortcut, in order.
        tail: What follows the sum: ``{"module": path}`` or ``{"op": name, "args": [...]}``.
        output: None where it returns a tensor; else one entry for each place of a tuple: True for the tensor, False for None.

    Raises:
        SurgeryError: A path does not exist or an activation is unknown.
    """

    def __init__(
        self,
        original: nn.Module,
        *,
        argument: int,
        shortcut: Sequence[str],
        tail: Sequence[Mapping[str, Any]],
        output: tuple[bool, ...] | None = None,
    ) -> None:
        super().__init__()
        self.was = original.was if isinstance(original, _StandIn) else _plain_attributes(original)
        self.argument = argument
        self.output = output
        self.steps: list[tuple[str, str, tuple[Any, ...]]] = []
        for path in shortcut:
            self._take(original, path)
            self.steps.append(("module", path, ()))
        for step in tail:
            if "module" in step:
                self._take(original, str(step["module"]))
                self.steps.append(("module", str(step["module"]), ()))
            elif step["op"] in ACTIVATIONS:
                self.steps.append(("op", str(step["op"]), tuple(step.get("args", ()))))
            else:
                raise SurgeryError(f"activation '{step['op']}' after a removed block is unknown; known: {', '.join(ACTIVATIONS)}")
        self.train(original.training)

    def _take(self, original: nn.Module, path: str) -> None:
        """Register the child at ``path`` under the same path."""
        holder: nn.Module = self
        names = path.split(".")
        for name in names[:-1]:
            if name not in holder._modules:
                holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        try:
            holder.add_module(names[-1], original.get_submodule(path))
        except AttributeError as error:
            raise SurgeryError(f"module '{path}' of a removed block's shortcut does not exist") from error

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The shortcut's tensor of whatever the original module was called with."""
        x = _argument(args, kwargs, self.argument)
        for kind, name, extra in self.steps:
            x = self.get_submodule(name)(x) if kind == "module" else ACTIVATIONS[name](x, *extra)
        return _arranged(x, self.output)

    def extra_repr(self) -> str:
        """The steps, for ``print(model)``."""
        return " -> ".join(["input", *(name for _, name, _ in self.steps)])


class RemovedPart(_StandIn):
    """Stands in for a module of a removed branch: hands its argument on, or a zero in its place.

    The forward around it may read more of the module than its result. Plain attributes read as they were, tensors and sub-modules as None.

    Args:
        original: The module that goes.
        argument: Which of the tensor arguments (flattened in order) is handed on.
        output: None where it returns a tensor; else one entry for each place of a tuple: True for the tensor, False for None.
        passed: ``(place, argument)``: that place of the tuple is another tensor argument, unchanged (a bias that all layers share).
        zero: ``scalar``: a zero that broadcasts (engines fold the sum away); ``like``: zeros of the argument's shape; empty: the argument.
    """

    def __init__(
        self,
        original: nn.Module,
        *,
        argument: int,
        output: tuple[bool, ...] | None = None,
        passed: tuple[tuple[int, int], ...] = (),
        zero: str = "",
    ) -> None:
        super().__init__()
        self.argument = argument
        self.output = output
        self.passed = passed
        self.zero = zero
        # An inner block may have gone before the one around it.
        self.was = original.was if isinstance(original, _StandIn) else {**_plain_attributes(original), **_without_values(original)}
        # Fused fast paths of PyTorch's own layers pass by the modules and read their weights; a hook tells them not to.
        self.register_forward_hook(_no_change)
        self.train(original.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The argument, or a zero."""
        x = _argument(args, kwargs, self.argument)
        if self.zero == "scalar":
            x = x.new_zeros(())
        elif self.zero == "like":
            x = torch.zeros_like(x)
        result = _arranged(x, self.output)
        if not self.passed:
            return result
        others = dict(self.passed)
        return tuple(_argument(args, kwargs, others[place]) if place in others else value for place, value in enumerate(result))

    def extra_repr(self) -> str:
        """What it returns, for ``print(model)``."""
        return f"zero={self.zero!r}" if self.zero else "identity"


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Numbers, flags, names, and lists of them."""
    return {name: copy.copy(value) for name, value in vars(module).items() if name not in _OF_MODULES and _is_plain(value)}


def _without_values(module: nn.Module) -> dict[str, None]:
    """None under the names of tensors and sub-modules."""
    return dict.fromkeys((*module._parameters, *module._buffers, *module._modules))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _no_change(module: nn.Module, args: Any, output: Any) -> None:
    """A forward hook that leaves the output as it is."""


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], number: int) -> torch.Tensor:
    if not number and args and isinstance(args[0], torch.Tensor):
        return args[0]
    return flatten_tensors((args, dict(kwargs)))[number]


def _arranged(x: torch.Tensor, output: tuple[bool, ...] | None) -> Any:
    return x if output is None else tuple(x if here else None for here in output)
