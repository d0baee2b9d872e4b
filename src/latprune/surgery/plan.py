"""From a traced dense model and selections of it to edits: which positions of which tensors stay, and what follows from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from latprune.errors import SurgeryError
from latprune.graph import ModelGraph, Selection
from latprune.graph.attribute_paths import read_attribute
from latprune.graph.captured import CapturedNetwork
from latprune.graph.folding import folds_of
from latprune.graph.surgery_plan import BranchCut, ModuleReplacement, PartReplacement, ScaleTarget, TailStep
from latprune.graph.trace import INPUT_WEIGHTS
from latprune.surgery.edits import AttributeEdit, BlockEdit, BranchEdit, EditStep, PartEdit, ScaleEdit, TensorEdit
from latprune.surgery.kept import Kept, TensorPlaces, kept_of, nested, places_of
from latprune.surgery.removed import RemovedBranch
from latprune.surgery.untouched import untouched_edits

__all__ = ["plan_step", "scale_factors"]


def plan_step(model: nn.Module, graph: ModelGraph, selection: Selection, since: Selection | None = None) -> EditStep:
    """The edits that bring ``model``, which was cut to ``since``, to ``selection``.

    Both selections are of the dense graph; the edits are of the model as it is now.

    Args:
        model: The dense model, or what earlier cuts left of it.
        graph: Graph of the dense model.
        selection: What is to stay.
        since: What earlier cuts left; None: the model is dense.

    Raises:
        InvalidArgumentError: A selection does not fit the graph, or ``selection`` brings back what ``since`` removed.
        SurgeryError: The model does not fit the graph.
    """
    if graph.program is not None and not isinstance(model, CapturedNetwork):
        raise SurgeryError("the graph is that of a captured program: prune graph.program, not the model that it was captured from")
    if graph.folded is not None and folds_of(model):
        raise SurgeryError("the graph is that of a copy with plain weights: prune graph.folded, not the model that it was made of")
    before = kept_of(graph, since)
    after = nested(before, kept_of(graph, selection))
    cut_before = before.cut
    shapes = {n: tuple(t.shape) for n, t in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]}
    tensors: list[TensorEdit] = []
    new_sizes: dict[str, tuple[tuple[int, ...], int | None]] = {}
    for name in graph.plan.tensors:
        if name in before.gone:
            continue
        now = before.names[name][0]
        if now not in shapes:
            raise SurgeryError(f"tensor '{now}' of the traced model does not exist in this one; trace the model that is to be pruned")
        if name in after.gone:
            continue
        left = after.places(name)
        edit = _tensor_edit(now, shapes[now], before.places(name), left, cut_before=cut_before)
        if edit is not None:
            tensors.append(edit)
            shape = _shape_after(edit)
            groups = len(left.groups_left()) if left.grouped is not None else None
            new_sizes |= dict.fromkeys(after.names[name], (shape, groups))
    attributes = _layer_attributes(model, new_sizes, before)
    attributes += _followed_attributes(model, graph, before, after, attributes)
    further, stale = untouched_edits(graph, before, after, lambda path, name: _attribute(_module(model, path, before), path, name, before))
    attributes += further
    attributes += _attention_attributes(model, attributes)
    blocks, branches = _removals(model, graph, before, after)
    return EditStep(
        scales=tuple(_scales(graph, before, after)),
        tensors=tuple(tensors),
        attributes=_merged(attributes),
        blocks=tuple(blocks),
        branches=tuple(branches),
        stale=stale,
    )


def _merged(edits: list[AttributeEdit]) -> tuple[AttributeEdit, ...]:
    """One edit for each attribute: entries of a list may follow for different reasons."""
    merged: dict[tuple[str, str], AttributeEdit] = {}
    for edit in edits:
        known = merged.setdefault((edit.module, edit.name), edit)
        if known is not edit:
            assert isinstance(known.after, tuple) and isinstance(known.before, tuple) and isinstance(edit.after, tuple)
            entries = zip(known.before, known.after, edit.after, strict=True)
            after = tuple(new if new != before else first for before, first, new in entries)
            merged[edit.module, edit.name] = replace(known, after=after)
    return tuple(merged.values())


def _tensor_edit(name: str, shape: tuple[int, ...], before: TensorPlaces, after: TensorPlaces, *, cut_before: bool) -> TensorEdit | None:
    """The slices of one tensor: positions among the places that were there before."""
    keep: dict[int, tuple[int, ...]] = {}
    for dim, places in after.dims.items():
        there = before.dims[dim]
        _require_size(name, shape, dim, int(there.sum()), cut_before)
        left = places[there]
        if not left.any():
            raise SurgeryError(f"the selection would empty dimension {dim} of '{name}'")
        if not left.all():
            keep[dim] = tuple(np.flatnonzero(left).tolist())
    grouped: tuple[tuple[int, int, tuple[int, ...]], ...] | None = None
    if before.grouped is not None and after.grouped is not None:
        _require_size(name, shape, 1, int(before.grouped[before.groups_left()[0]].sum()), cut_before)
        if (before.grouped != after.grouped).any():
            grouped = tuple(
                (*before.rows_left(k), tuple(np.flatnonzero(after.grouped[k][before.grouped[k]]).tolist())) for k in after.groups_left()
            )
    if not keep and grouped is None:
        return None
    return TensorEdit(name=name, shape=shape, keep=keep, grouped=grouped)


def _require_size(name: str, shape: tuple[int, ...], dim: int, expected: int, cut_before: bool) -> None:
    if shape[dim] != expected:
        rule = "the selection that it was cut to (since) leaves" if cut_before else "the traced model had"
        raise SurgeryError(f"tensor '{name}' has {shape[dim]} places along dimension {dim}; {rule} {expected}")


def _shape_after(edit: TensorEdit) -> tuple[int, ...]:
    shape = [len(edit.keep[d]) if d in edit.keep else n for d, n in enumerate(edit.shape)]
    if edit.grouped is not None:
        shape[1] = len(edit.grouped[0][2])
    return tuple(shape)


def _module(model: nn.Module, path: str, earlier: Kept) -> nn.Module | None:
    """The module at a path; None where an earlier cut removed it with its block."""
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        if _went(path, earlier):
            return None
        raise SurgeryError(f"this model has no module '{path}', which the traced one had; trace the model that is to be pruned") from error
    return None if isinstance(module, RemovedBranch) else module


def _went(path: str, earlier: Kept) -> bool:
    """Whether a module lies in what earlier cuts replaced."""
    replaced: list[str] = []
    for name in earlier.removed_blocks:
        removal = earlier.graph.plan.removals[name]
        if isinstance(removal, ModuleReplacement):
            replaced.append(removal.module)
        elif not isinstance(removal, BranchCut):
            replaced += [part.module for part in removal]
    return any(path == place or path.startswith(f"{place}.") for place in replaced)


def _layer_attributes(model: nn.Module, sizes: Mapping[str, tuple[tuple[int, ...], int | None]], earlier: Kept) -> list[AttributeEdit]:
    """The sizes that PyTorch's own layers keep beside their weights.

    Args:
        model: The model as it is.
        sizes: Each name that a tensor which is cut keeps -> its shape after, and the groups of filters that are left where it has some.
        earlier: What earlier cuts left.
    """
    edits: list[AttributeEdit] = []
    for place, (after, groups_left) in sizes.items():
        path, _, leaf = place.rpartition(".")
        module = _module(model, path, earlier)
        wanted: dict[str, int | tuple[int, ...]] = {}
        if isinstance(module, nn.modules.conv._ConvNd) and leaf == "weight":
            groups = module.groups
            if groups_left is not None:
                groups = groups_left
            elif module.groups == module.in_channels and module.groups > 1:
                groups = after[0] if module.transposed else after[0] * module.in_channels // module.out_channels
            first, second = after[0], after[1] * groups
            wanted = {"groups": groups}
            wanted |= (
                {"in_channels": first, "out_channels": second} if module.transposed else {"out_channels": first, "in_channels": second}
            )
        elif isinstance(module, nn.Linear) and leaf == "weight":
            wanted = {"out_features": after[0], "in_features": after[1]}
        elif isinstance(module, (nn.modules.batchnorm._NormBase)) and leaf in ("weight", "running_mean"):
            wanted = {"num_features": after[0]}
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and leaf == "weight":
            wanted = {"normalized_shape": tuple(after)}
        elif isinstance(module, nn.GroupNorm) and leaf == "weight":
            wanted = {"num_channels": after[0]}
            if module.num_groups == module.num_channels:
                wanted["num_groups"] = after[0]
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and leaf == "weight":
            wanted = {"num_embeddings": after[0], "embedding_dim": after[1]}
        elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and leaf in INPUT_WEIGHTS:
            wanted = {"input_size": after[1]}
        elif isinstance(module, nn.PReLU) and leaf == "weight":
            wanted = {"num_parameters": after[0]}
        for name, value in wanted.items():
            before: Any = getattr(module, name)
            before = tuple(before) if isinstance(before, (tuple, list)) else int(before)
            if before != value and not any(e.module == path and e.name == name for e in edits):
                edits.append(AttributeEdit(module=path, name=name, before=before, after=value))
    return edits


def _attention_attributes(model: nn.Module, known: list[AttributeEdit]) -> list[AttributeEdit]:
    """The widths of keys and values that PyTorch's attention keeps beside its own, where they are one."""
    edits = []
    for edit in known:
        module = model.get_submodule(edit.module) if edit.name == "embed_dim" else None
        if isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim:
            names = [name for name in ("kdim", "vdim") if getattr(module, name) == edit.before]
            edits += [replace(edit, name=name) for name in names]
    return edits


