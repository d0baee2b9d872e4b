"""Removable residual branches, found from the recorded data flow.

At each sum of two activations the fork is the nearest common dominator of the operands. One side (the branch) holds a contraction with
weights and a nonlinearity or an attention; the other (the shortcut) at most one contraction and no nonlinearity; they share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from latprune.graph.recorder import Info, ModuleCall, Node, Recording

__all__ = ["Branch", "Realisation", "find_branches"]

_SUMS = ("aten.add.Tensor", "aten.add_.Tensor")
_MOVES = (
    "slice",
    "constant_pad_nd",
    "view",
    "permute",
    "transpose",
    "avg_pool2d",
    "max_pool2d",
    "alias",
    "clone",
    "contiguous",
    "_unsafe_view",
)
_NONNEGATIVE = ("relu", "relu_", "sigmoid", "sigmoid_", "hardsigmoid", "relu6")
_TAIL = frozenset({"relu", "gelu", "silu", "hardtanh", "hardswish", "sigmoid", "tanh", "leaky_relu", "elu", "mish", "softplus"})


@dataclass(slots=True, eq=False)
class Realisation:
    """How the removal is carried out: ``module`` is replaced by what stays of it.

    Attributes:
        module: Path of the module that goes.
        argument: Position or keyword of the argument that holds the fork's tensor.
        shortcut: Paths, relative to the module, of the children that make the shortcut, in order.
        tail: What follows the sum: ``{"module": relative path}`` or ``{"op": name, "args": [numbers]}``.
        output: ``tensor`` or ``tuple``.
    """

    module: str
    argument: int | str = 0
    shortcut: list[str] = field(default_factory=list)
    tail: list[dict[str, Any]] = field(default_factory=list)
    output: str = "tensor"


@dataclass(slots=True, eq=False)
class Branch:
    """A residual branch: its nodes, where it joins, and how it can be removed (or why it cannot)."""

    name: str
    join: int
    operand: int
    fork: int
    nodes: frozenset[int]
    shortcut_nodes: frozenset[int]
    shortcut: str
    dropped_tail: frozenset[int] = frozenset()
    realisation: Realisation | None = None
    reason: str = ""
    parents: tuple[str, ...] = ()


def _short(node: Node) -> str:
    return node.op.split(".")[1]


def _predecessors(node: Node) -> list[int]:
    """Nodes whose results this one reads; -2 is the model's input."""
    return sorted({i.node for i in node.inputs if i.dynamic and i.node != -1})


