"""Does the network under a training mask compute what the masked executor does?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import CaptureError
from latprune.graph import ModelGraph, Selection
from latprune.graph.conditions import capture_conditions, forget_cached, preserved_state
from latprune.graph.containers import rebuilt
from latprune.graph.example_inputs import as_call, own_copy
from latprune.graph.tensors import tensors_in
from latprune.modes import preserved_modes
from latprune.surgery.masked import masked
from latprune.surgery.verify import TOLERANCES, doubled, in_double

__all__ = ["check_masked"]


def check_masked(
    model: nn.Module,
    dense_values: Callable[[], AbstractContextManager[None]],
    graph: ModelGraph,
    selection: Selection,
    inputs: Any,
) -> str:
    """How a network under a mask differs from the masked executor on its dense values; empty where it does not.

    Where the difference in the model's own type could be rounding, copies in float64 decide; where the dense model does not run in float64,
    the difference in its own type stands, with the reason.

    Args:
        model: The network with the mask on.
        dense_values: Context in which the dense values are in place.
        graph: Its traced graph.
        selection: What the mask keeps.
        inputs: As they were traced.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs = rebuilt(inputs, lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf)
    with dense_values():
        executor = masked(model, graph, selection)
        wanted = executor.run(*_copied(inputs))
    why = _compare(model, wanted.output, wanted.masks, inputs)
    if not why:
        return ""
    with dense_values():
        wide_dense = executor.with_model(doubled(model))
    try:
        wide = wide_dense.run(*_copied(in_double(inputs)))
    except (CaptureError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        # What a model raises that has an operator, a check or a part of its own for one type alone: then that type's verdict stands.
        return f"{why}; float64 does not decide, as the dense model does not run in it: {type(error).__name__}: {error}"
    return _compare(doubled(model), wide.output, wide.masks, in_double(inputs))


def _copied(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return own_copy(as_call(inputs))  # type: ignore[no-any-return]


def _run(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = _copied(inputs)
    try:
        with preserved_modes(model), capture_conditions(), preserved_state(model.eval()):
            return model(*args, **kwargs)
    finally:
        forget_cached(model)


def _compare(model: nn.Module, wanted: Any, masks: Any, inputs: Any) -> str:
    """Largest relative difference in the kept coordinates of the outputs, in words; empty where it is within the type's tolerance."""
    got, expected = tensors_in(_run(model, inputs)), tensors_in(wanted)
    if len(got) != len(expected):
        return f"{len(got)} outputs instead of {len(expected)}"
    worst, allowed = 0.0, 0.0
    for mine, theirs in zip(got, expected, strict=True):
        if mine.shape != theirs.shape:
            return f"an output of shape {tuple(mine.shape)} instead of {tuple(theirs.shape)}"
        if not (mine.is_floating_point() or mine.is_complex()) or not mine.numel():
            continue
        allowed = max(allowed, TOLERANCES.get(mine.dtype.to_real(), 1e-4))
        mine, theirs_wide = in_double(mine), in_double(theirs)
        difference = (mine - theirs_wide).abs()
        mask = masks.get(id(theirs))
        if mask is not None:
            difference = torch.where(mask.to(difference.device), difference, 0.0)
        worst = max(worst, float(difference.max()) / max(float(theirs_wide.abs().max()), torch.finfo(theirs.dtype).tiny))
    if not worst <= allowed:  # NaN differs
        return f"relative difference {worst:.3g}, allowed {allowed:.3g}"
    return ""
