"""The readable form of a traced model, for ``latprune inspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latprune.block_names import shown_block

if TYPE_CHECKING:
    from latprune.graph.model_graph import ModelGraph
    from latprune.graph.surgery_plan import UntouchedAttribute
    from latprune.graph.types import ChannelGroup

__all__ = ["describe"]


def describe(graph: ModelGraph) -> str:
    """Groups with members and sizes, blocks, and what stays whole, as an indented tree."""
    widths = graph.dense_widths()
    lines = [
        f"{len(graph.groups)} channel groups, {len(graph.kernels)} kernels, "
        f"{sum(b.removable for b in graph.blocks.values())} removable blocks; "
        f"{graph.parameters(widths):,} parameters, {graph.macs(widths):,.0f} multiply-adds",
        "",
        "channel groups",
    ]
    for group in graph.groups.values():
        lines.append(f"  {group.name}  [{_size(group)}, {group.kind}]")
        for m in group.members:
            places = "" if m.positions.size == group.units else f", {m.positions.size} places"
            inside = f"  (in {' > '.join(map(shown_block, m.blocks))})" if m.blocks else ""
            lines.append(f"    {m.role.value:<9} {m.tensor} dim {m.dim}{places}{inside}")
    lines += ["", "blocks"]
    for block in graph.blocks.values():
        state = "removable" if block.removable else f"stays: {block.reason}"
        inside = f" (in {' > '.join(map(shown_block, block.parents))})" if block.parents else ""
        lines.append(f"  {shown_block(block.name)}{inside}  [{block.shortcut} shortcut, {len(block.kernels)} kernels]  {state}")
    if not graph.blocks:
        lines.append("  none")
    lines += ["", "kept whole"]
    for kept in graph.kept_whole:
        lines.append(f"  {kept.what}  [{kept.channels} channels, {kept.parameters:,} parameters]: {kept.reason}")
    if not graph.kept_whole:
        lines.append("  nothing")
    if graph.plan.untouched:
        lines += ["", "may be stale after pruning (no size of the run came from them; check what reads them)"]
        lines += [f"  {attribute.name} = {attribute.value}: {_alike(attribute)}" for attribute in graph.plan.untouched]
    if graph.notes:
        lines += ["", "notes", *(f"  {note}" for note in graph.notes)]
    return "\n".join(lines)


def _alike(attribute: UntouchedAttribute) -> str:
    """What an attribute is as large as, and whether it follows."""
    (name, dim), *others = attribute.dims
    more = f" and of {len(others)} more" if others else ""
    rule = "; follows as long as these stay alike" if attribute.uniform else ""
    return f"the size of dimension {dim} of '{name}'{more}{rule}"


def _size(group: ChannelGroup) -> str:
    if group.rows == 1:
        text = f"{group.columns}"
    else:
        text = f"{group.columns} in each of {group.rows} rows"
    return text if group.min_width <= 1 else f"{text}, at least {group.min_width}"
