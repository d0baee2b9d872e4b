"""What one run cannot tell: layers that it did not reach, and values that decide its course."""

from __future__ import annotations

from collections.abc import Iterable

from latprune.graph.recording import Recording

__all__ = ["other_courses"]

_VALUES = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal")
"""Operations that hand a tensor's value to Python."""
_NAMED = 6


def other_courses(recording: Recording, read_in_training: frozenset[str]) -> tuple[str, ...]:
    """Notes on calls of another course than the recorded one, which the pruned network may not fit.

    Args:
        recording: The recorded run.
        read_in_training: Parameters that a run in training mode reads, which was looked at by itself.
    """
    read = {_owner(name) for name in recording.parameters if name in recording.tensor_labels or name in read_in_training}
    idle = [name for name in dict.fromkeys(map(_owner, recording.parameters)) if name not in read]
    notes = []
    if idle:
        notes.append(
            f"not run on the example inputs: {_listed(idle)}; a call that runs them may not fit the pruned network, for nothing says what "
            "they read: give example inputs with which they run, or name in keep what they read and they themselves"
        )
    asking = dict.fromkeys(
        node.module or "the model itself"
        for node in recording.nodes
        if node.inside and node.op.startswith(_VALUES) and any(info.dynamic for info in node.inputs)
    )
    if asking:
        notes.append(
            f"the forward asks for values of its inputs ({_listed(asking)}): the network was followed on the course that the example "
            "inputs take, and another one may not fit the pruned network"
        )
    return tuple(notes)


def _owner(name: str) -> str:
    return name.rpartition(".")[0] or name


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