class _Flow:
    """Dominators of the recorded data flow."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.pred: list[list[int]] = []
        self.idom: dict[int, int] = {-2: -2}
        self.depth: dict[int, int] = {-2: 0}
        for node in nodes:
            preds = _predecessors(node)
            self.pred.append(preds)
            if not preds:
                continue
            top = preds[0]
            for p in preds[1:]:
                top = self.common(top, p)
            self.idom[node.index] = top
            self.depth[node.index] = self.depth[top] + 1

    def common(self, a: int, b: int) -> int:
        """Nearest common dominator."""
        while a != b:
            if self.depth[a] < self.depth[b]:
                a, b = b, a
            a = self.idom[a]
        return a

    def between(self, fork: int, end: int) -> frozenset[int]:
        """Nodes on the paths from ``fork`` (excluded) to ``end`` (included)."""
        if end == fork:
            return frozenset()
        found = {end}
        todo = [end]
        while todo:
            for p in self.pred[todo.pop()]:
                if p != fork and p >= 0 and p not in found:
                    found.add(p)
                    todo.append(p)
        return frozenset(found)


def _weighted(nodes: list[Node], at: frozenset[int]) -> int:
    return sum(1 for n in at if (k := nodes[n].kernel) is not None and k.weight is not None and k.kind in ("conv", "linear", "depthwise"))


def _nonlinear(nodes: list[Node], at: frozenset[int]) -> bool:
    return any((k := nodes[n].kernel) is not None and k.kind in ("activation", "attention", "softmax") for n in at)


def find_branches(recording: Recording) -> list[Branch]:
    """All residual branches of a recording, in order of their joins."""
    nodes = recording.nodes
    flow = _Flow(nodes)
    consumers: dict[int, list[int]] = {}
    for n, preds in enumerate(flow.pred):
        for p in preds:
            consumers.setdefault(p, []).append(n)
    branches: list[Branch] = []
    names: dict[str, int] = {}
    for node in nodes:
        if node.op not in _SUMS or len(node.inputs) != 2:
            continue
        a, b = node.inputs
        if not (a.dynamic and b.dynamic) or a.shape != b.shape or a is b:
            continue
        branch = _branch_at(node, a, b, nodes, flow)
        if branch is None:
            continue
        if any(c not in branch.nodes and c != node.index for n in branch.nodes for c in consumers.get(n, ())):
            continue  # something inside the branch is read elsewhere
        _realise(branch, recording, flow, consumers)
        name = branch.realisation.module if branch.realisation is not None else node.module
        names[name] = names.get(name, 0) + 1
        branch.name = name if names[name] == 1 else f"{name}#{names[name]}"
        branches.append(branch)
    for branch in branches:
        around = [o for o in branches if o is not branch and branch.join in o.nodes]
        branch.parents = tuple(o.name for o in sorted(around, key=lambda o: len(o.nodes), reverse=True))
    return branches


def _branch_at(node: Node, a: Info, b: Info, nodes: list[Node], flow: _Flow) -> Branch | None:
    fork = flow.common(a.node, b.node)
    if fork < 0:
        return None
    sides = [flow.between(fork, a.node), flow.between(fork, b.node)]
    if sides[0] & sides[1]:
        return None
    able = [_weighted(nodes, s) >= 1 and _nonlinear(nodes, s) for s in sides]
    plain = [_weighted(nodes, s) <= 1 and not _nonlinear(nodes, s) for s in sides]
    if able[0] and plain[1]:
        operand = 0
    elif able[1] and plain[0]:
        operand = 1
    else:
        return None
    short = sides[1 - operand]
    if not short:
        kind = "identity"
    elif _weighted(nodes, short):
        kind = "projection"
    elif any(_short(nodes[n]) == "constant_pad_nd" for n in short):
        kind = "pad"
    else:
        kind = "identity"
    return Branch(name="", join=node.index, operand=operand, fork=fork, nodes=sides[operand], shortcut_nodes=short, shortcut=kind)


def _nonnegative(info: Info, nodes: list[Node]) -> bool:
    """Whether a tensor is provably free of negative values."""
    for _ in range(len(nodes)):
        if info.node < 0:
            return False
        node = nodes[info.node]
        if _short(node) in _NONNEGATIVE:
            return True
        if not any(_short(node).startswith(m) for m in _MOVES) or not node.inputs:
            return False
        info = node.inputs[0]
    return False


def _realise(branch: Branch, recording: Recording, flow: _Flow, consumers: dict[int, list[int]]) -> None:
    """Find the smallest module call that spans fork to join and holds nothing else that computes."""
    nodes, calls = recording.nodes, recording.module_calls
    inside = branch.nodes | branch.shortcut_nodes | {branch.join}
    low, high = min(inside), max(inside)
    spans = [c for c in calls if c.start <= low and high < c.stop and branch.fork < c.start and c.path]
    if not spans:
        holder = nodes[branch.join].module
        branch.reason = f"the sum is written in the forward of '{holder}', which computes more than this branch"
        return
    call = max(reversed(spans), key=lambda c: (c.start, -c.stop))  # of equal spans the innermost: it was entered last
    if sum(1 for c in calls if c.path == call.path) > 1:
        branch.reason = f"module '{call.path}' is called several times"
        return
    tail = _tail(branch, call, nodes, consumers)
    if tail is None:
        branch.reason = f"module '{call.path}' computes more than the branch, its shortcut and an activation"
        return
    allowed = inside | set(tail)
    for n in range(call.start, call.stop):
        if n not in allowed and any(i.dynamic for i in nodes[n].inputs):
            branch.reason = f"module '{call.path}' computes more than the branch, its shortcut and an activation ({nodes[n].op})"
            return
    source = nodes[branch.join].inputs[1 - branch.operand]
    entry = [k for k, i in enumerate(call.inputs) if i.node == branch.fork]
    if len(entry) != 1:
        branch.reason = f"the fork is no single argument of module '{call.path}'"
        return
    start = call.inputs[entry[0]]
    shortcut = _module_chain(start, source, branch.shortcut_nodes, call, recording)
    if shortcut is None:
        branch.reason = f"the shortcut is computed in the forward of '{call.path}', not by its modules"
        return
    steps, dropped = _tail_steps(branch, tail, start, call, recording)
    if steps is None:
        branch.reason = f"what follows the sum in '{call.path}' is no activation that can be kept alone"
        return
    branch.dropped_tail = frozenset(dropped)
    branch.realisation = Realisation(module=call.path, argument=entry[0], shortcut=shortcut, tail=steps)


def _tail(branch: Branch, call: ModuleCall, nodes: list[Node], consumers: dict[int, list[int]]) -> list[int] | None:
    """Nodes after the sum up to the call's only output, if each is an activation."""
    tail: list[int] = []
    if len(call.outputs) != 1:
        return None
    at = branch.join
    while call.outputs[0].node != at:
        following = [n for n in consumers.get(at, ()) if n < call.stop]
        if len(following) != 1 or _short(nodes[following[0]]).rstrip("_") not in _TAIL:
            return None
        at = following[0]
        tail.append(at)
    return tail


