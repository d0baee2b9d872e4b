"""The training modes of a model's modules: whether they can be set, and how they are put back."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from latprune.errors import CaptureError

__all__ = ["check_modes", "preserved_modes"]


@contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Give each module its own training mode back.

    A module that does more in ``train`` than to set its flag (merged adapters) is told first, as the whole model is put back.

    Raises:
        CaptureError: The model's ``train`` sets no mode, but starts something.
    """
    check_modes(model)
    modes = [(m, m.training) for m in model.modules()]
    training = model.training
    try:
        yield
    finally:
        if model.training != training and any(type(m).train is not nn.Module.train for m, _ in modes):
            model.train(training)
        for m, mode in modes:
            m.training = mode


def check_modes(model: nn.Module) -> None:
    """Refuse an object whose ``train`` or ``eval`` is not ``nn.Module``'s, before either is called.

    Wrappers that train, validate and export (``YOLO(...)``) are modules by class, and ``train(...)`` starts a training.

    Raises:
        CaptureError: There is one; the message names the module inside of it.
    """
    seen: set[type[nn.Module]] = set()
    for path, module in model.named_modules():
        kind = type(module)
        if kind in seen:
            continue
        seen.add(kind)
        for method in ("train", "eval"):
            function = getattr(kind, method)
            if function is getattr(nn.Module, method) or _sets_modes(function, takes_mode=method == "train"):
                continue
            where = f"module '{path}'" if path else "the model"
            raise CaptureError(
                f"{where} is a {kind.__name__}, whose {method}{_signature(function)} is not torch.nn.Module's: called to set the mode, it "
                f"would start something else. {_holder(module, path)}"
            )


def _sets_modes(function: object, *, takes_mode: bool) -> bool:
    """Whether a method can be called as ``train(mode)``, or ``eval()``, and its signature says nothing else."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]  # type: ignore[arg-type]
    except (TypeError, ValueError):  # written in C, or not a function
        return True
    given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not takes_mode:
        return not required
    if not given or len(required) > 1 or (required and required[0] is not given[0]):
        return False
    mode = given[0]
    return mode.kind is mode.VAR_POSITIONAL or mode.name == "mode" or isinstance(mode.default, bool) or mode.default is mode.empty


def _signature(function: object) -> str:
    parameters = list(inspect.signature(function).parameters.values())[1:]  # type: ignore[arg-type]
    return f"({', '.join(str(p.replace(annotation=p.empty)) for p in parameters)})"


def _holder(module: nn.Module, path: str) -> str:
    """Which child holds all parameters, in words."""
    total = {id(p) for p in module.parameters()}
    start = f"model.{path}" if path else "model"
    for name, child in module.named_children():
        if {id(p) for p in child.parameters()} == total:
            return f"Pass the module that it holds, {start}.{name} (a {type(child).__name__})"
    return "Pass the torch.nn.Module that it holds"
