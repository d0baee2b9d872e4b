"""From a traced model and a selection to edits: which positions of which tensors stay, and what follows from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from latprune.errors import InvalidArgumentError, SurgeryError
from latprune.graph import ModelGraph, Selection
from latprune.graph.surgery_plan import BranchCut, ModuleReplacement, PartReplacement, TailStep, TensorPlan, UnitsOfPlaces
from latprune.graph.trace import INPUT_WEIGHTS
from latprune.program.module import ProgramModule
from latprune.surgery.edits import AttributeEdit, BlockEdit, BranchEdit, EditStep, PartEdit, ScaleEdit, TensorEdit

__all__ = ["plan_step"]

IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def _masks(graph: ModelGraph, selection: Selection) -> dict[str, Mask]:
    """For each group which units stay.

    Raises:
        InvalidArgumentError: A group is unknown, or its units break the rules of a selection.
    """
    masks: dict[str, Mask] = {}
    for name in selection.kept:
        if name not in graph.groups:
            raise InvalidArgumentError(f"selection.kept names '{name}', which is no channel group of this model")
    for name, group in graph.groups.items():
        mask = np.ones(group.units, dtype=bool)
        if name in selection.kept:
            kept = np.asarray(selection.kept[name], dtype=np.int64)
            if kept.ndim != 1 or kept.size == 0 or (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= group.units:
                raise InvalidArgumentError(f"selection.kept['{name}'] must hold increasing unit indices from 0 to {group.units - 1}")
            mask[:] = False
            mask[kept] = True
            counts = mask.reshape(group.rows, group.columns).sum(axis=1)
            if (counts != counts[0]).any():
                raise InvalidArgumentError(f"selection.kept['{name}'] must keep the same number of units in each of the {group.rows} rows")
            if counts[0] < group.min_width:
                raise InvalidArgumentError(
                    f"selection.kept['{name}'] keeps {counts[0]} units in a row; at least {group.min_width} (min_width) are needed"
                )
        masks[name] = mask
    for block in selection.removed_blocks:
        if block not in graph.blocks:
            raise InvalidArgumentError(f"selection.removed_blocks names '{block}', which is no block of this model")
        if not graph.blocks[block].removable:
            raise InvalidArgumentError(f"block '{block}' cannot be removed: {graph.blocks[block].reason}")
    return masks


def _places(places: tuple[UnitsOfPlaces, ...], masks: Mapping[str, Mask]) -> Mask:
    """Which places stay: those whose units all stay."""
    keep: Mask | None = None
    for entry in places:
        here = masks[entry.group][entry.units] | (entry.units < 0)
        keep = here if keep is None else keep & here
    if keep is None:
        raise SurgeryError("a tensor dimension without units cannot be cut")
    return keep


def plan_step(model: nn.Module, graph: ModelGraph, selection: Selection) -> EditStep:
    """The edits that bring ``model`` to ``selection``.

    Raises:
        InvalidArgumentError: The selection does not fit the graph.
        SurgeryError: The model does not fit the graph.
    """
    if graph.program is not None and not isinstance(model, ProgramModule):
        raise SurgeryError("the graph is that of a captured program: prune graph.program, not the model that it was captured from")
    masks = _masks(graph, selection)
    removed = selection.removed_blocks
    gone = _gone(graph, removed)
    shapes = {n: tuple(t.shape) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    tensors: list[TensorEdit] = []
    new_shapes: dict[str, tuple[int, ...]] = {}
    grouped_counts: dict[str, int] = {}
    for name, tensor in graph.plan.tensors.items():
        if name not in shapes:
            raise SurgeryError(f"tensor '{name}' of the traced model does not exist in this one; trace the model that is to be pruned")
        if any(name == g or name.startswith(f"{g}.") for g in gone):
            continue
        edit = _tensor_edit(name, shapes[name], tensor, masks, grouped_counts)
        if edit is not None:
            tensors.append(edit)
            new_shapes[name] = _shape_after(edit)
    attributes = _layer_attributes(model, tensors, new_shapes, grouped_counts, graph.plan.aliases)
    attributes += _followed_attributes(model, graph, masks, attributes)
    outermost = [name for name in graph.blocks if name in removed and not set(graph.blocks[name].parents) & removed]
    blocks: list[BlockEdit] = []
    branches: list[BranchEdit] = []
    for name in outermost:
        removal = graph.plan.removals[name]
        if isinstance(removal, BranchCut):
            branches.append(
                BranchEdit(name=name, join=removal.join, operand=removal.operand, skipped=removal.skipped, tensors=removal.tensors)
            )
        else:
            blocks.append(_block_edit(name, removal))
    scales = tuple(s for s in _scales(graph, masks) if not any(s.name == g or s.name.startswith(f"{g}.") for g in gone))
    return EditStep(scales=scales, tensors=tuple(tensors), attributes=tuple(attributes), blocks=tuple(blocks), branches=tuple(branches))


def _gone(graph: ModelGraph, removed: frozenset[str]) -> set[str]:
    """Prefixes of tensors that go with removed blocks: the tensors themselves, by name."""
    return {name for name, blocks in graph.tensor_blocks.items() if removed & set(blocks)}


def _tensor_edit(
    name: str,
    shape: tuple[int, ...],
    plan: TensorPlan,
    masks: Mapping[str, Mask],
    grouped_counts: dict[str, int],
) -> TensorEdit | None:
    keep: dict[int, tuple[int, ...]] = {}
    grouped: tuple[tuple[int, int, tuple[int, ...]], ...] | None = None
    for dim, units in plan.dims.items():
        places = _places(units, masks)
        if places.ndim == 2:
            per_row = shape[0] // plan.groups
            alive = [k for k in range(plan.groups) if places[k].any()]
            grouped_counts[name] = len(alive)
            if not places.all():
                grouped = tuple((k * per_row, (k + 1) * per_row, tuple(np.flatnonzero(places[k]).tolist())) for k in alive)
            continue
        if places.shape[0] != shape[dim]:
            raise SurgeryError(f"tensor '{name}' has {shape[dim]} places along dimension {dim}; the traced model had {places.shape[0]}")
        if not places.any():
            raise SurgeryError(f"the selection would empty dimension {dim} of '{name}'")
        if not places.all():
            keep[dim] = tuple(np.flatnonzero(places).tolist())
    if not keep and grouped is None:
        return None
    return TensorEdit(name=name, shape=shape, keep=keep, grouped=grouped)


def _shape_after(edit: TensorEdit) -> tuple[int, ...]:
    shape = [len(edit.keep[d]) if d in edit.keep else n for d, n in enumerate(edit.shape)]
    if edit.grouped is not None:
        shape[1] = len(edit.grouped[0][2])
    return tuple(shape)


def _layer_attributes(
    model: nn.Module,
    tensors: list[TensorEdit],
    shapes: Mapping[str, tuple[int, ...]],
    grouped_counts: Mapping[str, int],
    aliases: Mapping[str, str],
) -> list[AttributeEdit]:
    """The sizes that PyTorch's own layers keep beside their weights."""
    edits: list[AttributeEdit] = []
    cut = {edit.name: edit.name for edit in tensors}
    cut |= {alias: name for alias, name in aliases.items() if name in cut}
    for place, name_of_tensor in cut.items():
        path, _, leaf = place.rpartition(".")
        module = model.get_submodule(path)
        after = shapes[name_of_tensor]
        wanted: dict[str, int | tuple[int, ...]] = {}
        if isinstance(module, nn.modules.conv._ConvNd) and leaf == "weight":
            groups = module.groups
            if name_of_tensor in grouped_counts:
                groups = grouped_counts[name_of_tensor]
            elif module.groups == module.in_channels and module.groups > 1:
                groups = after[0] * module.in_channels // module.out_channels
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


