"""An optimizer that still holds parameters which a cut took out of the model trains nothing: it is told so at its next step."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from latprune.errors import LatpruneError

__all__ = ["MARK", "mark_removed", "removed_of"]

MARK = "_latprune_removed"
"""Attribute of a parameter that a cut took out of its model: the name that it had there. Copies of a parameter do not have it."""


def mark_removed(parameter: nn.Parameter, name: str) -> None:
    """Remember that ``parameter``, called ``name`` in its model, is no longer part of it."""
    _watch_optimizers()
    setattr(parameter, MARK, name)


def removed_of(optimizer: Optimizer) -> list[str]:
    """Names of the parameters of an optimizer that cuts took out of their model."""
    return [getattr(p, MARK) for group in optimizer.param_groups for p in group["params"] if hasattr(p, MARK)]


@functools.cache
def _watch_optimizers() -> None:
    """Look at every optimizer's parameters before its steps from now on: one attribute look-up for each.

    A step inside of ``torch.compile`` is not looked at.
    """
    register_optimizer_step_pre_hook(_refuse_removed)


def _refuse_removed(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if torch.compiler.is_compiling():
        return
    names = removed_of(optimizer)
    if names:
        raise LatpruneError(
            f"the optimizer ({type(optimizer).__name__}) holds {len(names)} parameters that a cut took out of the model (first "
            f"'{names[0]}'): its steps would not train the network. Hand it to the cut, cut(optimizers=...), or build it anew from the "
            "model's parameters"
        )
