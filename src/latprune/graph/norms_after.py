"""Which norm reads what a kernel makes: the flow of data, as it was recorded, whatever else runs between the two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from latprune.graph.blocks import reaching_outputs
from latprune.graph.recording import Fields, Node, Recording

__all__ = ["norms_after"]

# All values stay, or some do; each keeps its channel.
_MOVING = frozenset(
    f"aten.{name}"
    for name in (
        "view _unsafe_view reshape _reshape_alias permute transpose t numpy_T movedim swapaxes unsqueeze squeeze clone contiguous detach "
        "alias lift_fresh _to_copy slice narrow select split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unbind"
    ).split()
)
Value = tuple[int, int]
"""A node, and which of its results."""


def norms_after(recording: Recording, names: Mapping[int, str], blocks: Mapping[int, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """For each channel of a kernel with weights the norm that reads it straight, inside the same blocks, and that nothing else reads.

    Between the two are views, transposes, casts and cuts into parts at most. A channel that anything beside one norm reads has none; so has
    one that another norm, or none, reads where the same weights run again.

    Args:
        recording: The recorded run.
        names: Node -> name of its kernel.
        blocks: Node -> removable blocks that it lies in.

    Returns:
        Kernel -> ``(channels,)`` names of norms, empty for a channel without one. Kernels without any are left out. Kernels and norms that
        run several times go by the names of their first calls.
    """
    flow = _Flow(recording, blocks)
    first: dict[str, str] = {}
    found: dict[str, list[list[int]]] = {}
    for node in recording.nodes:
        if node.kernel is not None and (node.kernel.weight is not None or node.kernel.kind == "norm"):
            name = first.setdefault(_owner(node), names[node.index])
            if node.kernel.kind != "norm" and node.index in flow.alive:
                found.setdefault(name, []).append(flow.readers_of_channels(node))
    result: dict[str, tuple[str, ...]] = {}
    for kernel, calls in found.items():
        if len({len(call) for call in calls}) == 1:
            columns = [{first[_owner(recording.nodes[n])] if n >= 0 else "" for n in column} for column in zip(*calls, strict=True)]
            result[kernel] = tuple(next(iter(column)) if len(column) == 1 else "" for column in columns)
    return {kernel: norms for kernel, norms in result.items() if any(norms)}


def _owner(node: Node) -> str:
    """What its calls have in common: the weight, else the module."""
    return node.kernel.weight if node.kernel is not None and node.kernel.weight is not None else f"{node.module}/"


class _Flow:
    """Who reads which value of a run, as far as the outputs depend on it."""

    def __init__(self, recording: Recording, blocks: Mapping[int, tuple[str, ...]]) -> None:
        self.nodes = recording.nodes
        self.blocks = blocks
        self.alive = reaching_outputs(recording)
        self.handed_out = {(info.node, info.output) for info in (*recording.outputs, *recording.returned)}
        self.readers: dict[Value, list[tuple[Node, int]]] = {}
        for node in recording.nodes:
            if node.index in self.alive:
                for place, info in enumerate(node.inputs):
                    self.readers.setdefault((info.node, info.output), []).append((node, place))

    def readers_of_channels(self, maker: Node) -> list[int]:
        """For each channel that a kernel makes the node of the norm that alone reads it; -1 for none."""
        made = max((f.reshape(-1) for f in maker.outputs[0].fields), key=torch.numel, default=torch.zeros(1, dtype=torch.int32))
        found = [-1] * made.numel()
        taken = [False] * made.numel()
        place = {label: k for k, label in enumerate(made.tolist())}
        if len(place) < made.numel():
            return found
        for reader, fields in self._ends((maker.index, 0)):
            labels = {label for f in fields for label in torch.unique(f).tolist()}
            # What carries none of the labels may hold any of the channels.
            channels = [place[label] for label in labels if label in place] or range(len(found))
            for k in channels:
                found[k] = -1 if reader is None or taken[k] else reader.index
                taken[k] = True
        return found

    def _ends(self, start: Value) -> Iterator[tuple[Node | None, Fields]]:
        """What reads a value behind all that only moves it, with the fields of what is read: the norm, or None for anything else."""
        own = self.blocks.get(start[0], ())
        waiting = [start]
        while waiting:
            value = waiting.pop()
            if value in self.handed_out:
                yield None, self.nodes[value[0]].outputs[value[1]].fields
            for reader, place in self.readers.get(value, ()):
                if place == 0 and reader.op.rpartition(".")[0] in _MOVING:
                    waiting += [(reader.index, k) for k in range(len(reader.outputs))]
                elif place == 0 and reader.kernel is not None and reader.kernel.kind == "norm" and self.blocks.get(reader.index, ()) == own:
                    yield reader, reader.in_fields[0]
                else:
                    yield None, reader.in_fields[place]