def _followed_attributes(model: nn.Module, graph: ModelGraph, masks: Mapping[str, Mask], known: list[AttributeEdit]) -> list[AttributeEdit]:
    """Amounts of zero channels, and attributes that the traced run showed to feed sizes (``num_heads``, ``head_dim``, split sizes, ...)."""
    widths = {name: int(mask.sum()) // graph.groups[name].rows for name, mask in masks.items()}
    wanted = {(p.module, p.attribute): int(_places(p.places, masks).sum()) for p in graph.plan.paddings}
    wanted |= {(f.module, f.attribute): f.axis.size(widths) for f in graph.plan.attributes}
    done = {(e.module, e.name) for e in known}
    before: dict[tuple[str, str], int | tuple[int, ...]] = {}
    after: dict[tuple[str, str], int | tuple[int, ...]] = {}
    for (path, entry), size in wanted.items():
        name, _, index = entry.rstrip("]").partition("[")
        value = getattr(model.get_submodule(path), name)
        if not index:
            before[path, name], after[path, name] = int(value), size
            continue
        sizes = list(after.get((path, name), value))
        sizes[int(index)] = size
        before[path, name], after[path, name] = tuple(int(v) for v in value), tuple(sizes)
    return [
        AttributeEdit(module=key[0], name=key[1], before=before[key], after=after[key])
        for key in after
        if key not in done and before[key] != after[key]
    ]


def _scales(graph: ModelGraph, masks: Mapping[str, Mask]) -> list[ScaleEdit]:
    """Factors that keep a scale which follows a size (``head_dim ** -0.5``) as it was: ``(dense / pruned) ** exponent``."""
    dense = graph.dense_widths()
    widths = {name: int(mask.sum()) // graph.groups[name].rows for name, mask in masks.items()}
    edits = []
    for use in graph.plan.scales:
        factor = (use.axis.size(dense) / use.axis.size(widths)) ** use.exponent
        if factor != 1.0:
            for t in use.targets:
                positions = None if t.positions is None else tuple(t.positions.tolist())
                edits.append(ScaleEdit(name=t.tensor, dim=t.dim, positions=positions, factor=factor))
    return edits


def _block_edit(name: str, removal: ModuleReplacement | tuple[PartReplacement, ...]) -> BlockEdit:
    if isinstance(removal, tuple):
        parts = tuple(PartEdit(module=p.module, argument=p.argument, output=p.output, zero=p.zero) for p in removal)
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
