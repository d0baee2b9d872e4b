"""Carrying edits out, in place, on a model: the one place where tensors are cut and modules replaced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from latprune.errors import CheckpointError
from latprune.graph import ModelGraph, Selection
from latprune.graph.conditions import cut_unfolded
from latprune.program.module import ProgramModule
from latprune.surgery.edits import ArchitectureEdits, EditStep, ScaleEdit, TensorEdit
from latprune.surgery.plan import plan_step
from latprune.surgery.removed import RemovedBranch, RemovedPart

__all__ = ["prune", "replay"]


def prune(model: nn.Module, graph: ModelGraph, selection: Selection, *, since: Selection | None = None) -> ArchitectureEdits:
    """Remove channels and blocks from ``model``, in place and physically.

    Parameters are replaced by smaller ones (same dtype, device, memory format, ``requires_grad``; a gradient that is there is cut
    alike), so an optimizer has to be built anew afterwards. Tied parameters stay tied. The model's training flags stay.

    Args:
        model: The model that ``graph`` was traced from, or what earlier cuts left of it.
        graph: The graph of the dense model.
        selection: Units of the dense model to keep and blocks to remove.
        since: The selection that the model was cut to before; None: it is dense.

    Returns:
        The edits from the model as it was to what it is now, for :func:`replay` and for saving. Those of several cuts follow each other
        (:meth:`ArchitectureEdits.then`).

    Raises:
        InvalidArgumentError: The selection does not fit the graph, or brings back what is gone.
        SurgeryError: The model does not fit the graph.

    Example:
        >>> graph = latprune.graph.trace(model, x)
        >>> kept = {name: np.arange(g.units // 2) for name, g in graph.groups.items() if g.rows == 1}
        >>> edits = latprune.surgery.prune(model, graph, Selection(kept=kept))
    """
    step = plan_step(model, graph, selection, since)
    _apply(model, step)
    return ArchitectureEdits(steps=(step,))


def replay(model: nn.Module, edits: ArchitectureEdits) -> nn.Module:
    """Bring a freshly constructed dense ``model`` to the pruned architecture, in place, and return it.

    Afterwards ``model.load_state_dict(state, strict=True)`` takes the pruned weights.

    Raises:
        CheckpointError: The model is of another architecture than the edits.
    """
    for step in edits.steps:
        _check(model, step)
        _apply(model, step)
    return model


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _check(model: nn.Module, step: EditStep) -> None:
    tensors = _tensors(model)
    for name in [s.name for s in step.scales] + [t.name for t in step.tensors]:
        if name not in tensors:
            raise CheckpointError(f"the edits are of another architecture: this model has no tensor '{name}'")
    for t in step.tensors:
        shape = tuple(tensors[t.name].shape)
        if shape != t.shape:
            raise CheckpointError(f"the edits are of another architecture: tensor '{t.name}' has shape {shape}, the edits expect {t.shape}")
    if step.branches and not isinstance(model, ProgramModule):
        raise CheckpointError(f"the edits are those of a captured program, and this is a {type(model).__name__}: capture it first")
    modules = dict(model.named_modules(remove_duplicate=False))
    for a in step.attributes:
        if a.module not in modules or not hasattr(modules[a.module], a.name):
            raise CheckpointError(f"the edits are of another architecture: module '{a.module}' has no attribute '{a.name}'")
        found: Any = getattr(modules[a.module], a.name)
        found = tuple(found) if isinstance(found, (tuple, list)) else found
        if found != a.before:
            raise CheckpointError(f"the edits are of another architecture: '{a.module}.{a.name}' is {found}, the edits expect {a.before}")
    for b in step.blocks:
        for path in [b.module] if b.module else [p.module for p in b.parts]:
            if path not in modules:
                raise CheckpointError(f"the edits are of another architecture: this model has no module '{path}'")


def _apply(model: nn.Module, step: EditStep) -> None:
    with cut_unfolded(model):
        _carry_out(model, step)


def _carry_out(model: nn.Module, step: EditStep) -> None:
    tensors = _tensors(model)
    places = _places(model)
    for scale in step.scales:
        _scale(tensors[scale.name], scale)
    for edit in step.tensors:
        old = tensors[edit.name]
        new = _replacement(old, edit)
        for holder, name in places[id(old)]:
            holder[name] = new
    modules = dict(model.named_modules(remove_duplicate=False))
    for module in modules.values():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # recurrent layers hold their weights a second time
    for a in step.attributes:
        module = modules[a.module]
        value: Any = a.after
        if isinstance(value, tuple) and isinstance(getattr(module, a.name), list):
            value = list(value)
        if isinstance(module, RemovedPart):
            module.was[a.name] = value
        else:
            setattr(module, a.name, value)
    if isinstance(model, ProgramModule):
        for branch in step.branches:
            model.remove_branch(branch.join, branch.operand, branch.skipped)
        model.remove_dead(name for branch in step.branches for name in branch.tensors)
    for b in step.blocks:
        stand_in: nn.Module
        if b.module:
            original = modules[b.module]
            stand_in = RemovedBranch(original, argument=b.argument, shortcut=b.shortcut, tail=b.tail, output=b.output)
            _replace(model, original, stand_in)
        for part in b.parts:
            original = modules[part.module]
            _replace(model, original, RemovedPart(original, argument=part.argument, output=part.output, zero=part.zero))


def _replace(model: nn.Module, original: nn.Module, stand_in: nn.Module) -> None:
    for holder, name in _holders(model, original):
        holder._modules[name] = stand_in


def _scale(tensor: torch.Tensor, edit: ScaleEdit) -> None:
    """Multiply positions of a tensor in place."""
    with torch.no_grad():
        if edit.positions is None:
            tensor.mul_(edit.factor)
        else:
            at = torch.tensor(edit.positions, dtype=torch.int64, device=tensor.device)
            tensor.index_copy_(edit.dim, at, tensor.index_select(edit.dim, at) * edit.factor)


def _holders(model: nn.Module, child: nn.Module) -> list[tuple[nn.Module, str]]:
    return [(m, name) for m in model.modules() for name, c in m._modules.items() if c is child]


def _places(model: nn.Module) -> dict[int, list[tuple[dict[str, Any], str]]]:
    """For each parameter and buffer every place that holds it (tied tensors have several)."""
    found: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        for holder in _registries(module):
            for name, tensor in holder.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append((holder, name))
    return found


def _registries(module: nn.Module) -> Iterator[dict[str, Any]]:
    yield module._parameters
    yield module._buffers


def _replacement(old: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    data = _cut(old.detach(), edit)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(data, requires_grad=old.requires_grad)
        new.__dict__.update({k: v for k, v in old.__dict__.items() if k not in new.__dict__})
        if old.grad is not None:
            new.grad = _cut(old.grad, edit)
        return new
    return data


def _cut(tensor: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    """A smaller copy in the same memory format."""
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    out = tensor
    if edit.grouped is not None:
        rows = set(edit.keep.get(0, range(edit.shape[0])))
        parts = []
        for start, stop, columns in edit.grouped:
            alive = torch.tensor([r for r in range(start, stop) if r in rows], dtype=torch.int64, device=tensor.device)
            parts.append(tensor.index_select(0, alive).index_select(1, torch.tensor(columns, dtype=torch.int64, device=tensor.device)))
        out = torch.cat(parts, 0)
    for dim, kept in edit.keep.items():
        if edit.grouped is not None and dim == 0:
            continue
        out = out.index_select(dim, torch.tensor(kept, dtype=torch.int64, device=tensor.device))
    out = out.clone()
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out.contiguous()
