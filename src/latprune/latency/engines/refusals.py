"""Networks that an engine does not take: the reason in a line, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from latprune.errors import EngineError
from latprune.graph.computed_types import computed_types
from latprune.graph.wrappers import scripted_parts
from latprune.latency.engines.inputs import ModelInputs, held_type

__all__ = ["NetworkRefusedError", "with_remedy"]


class NetworkRefusedError(EngineError):
    """An engine, or the exporter before it, does not take a network; inside of :func:`with_remedy` alone."""


@contextmanager
def with_remedy(model: nn.Module, inputs: ModelInputs) -> Iterator[None]:
    """Say after a refusal what to do; ``model`` is the network as the engine was given it.

    Raises:
        EngineError: In place of a :class:`NetworkRefusedError`.
    """
    try:
        yield
    except NetworkRefusedError as error:
        raise EngineError(f"{error}; {_what_to_do(model, inputs)}") from error.__cause__


def _what_to_do(model: nn.Module, inputs: ModelInputs) -> str:
    if parts := scripted_parts(model):
        return f"{parts}; the engine torch runs it as it is"
    others = computed_types(model, inputs.args, inputs.kwargs) - {torch.float32, held_type(model)}
    if others:
        names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in others))
        return (
            f"the model computes in {names} in places (autocast in its forward, or a cast of its own): take that out where it is deployed "
            "in float32, or choose the engine torch, which runs it as it is"
        )
    return "choose another engine (torch runs whatever PyTorch does; torch_compile, executorch), or replace that operation in the model"
