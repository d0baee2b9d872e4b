"""Removable residual branches, found from the recorded data flow.

At each sum of two activations the fork is the nearest common dominator of the operands. One side (the branch) holds a contraction with
weights and a nonlinearity or an attention; the other (the shortcut) at most one contraction and no nonlinearity; they share nothing.

A branch may read more than the fork: an attention over another sequence, a convolution that a time embedding is added to. Then the branch
is what serves the sum alone, and the fork is where it meets the shortcut.
"""

from __future__ import annotations

from heapq import heappop, heappush

from latprune.graph.captured import CapturedNetwork
from latprune.graph.realise import Branch, nonnegative, realise, short_name
from latprune.graph.recording import Info, Node, Recording
from latprune.graph.surgery_plan import BranchCut, ModuleReplacement

__all__ = ["find_branches", "reaching_outputs"]

_SUMS = ("aten.add.Tensor", "aten.add_.Tensor")


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


def find_branches(recording: Recording, program: CapturedNetwork | None = None) -> list[Branch]:
    """All residual branches of a recording, in order of their joins; ``program`` where that is what was recorded."""
    nodes = recording.nodes
    flow = _Flow(nodes)
    consumers: dict[int, list[int]] = {}
    for n, preds in enumerate(flow.pred):
        for p in preds:
            consumers.setdefault(p, []).append(n)
    alive = reaching_outputs(recording)
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
            branch = _branch_with_entries(node, flow, alive, consumers, whole=program is not None)
        if branch is None:
            continue
        if any(c in alive and c not in branch.nodes and c != node.index for n in branch.nodes for c in consumers.get(n, ())):
            continue  # something inside the branch is read elsewhere
        if any(info.node in branch.nodes for info in recording.outputs):
            continue
        branch.beside = _beside(branch, alive, consumers)
        if program is not None:
            _cut(branch, recording, consumers, program)
        else:
            realise(branch, recording, consumers, alive)
        name = branch.removal.module if isinstance(branch.removal, ModuleReplacement) else node.module
        names[name] = names.get(name, 0) + 1
        branch.name = name if names[name] == 1 else f"{name}#{names[name]}"
        branches.append(branch)
    for branch in branches:
        around = [o for o in branches if o is not branch and branch.join in o.nodes]
        branch.parents = tuple(o.name for o in sorted(around, key=lambda o: len(o.nodes), reverse=True))
    return branches


def _cut(branch: Branch, recording: Recording, consumers: dict[int, list[int]], program: CapturedNetwork) -> None:
    """Say how the branch is cut from a captured network: the sum's other operand takes its place, and what nothing reads any more goes.

    Every branch can be, but for a scaled sum whose shortcut would keep the scale.
    """
    nodes = recording.nodes
    join = nodes[branch.join]
    if program.scales_shortcut(join.step, branch.operand):
        branch.reason = f"the sum in '{join.module}' scales its shortcut"
        return
    skipped: list[int] = []
    after = consumers.get(branch.join, [])
    source = join.inputs[1 - branch.operand]
    while len(after) == 1 and short_name(nodes[after[0]]) == "relu" and nonnegative(source, nodes):
        # A ReLU of what has no negative values does nothing.
        skipped.append(nodes[after[0]].step)
        branch.dropped_tail |= {after[0]}
        after = consumers.get(after[0], [])
    tensors = program.lost_tensors(join.step, branch.operand, skipped)
    branch.removal = BranchCut(join=join.step, operand=branch.operand, skipped=tuple(skipped), tensors=tensors)


def reaching_outputs(recording: Recording) -> set[int]:
    """Nodes that the outputs depend on."""
    alive = {i.node for i in recording.outputs if i.node >= 0}
    todo = list(alive)
    while todo:
        for p in _predecessors(recording.nodes[todo.pop()]):
            if p >= 0 and p not in alive:
                alive.add(p)
                todo.append(p)
    return alive


def _beside(branch: Branch, alive: set[int], consumers: dict[int, list[int]]) -> frozenset[int]:
    """Nodes that read what is computed inside of a branch and lead to no output."""
    found: set[int] = set()
    todo = list(branch.nodes)
    while todo:
        for c in consumers.get(todo.pop(), ()):
            if c not in alive and c not in branch.nodes and c not in found:
                found.add(c)
                todo.append(c)
    return frozenset(found)


def _branch_at(node: Node, a: Info, b: Info, nodes: list[Node], flow: _Flow) -> Branch | None:
    fork = flow.common(a.node, b.node)
    if fork < 0:
        return None
    sides = [flow.between(fork, a.node), flow.between(fork, b.node)]
    if sides[0] & sides[1]:
        return None
    able = [_able(nodes, s) for s in sides]
    plain = [_plain(nodes, s) for s in sides]
    if able[0] and plain[1]:
        operand = 0
    elif able[1] and plain[0]:
        operand = 1
    else:
        return None
    return _found(node, operand, fork, sides[operand], sides[1 - operand], nodes)


def _able(nodes: list[Node], at: frozenset[int]) -> bool:
    """Whether nodes can be a branch."""
    return _weighted(nodes, at) >= 1 and _nonlinear(nodes, at)


def _plain(nodes: list[Node], at: frozenset[int]) -> bool:
    """Whether nodes can be a shortcut."""
    return _weighted(nodes, at) <= 1 and not _nonlinear(nodes, at)


def _found(node: Node, operand: int, fork: int, branch: frozenset[int], short: frozenset[int], nodes: list[Node]) -> Branch:
    if _weighted(nodes, short):
        kind = "projection"
    elif any(short_name(nodes[n]) == "constant_pad_nd" for n in short):
        kind = "pad"
    else:
        kind = "identity"
    return Branch(name="", join=node.index, operand=operand, fork=fork, nodes=branch, shortcut_nodes=short, shortcut=kind)


def _branch_with_entries(join: Node, flow: _Flow, alive: set[int], consumers: dict[int, list[int]], *, whole: bool) -> Branch | None:
    """A branch that reads the fork and other values beside.

    With ``whole`` it takes all that serves it alone (an encoder that nothing else reads); else what ran after the fork, which is what the
    modules around the sum compute.
    """
    for operand in (0, 1):
        side = _serving_alone(join, operand, flow, alive, consumers)
        entries = {p for n in side for p in flow.pred[n]} - side
        short: set[int] = set()
        fork = join.inputs[1 - operand].node
        while fork >= 0 and fork not in entries and len(flow.pred[fork]) == 1:
            short.add(fork)
            fork = flow.pred[fork][0]
        if fork < 0 or fork not in entries or not _plain(flow.nodes, frozenset(short)):
            continue
        branch = frozenset(n for n in side if whole or n > fork)
        if _able(flow.nodes, branch):
            return _found(join, operand, fork, branch, frozenset(short), flow.nodes)
    return None


def _serving_alone(join: Node, operand: int, flow: _Flow, alive: set[int], consumers: dict[int, list[int]]) -> frozenset[int]:
    """Nodes that outputs depend on by one operand of a sum alone."""
    end = join.inputs[operand].node
    if end == join.inputs[1 - operand].node:
        return frozenset()
    found: set[int] = set()
    todo = [-end]
    while todo:
        n = -heappop(todo)  # from the last to the first: what reads a node has been looked at before it
        if n < 0 or n in found or not all(c in found or (n == end and c == join.index) for c in consumers.get(n, ()) if c in alive):
            continue
        found.add(n)
        for p in flow.pred[n]:
            heappush(todo, -p)
    return frozenset(found)
