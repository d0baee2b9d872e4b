"""A model held in another type than float32 on an engine: what it runs in there, and what people are told of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from latprune.latency.engines import get_engine
from latprune.latency.engines.inputs import DTYPES, held_type
from latprune.latency.target import Target

__all__ = ["settled_target", "type_note"]


def settled_target(model: nn.Module, target: Target) -> Target:
    """The target in the precision that ``model`` runs in there.

    At ``fp32``, which stands where nothing was asked for, an engine that runs the type that a model is held in (PyTorch: fp16, bf16) runs
    it in that; every other precision stays.

    Example:
        >>> settled_target(nn.Linear(4, 2).half(), Target(engine="torch")).precision
        'fp16'
        >>> settled_target(nn.Linear(4, 2).half(), Target(engine="openvino")).precision
        'fp32'
    """
    held = _other_type(model, target)
    own = _precision(held) if held is not None else ""
    return replace(target, precision=own) if own and own in get_engine(target.engine).runs_held else target


def type_note(model: nn.Module, target: Target) -> str:
    """What people are told where ``model`` is not held in the type that it was asked to run in; empty where it is.

    Args:
        model: As it is handed over.
        target: As it was asked for, before :func:`settled_target`.
    """
    held = _other_type(model, target)
    if held is None:
        return ""
    settled, name = settled_target(model, target), _precision(held) or str(held).removeprefix("torch.")
    if settled != target:
        return f"the model is held in {name}, and is measured in {name} on {target.engine}; call .float() on it first to measure it in fp32"
    other = f"; the engine torch runs {name} as it is" if name in get_engine("torch").runs_held else ""
    return f"the model is held in {name}; on {target.engine} a float32 copy of it, of the same structure, is measured at fp32{other}"


def _precision(dtype: torch.dtype) -> str:
    return next((name for name, kind in DTYPES.items() if kind == dtype), "")


def _other_type(model: nn.Module, target: Target) -> torch.dtype | None:
    """The type that the model is held in, where it is one, is not float32, and fp32 was asked for."""
    held = held_type(model)
    return held if target.precision == "fp32" and held != torch.float32 else None
