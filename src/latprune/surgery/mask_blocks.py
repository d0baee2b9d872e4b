"""What must be 0 so that a removed block contributes 0 where its branch joins the shortcut."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from torch import nn

from latprune.graph import ModelGraph
from latprune.graph.types import Call
from latprune.surgery.mask_walk import RefusedError, Walk, dynamic_calls, tensor_names

__all__ = ["BlockMask", "find_block_masks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMask:
    """How a block is masked: the tensors to be 0, and all parameters that serve it alone; or why it cannot be."""

    zeros: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    reason: str = ""


def find_block_masks(model: nn.Module, graph: ModelGraph) -> dict[str, BlockMask]:
    """For every removable block how it is masked, or why it cannot be."""
    dynamic = dynamic_calls(graph.calls)
    users = _users(graph.calls, dynamic)
    parameters, tensors = {n for n, _ in model.named_parameters(remove_duplicate=False)}, tensor_names(model)
    joins = {block: (call, operand) for call in graph.calls for block, operand in call.joins.items()}
    masks: dict[str, BlockMask] = {}
    for name, block in graph.blocks.items():
        if not block.removable:
            continue
        own = frozenset(t for t, calls in users.items() if t in tensors and all(name in c.blocks for c in calls))
        walk = Walk(
            calls=graph.calls,
            dynamic=dynamic,
            carries=lambda call, argument: True,
            along=lambda call, argument, but: True,
            enters=partial(_inside, name, dynamic),
            leaf=partial(_check_own, own),
        )
        try:
            masks[name] = BlockMask(zeros=tuple(sorted(walk.zero(*joins[name]))), own=tuple(sorted(own & parameters)))
        except RefusedError as error:
            masks[name] = BlockMask(reason=str(error))
    return masks


def _inside(block: str, dynamic: list[bool], call: Call) -> bool:
    return block in call.blocks or not dynamic[call.index]


def _check_own(own: Collection[str], tensor: str) -> None:
    if tensor not in own:
        raise RefusedError(f"'{tensor}' does not serve the block alone")


def _users(calls: tuple[Call, ...], dynamic: list[bool]) -> dict[str, list[Call]]:
    """For each parameter and buffer the calls that compute with it and the inputs, also by way of what is computed from it alone."""
    made_from: list[frozenset[str]] = []
    users: dict[str, list[Call]] = {}
    for call in calls:
        read: set[str] = set()
        for source, name in zip(call.sources, call.names, strict=True):
            if source == -1 and name is not None:
                read.add(name)
            elif source >= 0 and not dynamic[source]:
                read |= made_from[source]
        made_from.append(frozenset() if dynamic[call.index] else frozenset(read))
        if dynamic[call.index]:
            for name in read:
                users.setdefault(name, []).append(call)
    return users
