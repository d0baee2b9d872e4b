"""Carrying edits out, in place, on a model: the one place where tensors are cut and modules replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from latprune.errors import CheckpointError, InvalidArgumentError
from latprune.graph import ModelGraph, Selection
from latprune.graph.attribute_paths import own_configurations, read_attribute, write_attribute
from latprune.graph.captured import CapturedNetwork
from latprune.graph.conditions import cut_unfolded
from latprune.graph.folding import Fold, fold_in_place, norms_in_place
from latprune.graph.wrappers import unwrapped
from latprune.surgery.edits import ArchitectureEdits, EditStep, ScaleEdit, TensorEdit
from latprune.surgery.optimizers import ParameterChange, carry_over, check_optimizers, optimizers_of
from latprune.surgery.plan import plan_step
from latprune.surgery.removed import RemovedBranch, RemovedPart
from latprune.surgery.slicing import cut_tensor, scale_tensor
from latprune.surgery.stale import MARK, mark_removed

__all__ = ["prune", "replay"]


def prune(
    model: nn.Module,
    graph: ModelGraph,
    selection: Selection,
    *,
    since: Selection | None = None,
    optimizers: Optimizer | Sequence[Optimizer] = (),
    averages: nn.Module | Sequence[nn.Module] = (),
) -> ArchitectureEdits:
    """Remove channels and blocks from ``model``, in place and physically.

    Parameters are replaced by smaller ones (same dtype, device, memory format, ``requires_grad``; a gradient that is there is cut
    alike). Optimizers that are handed over go on with the new parameters, with what they remember of the places that stay; one that is not
    must be built anew, and says so at its next step. Tied parameters stay tied. The model's training flags stay.

    Args:
        model: The model that ``graph`` was traced from, or what earlier cuts left of it.
        graph: The graph of the dense model.
        selection: Units of the dense model to keep and blocks to remove.
        since: The selection that the model was cut to before; None: it is dense.
        optimizers: Optimizers of the model, changed in place: moments and momentum are cut with their parameter, groups keep their order,
            options and schedulers, and the parameters of removed blocks leave their group. Where a cut multiplies weights to keep a scale,
            what PyTorch's optimizers remember of their gradients follows.
        averages: A running average of the model (:class:`torch.optim.swa_utils.AveragedModel`, or a module of the same class) or several,
            cut alike.

    Returns:
        The edits from the model as it was to what it is now, for :func:`replay` and for saving. Those of several cuts follow each other
        (:meth:`ArchitectureEdits.then`).

    Raises:
        InvalidArgumentError: The selection does not fit the graph, or brings back what is gone; an optimizer or average is not that of the
            model, or remembers what cannot be cut. Nothing is changed then.
        SurgeryError: The model does not fit the graph.

    Example:
        >>> import numpy as np
        >>> from latprune.graph import trace
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> graph = trace(model, torch.randn(1, 4))
        >>> edits = prune(model, graph, Selection(kept={"0": np.arange(0, 8, 2)}))
        >>> model
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    model = unwrapped(model)
    step = plan_step(model, graph, selection, since)
    handed = optimizers_of(optimizers)
    check_optimizers(model, handed, step)
    several = [averages] if isinstance(averages, nn.Module) else averages
    copies = [_averaged(model, average, number, step) for number, average in enumerate(several)]
    changes = _apply(model, step)
    for copy in copies:
        _apply(copy, step)
    for optimizer in handed:
        carry_over(optimizer, changes)
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


def _averaged(model: nn.Module, average: nn.Module, number: int, step: EditStep) -> nn.Module:
    """The module of a running average, which must have the model's architecture of now."""
    if not isinstance(average, nn.Module):
        raise InvalidArgumentError(f"averages[{number}] (={type(average).__name__}) must be a module, a running average of the model")
    inner: nn.Module = average
    while isinstance(inner, AveragedModel):
        inner = inner.module
    if inner is model:
        raise InvalidArgumentError(f"averages[{number}] is the model itself; an average is a copy of its own")
    try:
        _check(inner, step)
    except CheckpointError as error:
        raise InvalidArgumentError(f"averages[{number}] is not of the model's architecture: {error}") from error
    return inner


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _check(model: nn.Module, step: EditStep) -> None:
    for path in [f.module for f in step.folds] + [n.module for n in step.norms]:
        if path not in dict(model.named_modules()):
            raise CheckpointError(f"the edits are of another architecture: this model has no module '{path}'")
    tensors = _tensors(model)
    for name in [s.name for s in step.scales] + [t.name for t in step.tensors]:
        if name not in tensors:
            raise CheckpointError(f"the edits are of another architecture: this model has no tensor '{name}'")
    for t in step.tensors:
        shape = tuple(tensors[t.name].shape)
        if shape != t.shape:
            raise CheckpointError(f"the edits are of another architecture: tensor '{t.name}' has shape {shape}, the edits expect {t.shape}")
    if step.branches and not isinstance(model, CapturedNetwork):
        raise CheckpointError(f"the edits are those of a captured program, and this is a {type(model).__name__}: capture it first")
    modules = dict(model.named_modules(remove_duplicate=False))
    for a in step.attributes:
        try:
            found: Any = read_attribute(modules[a.module], a.name)
        except (KeyError, AttributeError) as error:
            raise CheckpointError(f"the edits are of another architecture: module '{a.module}' has no attribute '{a.name}'") from error
        found = tuple(found) if isinstance(found, (tuple, list)) else found
        if found != a.before:
            raise CheckpointError(f"the edits are of another architecture: '{a.module}.{a.name}' is {found}, the edits expect {a.before}")
    for b in step.blocks:
        for path in [b.module] if b.module else [p.module for p in b.parts]:
            if path not in modules:
                raise CheckpointError(f"the edits are of another architecture: this model has no module '{path}'")


