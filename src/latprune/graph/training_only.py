"""Branches that run in training only (auxiliary heads, deep supervision): what they read of the trunk stays, or training would break."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from latprune.copying import copied
from latprune.errors import LatpruneError
from latprune.graph.recording import Recording
from latprune.graph.tensors import flatten_tensors

__all__ = ["kept_for_training"]


def kept_for_training(model: nn.Module, example_inputs: Any, recording: Recording) -> dict[int, str]:
    """Labels that modules read which the recorded run did not call, and a run in training mode calls.

    The run is made on a copy, and only where there are such modules. Their own widths are not known to the graph, so what they read of the
    network stays whole. A model that does not run on its example inputs in training mode (it wants targets) tells nothing here.

    Returns:
        Label -> reason, for what must stay.
    """
    # A parent may compute with a module's weights without calling it (the output projection of nn.MultiheadAttention).
    used = {tensor for tensor, _ in recording.roles}
    idle = {
        path
        for path, module in model.named_modules()
        if path
        and not recording.call_counts.get(path)
        and (names := [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)])
        and used.isdisjoint(names)
    }
    if not idle:
        return {}
    reads = _training_reads(model, example_inputs, idle)
    frozen: dict[int, str] = {}
    for path, (source, shape) in reads.items():
        why = f"read by '{path}', which runs in training only"
        for info in _outputs(recording, source, shape):
            for field in info.fields:
                frozen |= dict.fromkeys(field.reshape(-1).tolist(), why)
    return frozen


def _training_reads(model: nn.Module, example_inputs: Any, idle: set[str]) -> Mapping[str, tuple[str | None, tuple[int, ...]]]:
    """Idle module -> module whose output it reads in a run in training mode (None: no module's), and that tensor's shape."""
    try:
        trial = copied(model).train()
    except LatpruneError:
        return {}
    made: dict[int, str] = {}
    alive: list[torch.Tensor] = []
    reads: dict[str, tuple[str | None, tuple[int, ...]]] = {}

    def leave(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in flatten_tensors(output):
                alive.append(tensor)
                made[id(tensor)] = path

        return hook

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            for tensor in flatten_tensors(args):
                source = made.get(id(tensor))
                if source is None or not any(source == other or source.startswith(f"{other}.") for other in idle):
                    reads[path] = (source, tuple(tensor.shape))

        return hook

    for path, module in trial.named_modules():
        if path and not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(leave(path))
            if path in idle:
                module.register_forward_pre_hook(enter(path))
    from latprune.graph.example_inputs import call_with

    # It may want targets, or a batch of several for its norms: what ran before that is known.
    with contextlib.suppress(Exception), torch.no_grad(), torch.random.fork_rng():
        call_with(trial, example_inputs)
    return reads


def _outputs(recording: Recording, source: str | None, shape: tuple[int, ...]) -> list[Any]:
    """What the recorded run had in the place of a tensor: the last result of that shape in the module that made it, or where no module did,
    all results of the shape.
    """
    found = []
    for node in recording.nodes:
        if source is None or node.module == source or node.module.startswith(f"{source}."):
            found += [info for info in node.outputs if tuple(info.shape) == shape]
    return found if source is None else found[-1:]
