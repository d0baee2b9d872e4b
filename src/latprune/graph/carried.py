"""Which contractions a depthwise layer carries its channels on to: the flow of data, as it was recorded."""

from __future__ import annotations

from collections.abc import Mapping

from latprune.graph.recording import Recording

__all__ = ["carried_on"]

_CONTRACTIONS = frozenset({"conv", "linear", "matmul", "attention"})


def carried_on(recording: Recording, names: Mapping[int, str]) -> dict[str, frozenset[str]]:
    """Depthwise kernel -> contractions that read what it makes, with no other contraction between.

    Args:
        recording: The recorded run.
        names: Node -> name of its kernel.
    """
    readers: dict[int, list[int]] = {}
    kinds = {}
    for node in recording.nodes:
        kinds[node.index] = node.kernel.kind if node.kernel is not None else ""
        for source in {info.node for info in node.inputs if info.node >= 0}:
            readers.setdefault(source, []).append(node.index)
    found: dict[str, frozenset[str]] = {}
    for start, kind in kinds.items():
        if kind != "depthwise":
            continue
        reached: set[str] = set()
        seen = {start}
        waiting = [start]
        while waiting:
            for reader in readers.get(waiting.pop(), ()):
                if reader in seen:
                    continue
                seen.add(reader)
                if kinds[reader] in _CONTRACTIONS:
                    reached.add(names[reader])
                else:
                    waiting.append(reader)
        found[names[start]] = frozenset(reached)
    return found