def _apply(model: nn.Module, step: EditStep) -> list[ParameterChange]:
    """Carry the step out; returns what became of the parameters that it touched."""
    fold_in_place(model, [Fold(module=f.module, tensor=f.tensor, kind="") for f in step.folds])
    with cut_unfolded(model):
        changes = _carry_out(model, step)
    norms_in_place(model, [Fold(module=n.module, tensor=n.tensor, kind=n.kind, dim=n.dim) for n in step.norms])
    return changes


def _carry_out(model: nn.Module, step: EditStep) -> list[ParameterChange]:
    tensors = _tensors(model)
    parameters = dict(model.named_parameters())
    places = _places(model)
    scales: dict[int, list[ScaleEdit]] = {}
    for scale in step.scales:
        tensor = tensors[scale.name]
        scale_tensor(tensor, scale)
        if tensor.grad is not None:
            scale_tensor(tensor.grad, scale, -1)
        scales.setdefault(id(tensor), []).append(scale)
    sliced: dict[int, tuple[torch.Tensor, TensorEdit]] = {}
    for edit in step.tensors:
        old = tensors[edit.name]
        new = _replacement(old, edit)
        sliced[id(old)] = (new, edit)
        for holder, name in places[id(old)]:
            holder[name] = new
    modules = dict(model.named_modules(remove_duplicate=False))
    for module in modules.values():
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # recurrent layers hold their weights a second time
    own_configurations(model, [(a.module, a.name.partition(".")[0]) for a in step.attributes if "." in a.name])
    for a in step.attributes:
        module = modules[a.module]
        if isinstance(module, RemovedPart):
            module.was[a.name] = a.after
        else:
            write_attribute(module, a.name, a.after)
    if isinstance(model, CapturedNetwork):
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
            stand_in = RemovedPart(original, argument=part.argument, output=part.output, passed=part.passed, zero=part.zero)
            _replace(model, original, stand_in)
    return _changes(model, parameters, sliced, scales)


def _changes(
    model: nn.Module,
    before: Mapping[str, nn.Parameter],
    sliced: Mapping[int, tuple[torch.Tensor, TensorEdit]],
    scales: Mapping[int, list[ScaleEdit]],
) -> list[ParameterChange]:
    """What became of the parameters: those that were sliced, scaled or are gone. What is no longer part of the model is marked."""
    left = {id(parameter): parameter for parameter in model.parameters()}
    changes = []
    for name, old in before.items():
        tensor, edit = sliced.get(id(old), (old, None))
        new = left.get(id(tensor))
        if new is not old:
            mark_removed(old, name)
        if new is not old or id(old) in scales:
            changes.append(ParameterChange(name=name, old=old, new=new, edit=edit, scales=tuple(scales.get(id(old), ()))))
    return changes


def _replace(model: nn.Module, original: nn.Module, stand_in: nn.Module) -> None:
    for holder, key in _places(model)[id(original)]:
        holder[key] = stand_in


def _places(model: nn.Module) -> dict[int, list[tuple[Any, Any]]]:
    """For each parameter, buffer and module every place ``(holder, key)`` that has it: tied ones have several, and a model may keep some in
    plain attributes, lists and dictionaries beside.
    """
    found: dict[int, list[tuple[Any, Any]]] = {}
    for module in model.modules():
        for holder in _containers(module):
            for key, value in enumerate(holder) if isinstance(holder, list) else holder.items():
                if isinstance(value, (torch.Tensor, nn.Module)):
                    found.setdefault(id(value), []).append((holder, key))
    return found


def _containers(module: nn.Module) -> Iterator[dict[Any, Any] | list[Any]]:
    yield module._parameters
    yield module._buffers
    yield module._modules
    if isinstance(module, torch.jit.ScriptModule):
        return
    yield module.__dict__
    for name, value in module.__dict__.items():
        if not name.startswith("_") and isinstance(value, (dict, list)):
            yield value


def _replacement(old: torch.Tensor, edit: TensorEdit) -> torch.Tensor:
    data = cut_tensor(old.detach(), edit)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(data, requires_grad=old.requires_grad)
        new.__dict__.update({k: v for k, v in old.__dict__.items() if k not in new.__dict__ and k != MARK})
        if old.grad is not None:
            new.grad = cut_tensor(old.grad, edit)
        return new
    return data
