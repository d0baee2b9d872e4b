"""What stands around a model: wrappers are taken off with a word, and objects that only look like a module are told before they are run."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import nn

from latprune.errors import UnwrappedWarning

__all__ = ["scripted_parts", "unwrapped", "without_wrapper"]

ModelT = TypeVar("ModelT", bound=nn.Module)

_COMPILED = "OptimizedModule"
"""Class of what ``torch.compile`` returns; it is not imported, since that brings the whole compiler."""


def without_wrapper(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The module inside of ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``, and for each wrapper a sentence about it.

    The wrappers are not touched. A ``DistributedDataParallel`` of several processes stays on: each process would prune by its own
    measurements, and the wrapper would go on to sum the gradients of parameters that are gone.
    """
    words = []
    while (found := _inside(model)) is not None:
        model, word = found
        words.append(word)
    return model, tuple(words)


def unwrapped(model: nn.Module, *, parts: bool = False) -> nn.Module:
    """The plain module of a model, with a warning for each wrapper that was around it.

    Args:
        model: Any module; one without wrappers is returned as it is.
        parts: Exchange wrapped parts too, in place: ``model.features`` becomes the module inside of it, under names without the wrapper's.

    Example:
        >>> model = nn.Sequential(nn.DataParallel(nn.Linear(4, 2)), nn.ReLU())
        >>> with warnings.catch_warnings(action="ignore"):
        ...     [name for name, _ in unwrapped(model, parts=True).named_parameters()]
        ['0.weight', '0.bias']
    """
    model, words = without_wrapper(model)
    for word in words:
        warnings.warn(f"the model {word}", UnwrappedWarning, stacklevel=2)
    if parts:
        for path, module in list(model.named_modules()):
            for name, child in list(module.named_children()):
                inner, words = without_wrapper(child)
                if words:
                    setattr(module, name, inner)
                    warnings.warn(f"module '{f'{path}.{name}' if path else name}' {words[0]}", UnwrappedWarning, stacklevel=2)
    return model


def _inside(model: nn.Module) -> tuple[nn.Module, str] | None:
    kind = type(model).__name__
    inner = getattr(model, "_orig_mod", None) if kind == _COMPILED else getattr(model, "module", None)
    if not isinstance(inner, nn.Module):
        return None
    if kind == _COMPILED:
        return inner, "is compiled (torch.compile): the module in it is taken; the compiled one compiles anew once sizes change"
    if isinstance(model, nn.DataParallel):
        return inner, "is a DataParallel: the module in it is taken; the wrapper runs what it has become"
    if isinstance(model, nn.parallel.DistributedDataParallel) and torch.distributed.get_world_size(model.process_group) == 1:
        return inner, "is a DistributedDataParallel of one process: the module in it is taken; wrap it again before it is trained"
    return None


def scripted_parts(model: nn.Module) -> str:
    """Why exporters do not take a model with TorchScript parts, and what to do; empty where it has none."""
    parts = [path for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if not parts:
        return ""
    return (
        f"module '{parts[0]}' is TorchScript, which exporters cannot follow: put the nn.Module there that it was made of, or prune with "
        "form='program' (--form program), whose result is exported"
    )