def _followed_attributes(model: nn.Module, graph: ModelGraph, before: Kept, after: Kept, known: list[AttributeEdit]) -> list[AttributeEdit]:
    """Amounts of zero channels, and attributes that the traced run showed to feed sizes (``num_heads``, ``head_dim``, split sizes, ...)."""
    wanted = {(p.module, p.attribute): int(places_of(p.places, after.units).sum()) for p in graph.plan.paddings}
    wanted |= {(f.module, f.attribute): f.axis.size(after.widths) for f in graph.plan.attributes}
    done = {(e.module, e.name) for e in known}
    now: dict[tuple[str, str], int | tuple[int, ...]] = {}
    then: dict[tuple[str, str], int | tuple[int, ...]] = {}
    for (path, entry), size in wanted.items():
        name, _, index = entry.rstrip("]").partition("[")
        value = _attribute(_module(model, path, before), path, name, before)
        if value is None:
            continue
        if not index:
            now[path, name], then[path, name] = int(value), size
            continue
        sizes: list[int] = list(then.get((path, name), value))
        sizes[int(index)] = size
        now[path, name], then[path, name] = tuple(int(v) for v in value), tuple(sizes)
    return [
        AttributeEdit(module=key[0], name=key[1], before=now[key], after=then[key])
        for key in then
        if key not in done and now[key] != then[key]
    ]


