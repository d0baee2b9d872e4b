"""The conditions of a recorded run, and leaving the model as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import nn

from latprune.errors import CaptureError, LatpruneError

__all__ = ["check_repeatable", "capture_conditions", "forget_cached", "preserved_state"]


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


def check_repeatable(model: nn.Module, example_inputs: Any) -> None:
    """Run ``model`` twice in evaluation mode on the same inputs; nothing stays of the runs, random generators included.

    Raises:
        CaptureError: The model does not run, or its outputs differ from run to run: nothing that is traced, measured or compared of such a
            model would mean anything.
    """
    from latprune.graph.tensors import flatten_tensors
    from latprune.graph.trace import call_with

    modes = [(module, module.training) for module in model.modules()]
    numbers = random.getstate(), np.random.get_state()
    try:
        for module, _ in modes:
            module.training = False
        with preserved_state(model), capture_conditions(), torch.random.fork_rng():
            runs = []
            for _ in range(2):
                try:
                    output = call_with(model, example_inputs)
                except LatpruneError:
                    raise
                except Exception as error:
                    raise CaptureError(f"the model does not run on the example inputs: {type(error).__name__}: {error}") from error
                runs.append([tensor.detach().clone() for tensor in flatten_tensors(output, opaque=False)])
    finally:
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        for module, training in modes:
            module.training = training
        forget_cached(model)
    first, second = runs
    different = [index for index, (a, b) in enumerate(zip(first, second, strict=False)) if not _close(a, b)]
    if different or len(first) != len(second):
        where = f" (output {different[0]} of {len(first)})" if different else ""
        raise CaptureError(
            f"the model gives another output at each run on the same inputs in evaluation mode{where}: dropout that ignores eval() "
            "(functional.dropout without training=self.training), random numbers in forward, or a state that each run moves on; make it "
            "repeatable before pruning"
        )


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second)
    wide = torch.complex128 if first.is_complex() else torch.float64
    return torch.allclose(first.to(wide), second.to(wide), rtol=1e-3, atol=1e-5, equal_nan=True)


def forget_cached(model: nn.Module) -> None:
    """Make modules drop what they cached in evaluation mode (such modules do so when they are set to train); the modes stay."""
    modes = [(m, m.training) for m in model.modules()]
    if any(type(m).train is not nn.Module.train for m, _ in modes):
        model.train()
        for m, training in modes:
            m.training = training