def _module_chain(start: Info, end: Info, wanted: frozenset[int], call: ModuleCall, recording: Recording) -> list[str] | None:
    """Children of ``call`` that lead, one after the other, from ``start`` to ``end`` and run exactly the ``wanted`` nodes."""
    chain: list[str] = []
    at = start
    left = set(wanted)
    prefix = f"{call.path}."
    while at is not end:
        options = [
            c
            for c in recording.module_calls
            if c.start >= call.start
            and c.stop <= call.stop
            and c.path.startswith(prefix)
            and c.stop > c.start
            and len(c.inputs) == 1
            and c.inputs[0] is at
            and len(c.outputs) == 1
            and c.outputs[0] is not at
            and any(n in left for n in range(c.start, c.stop))
        ]
        if not options:
            return None
        step = max(options, key=lambda c: c.stop - c.start)
        chain.append(step.path[len(prefix) :])
        left -= set(range(step.start, step.stop))
        at = step.outputs[0]
    return None if left else chain


def _tail_steps(
    branch: Branch, tail: list[int], start: Info, call: ModuleCall, recording: Recording
) -> tuple[list[dict[str, Any]] | None, list[int]]:
    """The activations after the sum as steps to keep, and the ones that have no effect on the shortcut alone."""
    nodes = recording.nodes
    source = nodes[branch.join].inputs[1 - branch.operand]
    harmless = _nonnegative(source if branch.shortcut_nodes else start, nodes)
    steps: list[dict[str, Any]] = []
    dropped: list[int] = []
    prefix = f"{call.path}."
    for n in tail:
        node = nodes[n]
        name = _short(node).rstrip("_")
        if name == "relu" and harmless:
            dropped.append(n)
            continue
        harmless = harmless or name == "relu"
        owner = next(
            (c for c in recording.module_calls if c.start <= n < c.stop and c.stop - c.start == 1 and c.path.startswith(prefix)), None
        )
        if owner is not None:
            steps.append({"module": owner.path[len(prefix) :]})
        else:
            if any(not isinstance(v, (int, float, str, bool)) for v in node.literals):
                return None, []
            steps.append({"op": name, "args": list(node.literals)})
    return steps, dropped
