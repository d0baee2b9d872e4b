"""From a recording and its grouping to a :class:`ModelGraph`: names, members, axes, calls and the plan for surgery."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from latprune.graph.axes import Axes
from latprune.graph.blocks import reaching_outputs
from latprune.graph.captured import CapturedNetwork
from latprune.graph.carried import carried_on
from latprune.graph.class_units import ClassUnits
from latprune.graph.grouping import Grouping
from latprune.graph.memberships import RawGroup
from latprune.graph.model_graph import ModelGraph
from latprune.graph.norms_after import norms_after
from latprune.graph.range_groups import RangeGroups
from latprune.graph.realise import Branch
from latprune.graph.recording import KernelDraft, Recording
from latprune.graph.sizes import Settled
from latprune.graph.surgery_plan import (
    BranchCut,
    FollowingAttribute,
    ModuleReplacement,
    PaddingAmount,
    ScaledWeights,
    SurgeryPlan,
    TensorPlan,
    UnitsOfPlaces,
)
from latprune.graph.types import Block, Call, ChannelGroup, KeptWhole, Kernel, Member, Role, WidthAxis
from latprune.graph.untouched import untouched_attributes

__all__ = ["build"]

IntArray = npt.NDArray[np.int64]
_ROLES = {r.value: r for r in Role}


class _Builder(Axes):
    def __init__(self, recording: Recording, grouping: Grouping, branches: list[Branch]) -> None:
        super().__init__(recording, grouping)
        self.branches = branches
        self.leaves = {path for path, m in recording.modules if not m._modules}
        self.node_blocks = self._node_blocks()
        self.kernel_names = self._kernel_names()
        self.users = self._users()
        self.norms = norms_after(recording, self.kernel_names, self.node_blocks)
        self.along_whole = [RangeGroups(recording.space.ranges, group_of[grouping.roots]) for group_of in self._all_groups()]

    # -- blocks and kernels ----------------------------------------------------------------------------------------

    def _node_blocks(self) -> dict[int, tuple[str, ...]]:
        inside: dict[int, list[tuple[int, str]]] = {}
        for b in self.branches:
            for n in b.nodes | {b.join} | b.dropped_tail:
                inside.setdefault(n, []).append((-len(b.nodes), b.name))
        removable = {b.name for b in self.branches}
        return {n: tuple(name for _, name in sorted(found) if name in removable) for n, found in inside.items()}

    def _kernel_names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        counts: dict[str, int] = {}
        for node in self.recording.nodes:
            draft = node.kernel
            if draft is None:
                continue
            if draft.weight is not None:
                owner, _, leaf = draft.weight.rpartition(".")
                base = owner if leaf == "weight" and owner else draft.weight
            elif node.module in self.leaves and node.module:
                base = node.module
            else:
                base = f"{node.module}/{node.op.split('.')[1].rstrip('_')}"
            counts[base] = counts.get(base, 0) + 1
            names[node.index] = base if counts[base] == 1 else f"{base}#{counts[base]}"
        return names

    def _users(self) -> dict[str, list[int]]:
        """For each parameter or buffer the computing nodes that read it (views of it included)."""
        users: dict[str, list[int]] = {}
        for node in self.recording.nodes:
            for info in node.inputs:
                if info.name is not None and (node.kernel is not None or any(i.dynamic for i in node.inputs)):
                    users.setdefault(info.name, []).append(node.index)
        return users

    def _tensor_blocks(self, name: str) -> tuple[str, ...]:
        users = self.users.get(name)
        if not users:
            return ()
        chains = [self.node_blocks.get(n, ()) for n in users]
        common = [b for b in chains[0] if all(b in c for c in chains)]
        return tuple(common)

    def blocks_that_take(self, name: str) -> tuple[str, ...]:
        """Blocks whose removal takes a name of a tensor away with a replaced module."""
        cut = tuple(b.name for b in self.branches if isinstance(b.removal, BranchCut) and name in b.removal.tensors)
        return cut + tuple(block for block, taken, stays in self._replaced if name.startswith(taken) and not name.startswith(stays))

    @cached_property
    def _replaced(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        """Per block the prefixes of the tensors that go with a replaced module, and of those among them that stay."""
        modules = dict(self.recording.modules)
        paths: dict[int, list[str]] = {}
        for path, module in modules[""].named_modules(remove_duplicate=False):
            paths.setdefault(id(module), []).append(path)
        found: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        for b in self.branches:
            r = b.removal
            if isinstance(r, ModuleReplacement):
                taken = [f"{path}." for path in paths[id(modules[r.module])]]
                kept = [*r.shortcut, *(t.module for t in r.tail if t.module)]
                found.append((b.name, tuple(taken), tuple(f"{start}{path}." for start in taken for path in kept)))
            elif isinstance(r, tuple):
                found.append((b.name, tuple(f"{path}." for p in r for path in paths[id(modules[p.module])]), ()))
        return found

    # -- groups ----------------------------------------------------------------------------------------------------

    def _first_producer(self) -> dict[int, tuple[int, str]]:
        """For each group the node (and kernel) that produces its channels first."""
        first: dict[int, tuple[int, str]] = {}
        for k, r in enumerate(self.recording.space.ranges):
            if r.kind != "tensor":
                continue
            roles = self.recording.roles.get((r.tensor, r.dim), [])
            producing = [n for role, n in roles if role in ("producer", "depthwise")]
            if not producing:
                producing = [n for _, n in roles] or self.users.get(r.tensor, [])[:1]
                if not producing:
                    continue
                rank = 1 << 40
            else:
                rank = 0
            node = min(producing)
            entry = (rank + node, self.kernel_names.get(node, r.tensor))
            for along in self.along_whole:
                for g, _ in along.counts(k):
                    if g not in first or entry < first[g]:
                        first[g] = entry
        return first

    def _all_groups(self) -> list[IntArray]:
        """Group indices of each class, the ones that stay whole included."""
        whole = np.full(self.grouping.roots.size, -1, dtype=np.int64)
        for k, g in enumerate(self.grouping.groups):
            whole[g.cells.reshape(-1)] = k
        return [whole, *self.grouping.every[1:]]

    def name_groups(self) -> list[int]:
        """Name every group and return the prunable ones in execution order."""
        first = self._first_producer()
        order = sorted(first, key=lambda g: (first[g][0] & ((1 << 40) - 1), self.grouping.groups[g].level, g))
        taken: dict[str, int] = {}
        for g in order:
            base = first[g][1]
            if self.grouping.groups[g].level > 0:
                base = f"{base}:{self._coarse_kind(g)}"
            taken[base] = taken.get(base, 0) + 1
            self.group_names[g] = base if taken[base] == 1 else f"{base}#{taken[base]}"
        return [g for g in order if not self.grouping.groups[g].reason]

    def _coarse_kind(self, g: int) -> str:
        labels = self.grouping.groups[g].cells.reshape(-1)
        names = {self._range_name(int(c)) for c in labels[:1]}
        return "groups" if any("convolution" in n for n in names) else "heads"

    def _range_name(self, label: int) -> str:
        for r in self.recording.space.ranges:
            if r.start <= label < r.stop:
                return r.tensor
        return ""

    def _kind(self, group: RawGroup) -> str:
        if group.level > 0:
            return "heads"
        return "channels" if group.cells.shape[0] == 1 else "columns"

    def members(self, prunable: set[int]) -> dict[int, list[Member]]:
        """Tensor dimensions that carry each prunable group."""
        found: dict[int, list[Member]] = {g: [] for g in prunable}
        roots = self.grouping.roots
        for k, r in enumerate(self.recording.space.ranges):
            if r.kind != "tensor":
                continue
            if r.tensor in self.recording.grouped and r.dim == 1:
                self._grouped_members(r.tensor, found)
                continue
            for (group_of, unit_of), along in zip(self.grouping.slots, self.along, strict=True):
                for g, count in along.counts(k):
                    if g in prunable:
                        classes = roots[r.start : r.stop]
                        whole = count == classes.size
                        at = np.arange(count) if whole else np.flatnonzero(group_of[classes] == g)
                        found[g].append(self._member(r.tensor, r.dim, at, unit_of[classes if whole else classes[at]]))
        return found

    def _member(self, tensor: str, dim: int, positions: IntArray, units: IntArray, within: tuple[int, int] | None = None) -> Member:
        roles = self.recording.roles.get((tensor, dim), [])
        users = self.users.get(tensor, [])
        node = roles[0][1] if roles else next((n for n in users if n in self.kernel_names), users[0] if users else -1)
        kernel = self.kernel_names.get(node, "")
        role = _ROLES[roles[0][0]] if roles else Role.OTHER
        return Member(
            tensor=tensor,
            dim=dim,
            positions=positions,
            units=units,
            role=role,
            kernel=kernel,
            blocks=self._tensor_blocks(tensor),
            within=within,
            norms=self._norms_of(kernel, positions) if role in (Role.PRODUCER, Role.BIAS) else None,
        )

    def _norms_of(self, kernel: str, positions: IntArray) -> tuple[str, ...]:
        """The norms that alone read these channels of a kernel; none where something else reads one of them."""
        after = self.norms.get(kernel, ())
        if len(set(after)) == 1:
            return (after[0],)
        # A transposed convolution in groups numbers the channels of each group from 0.
        found = {after[k] if k < len(after) else "" for k in positions.tolist()}
        return () if "" in found else tuple(sorted(found))

    def _grouped_members(self, tensor: str, found: dict[int, list[Member]]) -> None:
        rows = self.grouping.roots[self.recording.grouped[tensor].numpy()]
        per_out = self.recording.tensor_shapes[tensor][0] // rows.shape[0]
        for k, classes in enumerate(rows):
            for slot, (group_of, unit_of) in enumerate(self.grouping.slots):
                here, units = group_of[classes], unit_of[classes]
                for g in np.unique(here).tolist():
                    if g not in found:  # -1 among them
                        continue
                    at = np.flatnonzero(here == g)
                    if slot and at.size == here.size and (units == units[0]).all():
                        continue  # a coarse unit that the whole group of filters goes with: it has no input columns to lose
                    found[g].append(self._member(tensor, 1, at, units[at], (k * per_out, (k + 1) * per_out)))

    # -- kernels -------------------------------------------------------------------------------------------------

    def kernels(self) -> dict[str, Kernel]:
        """All kernels in execution order."""
        result: dict[str, Kernel] = {}
        alive = reaching_outputs(self.recording)
        for node in self.recording.nodes:
            draft = node.kernel
            if draft is None:
                continue
            name = self.kernel_names[node.index]
            axes = self._kernel_axes(draft)
            owner = draft.weight.rpartition(".")[0] if draft.weight else node.module
            result[name] = Kernel(
                name=name,
                kind=draft.kind,
                module=owner,
                caller=node.module if node.module != owner else None,
                axes=axes,
                blocks=self.node_blocks.get(node.index, ()),
                macs=draft.macs,
                attributes=draft.attributes,
                read=node.index in alive,
            )
        return result

    def _kernel_axes(self, draft: KernelDraft) -> tuple[WidthAxis, ...]:
        if draft.weight in self.recording.grouped and draft.kind == "conv":
            return (self.grouped_axis(str(draft.weight)), self.axis(draft.axes[1], exact=False))
        return tuple(self.axis(a, exact=False) for a in draft.axes)

    # -- calls -----------------------------------------------------------------------------------------------------

    def calls(self) -> tuple[tuple[Call, ...], ClassUnits]:
        """The recorded sequence with class arrays, and the units of each class."""
        roots = self.grouping.roots
        involved = np.zeros(roots.size, dtype=bool)
        for group_of, _ in self.grouping.slots:
            involved |= group_of >= 0
        involved &= roots == np.arange(roots.size)
        # Fine groups first, as the masked executor and the replay read them.
        units, number = ClassUnits.of(self.group_names, self.grouping.slots[::-1], np.flatnonzero(involved), roots.size)
        cache: dict[int, IntArray | None] = {}
        alive: list[torch.Tensor] = []

        def array(f: torch.Tensor) -> IntArray | None:
            if id(f) not in cache:
                values = number[roots[f.numpy()]]
                cache[id(f)] = None if (values < 0).all() else values
                alive.append(f)
            return cache[id(f)]

        def arrays(fields: tuple[torch.Tensor, ...]) -> tuple[IntArray, ...]:
            return tuple(a for a in (array(f) for f in fields) if a is not None)

        joins: dict[int, dict[str, int]] = {}
        for b in self.branches:
            if not b.reason:
                joins.setdefault(b.join, {})[b.name] = b.operand
        result = []
        inside = [n for n in self.recording.nodes if n.inside]
        places = {n.index: index for index, n in enumerate(inside)} | {-1: -1}
        for index, node in enumerate(inside):
            every = tuple(arrays(f) for f in node.in_fields)
            out = tuple(arrays(i.fields) for i in node.outputs)
            result.append(
                Call(
                    index=index,
                    op=node.op,
                    module=node.module,
                    fields=tuple(_widest(e) for e in every),
                    output_fields=tuple(_widest(e) for e in out),
                    all_fields=every,
                    all_output_fields=out,
                    blocks=self.node_blocks.get(node.index, ()),
                    joins=joins.get(node.index, {}),
                    sources=tuple(places.get(i.node, -2) for i in node.inputs),
                    names=tuple(i.name for i in node.inputs),
                    literals=node.literals,
                )
            )
        return tuple(result), units

    # -- reasons ---------------------------------------------------------------------------------------------------

    def kept_whole(self) -> tuple[KeptWhole, ...]:
        """Groups that stay whole, with reasons."""
        shares: dict[int, float] = {}
        carried: dict[int, bool] = {}
        parameters = self.recording.parameters
        for k, r in enumerate(self.recording.space.ranges):
            if r.kind != "tensor" or (r.dim == 1 and r.tensor in self.recording.grouped):
                continue
            # A weight that is computed of others is read through one of them, which may be a buffer (a mask).
            relevant = any(role in ("producer", "consumer", "depthwise") for role, _ in self.recording.roles.get((r.tensor, r.dim), ()))
            size = parameters[r.tensor].numel() if r.tensor in parameters else 0
            for g, count in self.along_whole[0].counts(k):
                shares[g] = shares.get(g, 0.0) + size * count / (r.stop - r.start)
                carried[g] = carried.get(g, False) or relevant
        result = []
        for g, name in self.group_names.items():
            raw = self.grouping.groups[g]
            why = raw.reason
            if why and (carried.get(g) or raw.level > 0):
                result.append(KeptWhole(what=name, channels=int(raw.cells.size), parameters=round(shares.get(g, 0.0)), reason=why))
        return tuple(result)


def _widest(fields: tuple[IntArray, ...]) -> IntArray | None:
    """The field that varies along the most dimensions."""
    return max(fields, key=lambda f: sum(n > 1 for n in f.shape), default=None)


def build(
    recording: Recording,
    settled: Settled,
    branches: list[Branch],
    *,
    min_widths: Mapping[str, int],
    blocks_kept: Mapping[str, str],
    within: str = "",
) -> ModelGraph:
    """Assemble the public graph."""
    grouping = settled.grouping
    b = _Builder(recording, grouping, branches)
    order = b.name_groups()
    members = b.members(set(order))
    groups: dict[str, ChannelGroup] = {}
    for g in order:
        raw = grouping.groups[g]
        name = b.group_names[g]
        rows, columns = raw.cells.shape
        groups[name] = ChannelGroup(
            name=name,
            rows=rows,
            columns=columns,
            min_width=max(1, min(columns, min_widths.get(name, 1))),
            kind=b._kind(raw),
            members=tuple(members[g]),
        )
    kernels = b.kernels()
    calls, class_units = b.calls()
    blocks = {}
    for br in branches:
        why = br.reason or blocks_kept.get(br.name, "")
        blocks[br.name] = Block(
            name=br.name,
            kernels=tuple(k.name for k in kernels.values() if br.name in k.blocks),
            parents=br.parents,
            shortcut=br.shortcut,
            removable=not why,
            reason=why,
        )
    tensor_axes = b.tensor_axes()
    name_blocks = {name: b.blocks_that_take(name) for name in (*tensor_axes, *recording.aliases)}
    tensor_blocks = {name: name_blocks[name] for name in tensor_axes}
    for alias, name in recording.aliases.items():
        tensor_blocks[name] = tuple(block for block in tensor_blocks[name] if block in name_blocks[alias])
    program = isinstance(recording.modules[0][1], CapturedNetwork)
    further, untouched = ((), ()) if program else untouched_attributes(recording, b, settled.attributes, tensor_axes)
    plan = SurgeryPlan(
        parameters=tuple(recording.parameters),
        within=within,
        aliases=dict(recording.aliases),
        name_blocks=name_blocks,
        tensors=_tensor_plans(b),
        removals={br.name: br.removal for br in branches if br.removal is not None},
        paddings=_paddings(b),
        scales=tuple(
            ScaledWeights(targets=use.targets, exponent=use.exponent, axis=b.polynomial_axis(size)) for use, size in settled.scales
        ),
        attributes=tuple(
            FollowingAttribute(module=module, attribute=name, axis=b.polynomial_axis(size))
            for (module, name), size in settled.attributes.items()
        )
        + further,
        untouched=untouched,
    )
    return ModelGraph(
        groups=groups,
        kernels=kernels,
        blocks=blocks,
        kept_whole=b.kept_whole(),
        tensor_axes=tensor_axes,
        calls=calls,
        class_units=class_units,
        tensor_blocks=tensor_blocks,
        plan=plan,
        carried=carried_on(recording, b.kernel_names),
        norms={kernel: after[0] for kernel, after in b.norms.items() if len(set(after)) == 1},
    )


def _units(b: _Builder, labels: IntArray) -> tuple[UnitsOfPlaces, ...]:
    """Memberships of an array of labels, one entry for each slot and group."""
    classes = b.grouping.roots[labels]
    found: list[UnitsOfPlaces] = []
    for group_of, unit_of in b.grouping.slots:
        here = group_of[classes]
        alike = bool(here.size) and bool((here == here.flat[0]).all())
        for g in [int(here.flat[0])] if alike else np.unique(here).tolist():
            if g >= 0:
                units = unit_of[classes] if alike else np.where(here == g, unit_of[classes], -1)
                found.append(UnitsOfPlaces(group=b.group_names[g], units=units))
    return tuple(found)


def _tensor_plans(b: _Builder) -> dict[str, TensorPlan]:
    """The tensors with a dimension that can shrink."""
    result: dict[str, TensorPlan] = {}
    for name, labels in b.recording.tensor_labels.items():
        rows = b.recording.grouped.get(name)
        dims: dict[int, tuple[UnitsOfPlaces, ...]] = {}
        for dim, vector in enumerate(labels):
            if vector is None:
                continue
            number = b.range_of[name, dim]
            if dim == 1 and rows is not None:
                units = _units(b, rows.numpy())
            elif all(along.single(number) == -1 for along in b.along):
                continue
            else:
                units = _units(b, vector.numpy())
            if units:
                dims[dim] = units
        if dims:
            result[name] = TensorPlan(dims=dims, groups=0 if rows is None else rows.shape[0])
    return result


def _paddings(b: _Builder) -> tuple[PaddingAmount, ...]:
    """The amounts of zero channels with a unit that can go."""
    drafts = [draft for entry in b.recording.pads.values() for draft in entry]
    amounts = [PaddingAmount(module=d.module, attribute=d.attribute, places=_units(b, d.labels.numpy())) for d in drafts]
    return tuple(amount for amount in amounts if amount.places)
