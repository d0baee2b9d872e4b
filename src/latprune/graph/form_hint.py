"""Where the class's code alone keeps channels whole, the reason says that the captured program can prune them.

The question is answered by settling the same recording once more, with a number of its own in the place of every size that the code states:
what is free then is held by the code.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from latprune.graph.captured import captured_form
from latprune.graph.grouping import Grouping
from latprune.graph.labels import CodeReason, LabelSpace
from latprune.graph.provenance import Uses
from latprune.graph.realise import Branch
from latprune.graph.recording import Equation, Recording
from latprune.graph.sizes import settle

__all__ = ["PRUNE", "REMOVE", "add_hints", "capturable", "snapshot"]

PRUNE, REMOVE = "; form='program' can prune it", "; form='program' can remove it"
"""What a reason ends in where the program is free."""


def snapshot(recording: Recording) -> Recording:
    """The recording as it is before it is settled, which adds facts to it."""
    space = copy.copy(recording.space)
    for name in ("ranges", "pairs", "bundles", "grids", "merges", "frozen", "still"):
        setattr(space, name, list(getattr(space, name)))
    return replace(recording, space=space, equations=list(recording.equations), sizes=list(recording.sizes))


def add_hints(before: Recording, frozen: dict[int, str], grouping: Grouping, branches: list[Branch]) -> None:
    """Say in the reasons of ``grouping`` and ``branches`` where the captured program is free.

    Args:
        before: :func:`snapshot` of the recording.
        frozen: Labels that stay for other reasons than the code's.
        grouping: The settled groups.
        branches: The residual branches.
    """
    held = [g for g in grouping.groups if isinstance(g.reason, CodeReason)]
    stuck = [b for b in branches if b.reason]
    if not (held or stuck) or not capturable(before):
        return
    for branch in stuck:
        branch.reason += REMOVE
    if not held:
        return
    free = settle(_without_code(before), frozen).grouping
    own = free.slots[0][0]
    for group in held:
        if bool((own[free.roots[np.asarray(group.cells).reshape(-1)]] >= 0).all()):
            group.reason += PRUNE


def _without_code(before: Recording) -> Recording:
    """The recording of a program: every size that was stated is a number of its own, and no number decides anything."""
    values = dict(before.attribute_values)
    equations = []
    for k, equation in enumerate(before.equations):
        if equation.parts:
            equations.append(equation)
        elif equation.right[0] == "size":
            name = f"size_literals[{k}]"
            values["", name] = before.sizes[int(equation.right[1])].value
            equations.append(Equation(left=("attr", "", name), right=equation.right, place=equation.place))
    space: LabelSpace = before.space
    space.frozen = [(labels, why) for labels, why in space.frozen if not isinstance(why, CodeReason)]
    return replace(before, equations=equations, attribute_values=values, uses=Uses(), scales=[])


_INSIDE = frozenset({"aten._scaled_dot_product_flash_attention_for_cpu.default", "aten.mkldnn_rnn_layer.default"})
"""Operators inside of functions that a program keeps whole."""


def capturable(recording: Recording) -> bool:
    """Whether a program can hold the operations of the run, as far as that can be told without capturing it."""
    holds = captured_form().holds
    for node in recording.nodes:
        if not any(i.dynamic for i in node.inputs) or node.op in _INSIDE:
            continue
        restrides = node.op.startswith("aten.as_strided") and node.outputs[0].shape == node.inputs[0].shape
        if not node.inside or not node.outputs or not (restrides or holds(node.op)):
            return False
        if node.op.split(".")[1].endswith("_") and node.inputs[0].name is not None:
            return False
    return True
