"""The conditions of a recorded run, and leaving the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import nn

__all__ = ["capture_conditions", "forget_cached", "preserved_modes", "preserved_state"]


@contextmanager
def capture_conditions() -> Iterator[None]:
    """The conditions of a recorded run: no gradients, no fused fast path of ``nn.MultiheadAttention``.

    A run that has to follow the same sequence of operations (the masked executor) runs under the same conditions.
    """
    backend = torch.backends.mha
    before = backend.get_fastpath_enabled()
    backend.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        backend.set_fastpath_enabled(before)


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Undo what runs leave behind in the modules: cached tensors in attributes, dicts and lists, buffers put in place of others,
    and hooks (a model that installs its own remembers that in an attribute: both must go, or they are there twice).
    """
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        values = module.__dict__
        before.append((values, dict(values)))
        for name, value in values.items():
            if isinstance(value, dict) and (name in ("_buffers", "_parameters") or "hooks" in name or not name.startswith("_")):
                before.append((value, dict(value)))
    try:
        yield
    finally:
        for values, saved in before:
            if len(values) == len(saved) and all(map(is_, values, saved)) and all(map(is_, values.values(), saved.values())):
                continue
            for name in [n for n in values if n not in saved]:
                del values[name]
            for name, value in saved.items():
                if values.get(name) is not value:
                    values[name] = value


@contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Give each module its own training mode back.

    A module that does more in ``train`` than to set its flag (merged adapters) is told first, as the whole model is put back.
    """
    modes = [(m, m.training) for m in model.modules()]
    training = model.training
    try:
        yield
    finally:
        if model.training != training and any(type(m).train is not nn.Module.train for m, _ in modes):
            model.train(training)
        for m, mode in modes:
            m.training = mode


def forget_cached(model: nn.Module) -> None:
    """Make modules drop what they cached in evaluation mode (such modules do so when they are set to train); the modes stay."""
    modes = [(m, m.training) for m in model.modules()]
    if any(type(m).train is not nn.Module.train for m, _ in modes):
        model.train()
        for m, training in modes:
            m.training = training  # not by eval(), which would cache anew
