"""The traced model: groups, kernels, blocks and reasons, with the sizes and costs that any choice of widths gives."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latprune.graph.surgery_plan import SurgeryPlan
from latprune.graph.types import Block, Call, ChannelGroup, KeptWhole, Kernel, WidthAxis

if TYPE_CHECKING:
    from torch import nn

    from latprune.graph.captured import CapturedNetwork

__all__ = ["ModelGraph"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ModelGraph:
    """What :func:`latprune.graph.trace` returns.

    Attributes:
        groups: Channel groups by name, in execution order; only those that can be pruned.
        kernels: Kernels by name, in execution order.
        blocks: Residual branches by name, in execution order; ``removable`` says whether a branch may go.
        kept_whole: What cannot be pruned, with reasons.
        tensor_axes: For each parameter and buffer, the size of each dimension as a function of the widths.
        calls: The recorded sequence of operations (those inside of ``within`` where a sub-module is pruned).
        class_units: For each coordinate class its memberships ``(group name, unit)``; a class is kept iff all its units are kept.
        tensor_blocks: For each parameter and buffer the blocks each of which takes all of its names away.
        plan: What surgery needs: how each tensor, module attribute and removable block follows a selection.
        carried: Depthwise kernel -> the contractions that its channels reach before any other contraction makes new ones.
        norms: Kernel -> the norm that reads what it makes, inside the same blocks, where nothing else reads it and nothing but views stands
            between.
        program: The captured program that was traced (``form="program"``): what is pruned then. None for a model of a class.
        folded: The copy with plain weights that was traced (``fold=True``): what is pruned then. None where nothing was folded.
        input_shapes: Shapes of the tensors among the example inputs, by their place or name in the call.
        notes: Remarks for people: what stays whole for the sake of training, and what could not be looked at.
    """

    groups: Mapping[str, ChannelGroup]
    kernels: Mapping[str, Kernel]
    blocks: Mapping[str, Block]
    kept_whole: tuple[KeptWhole, ...]
    tensor_axes: Mapping[str, tuple[WidthAxis, ...]]
    calls: tuple[Call, ...]
    class_units: Sequence[tuple[tuple[str, int], ...]]
    tensor_blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plan: SurgeryPlan = field(default_factory=SurgeryPlan)
    carried: Mapping[str, frozenset[str]] = field(default_factory=dict)
    norms: Mapping[str, str] | None = None
    program: CapturedNetwork | None = None
    folded: nn.Module | None = None
    input_shapes: Mapping[int | str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line; :meth:`describe` shows what is in it."""
        removable = sum(block.removable for block in self.blocks.values())
        return f"ModelGraph({len(self.groups)} groups, {len(self.kernels)} kernels, {removable} removable blocks)"

    def _repr_html_(self) -> str:
        """The channel groups as a table, for notebooks."""
        from latprune.display import html_of

        return html_of("graph", self)

    def dense_widths(self) -> dict[str, int]:
        """Every group at its full width."""
        return {name: g.columns for name, g in self.groups.items()}

    def macs(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> float:
        """Multiply-adds of one inference of the example batch."""
        removed = frozenset(removed_blocks)
        total = 0.0
        for kernel in self.kernels.values():
            if kernel.macs and removed.isdisjoint(kernel.blocks):
                total += kernel.macs * math.prod(axis.size(widths, removed) for axis in kernel.axes)
        return total

    def parameters(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> int:
        """Number of parameters (tied ones counted once)."""
        removed = frozenset(removed_blocks)
        left = self.names_left(removed)
        return sum(
            math.prod(axis.size(widths, removed) for axis in self.tensor_axes[name]) for name in self.plan.parameters if name in left
        )

    def names_left(self, removed_blocks: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Each parameter and buffer that stays -> those of its names that stay: a tied one may lose the name that it is known by here."""
        removed = frozenset(removed_blocks)
        left: dict[str, tuple[str, ...]] = {}
        for name, blocks in self.plan.name_blocks.items():
            if removed.isdisjoint(blocks):
                tensor = self.plan.aliases.get(name, name)
                left[tensor] = (*left.get(tensor, ()), name)
        return left

    def to_json(self) -> str:
        """Groups, kernels, blocks and reasons as JSON (what ``latprune inspect --json`` prints)."""
        return json.dumps(self.to_dict(), indent=1)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain objects."""
        return {
            "format": "latprune/graph",
            "version": 1,
            "groups": [
                {
                    "name": g.name,
                    "kind": g.kind,
                    "rows": g.rows,
                    "columns": g.columns,
                    "min_width": g.min_width,
                    "members": [
                        {
                            "tensor": m.tensor,
                            "dim": m.dim,
                            "role": str(m.role),
                            "kernel": m.kernel,
                            "places": int(m.positions.size),
                            "blocks": list(m.blocks),
                        }
                        for m in g.members
                    ],
                }
                for g in self.groups.values()
            ],
            "kernels": [
                {
                    "name": k.name,
                    "kind": k.kind,
                    "module": k.module,
                    "axes": [_axis_dict(a) for a in k.axes],
                    "blocks": list(k.blocks),
                    "macs": k.macs,
                    "attributes": dict(k.attributes),
                }
                for k in self.kernels.values()
            ],
            "blocks": [
                {
                    "name": b.name,
                    "shortcut": b.shortcut,
                    "parents": list(b.parents),
                    "removable": b.removable,
                    "reason": b.reason,
                    "kernels": list(b.kernels),
                }
                for b in self.blocks.values()
            ],
            "kept_whole": [
                {"what": k.what, "channels": k.channels, "parameters": k.parameters, "reason": k.reason} for k in self.kept_whole
            ],
            "notes": list(self.notes),
            "may_be_stale": [
                {"attribute": a.name, "value": a.value, "dims": [[name, dim] for name, dim in a.dims], "uniform": a.uniform}
                for a in self.plan.untouched
            ],
        }

    def describe(self) -> str:
        """A readable tree: groups with their members and sizes, blocks, and the reason for everything that stays whole."""
        from latprune.graph.describe import describe

        return describe(self)


def _axis_dict(axis: WidthAxis) -> dict[str, Any]:
    pieces = [{"groups": list(p.groups), "factor": p.factor, "blocks": list(p.blocks)} for p in axis.pieces]
    return {"constant": axis.constant, "pieces": pieces}