def _attribute(module: nn.Module | None, path: str, name: str, before: Kept) -> Any:
    """An attribute as it is now; None where it went with a removed block (a stand-in keeps the plain ones)."""
    if module is None:
        return None
    try:
        return read_attribute(module, name)
    except AttributeError as error:
        if _went(path, before):
            return None
        raise SurgeryError(
            f"module '{path}' has no attribute '{name}', which the traced model had; trace the model that is to be pruned"
        ) from error


def scale_factors(graph: ModelGraph, before: Kept, after: Kept) -> list[tuple[ScaleTarget, float]]:
    """Factors that keep a scale which follows a size (``head_dim ** -0.5``) as it was: ``(size before / size after) ** exponent``.

    Returns:
        Each target (a part of a parameter, in dense positions) with its factor.
    """
    found = []
    for use in graph.plan.scales:
        factor = (use.axis.size(before.widths) / use.axis.size(after.widths)) ** use.exponent
        if factor != 1.0:
            found += [(target, factor) for target in use.targets if target.tensor not in after.gone]
    return found


def _scales(graph: ModelGraph, before: Kept, after: Kept) -> list[ScaleEdit]:
    edits = []
    for target, factor in scale_factors(graph, before, after):
        positions: tuple[int, ...] | None = None
        if target.positions is not None:
            there = before.places(target.tensor).dims.get(target.dim)
            at = target.positions if there is None else (np.cumsum(there) - 1)[target.positions[there[target.positions]]]
            positions = tuple(at.tolist())
        edits.append(ScaleEdit(name=before.names[target.tensor][0], dim=target.dim, positions=positions, factor=factor))
    return edits


def _removals(model: nn.Module, graph: ModelGraph, before: Kept, after: Kept) -> tuple[list[BlockEdit], list[BranchEdit]]:
    """The outermost of the blocks that go now, from a class and from a program; what lies in a block that is gone already is gone."""
    removed = after.removed_blocks
    new = [
        name
        for name in graph.blocks
        if name in removed and name not in before.removed_blocks and removed.isdisjoint(graph.blocks[name].parents)
    ]
    blocks: list[BlockEdit] = []
    branches: list[BranchEdit] = []
    present = {n for named in (model.named_parameters, model.named_buffers) for n, _ in named(remove_duplicate=False)}
    for name in new:
        removal = graph.plan.removals[name]
        if not isinstance(removal, BranchCut):
            blocks.append(_block_edit(name, removal))
            continue
        tensors = tuple(t for t in removal.tensors if t in present)
        branches.append(BranchEdit(name=name, join=removal.join, operand=removal.operand, skipped=removal.skipped, tensors=tensors))
    return blocks, branches


def _block_edit(name: str, removal: ModuleReplacement | tuple[PartReplacement, ...]) -> BlockEdit:
    if isinstance(removal, tuple):
        parts = tuple(PartEdit(module=p.module, argument=p.argument, output=p.output, passed=p.passed, zero=p.zero) for p in removal)
        return BlockEdit(name=name, parts=parts)
    return BlockEdit(
        name=name,
        module=removal.module,
        argument=removal.argument,
        output=removal.output,
        shortcut=removal.shortcut,
        tail=tuple(_tail_edit(step) for step in removal.tail),
    )


def _tail_edit(step: TailStep) -> dict[str, Any]:
    return {"module": step.module} if step.module else {"op": step.op, "args": list(step.args)}
