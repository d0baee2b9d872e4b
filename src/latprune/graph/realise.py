"""How a residual branch can be removed in the user's own class: which modules are replaced, and by what.

Two ways, the first that holds: the smallest module that spans fork to join is replaced by its shortcut and the activation after the sum;
or the modules of the branch are replaced by ones that do nothing, the last of them by a zero, where a module holds more than one branch (a
transformer layer).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from latprune.graph.recording import Info, ModuleCall, Node, Recording
from latprune.graph.surgery_plan import ModuleReplacement, PartReplacement, Removal, ReturnedTensors, TailStep

__all__ = ["Branch", "nonnegative", "realise", "short_name"]

_HEAVY = frozenset({"conv", "depthwise", "linear", "attention", "matmul", "softmax", "embedding"})
_ANY_SHAPE = frozenset(
    "relu gelu silu sigmoid tanh hardtanh hardswish leaky_relu mul div native_dropout clone detach alias _to_copy".split()
)
_ZERO_STAYS = frozenset(
    "view _unsafe_view reshape transpose permute t unsqueeze squeeze expand clone contiguous slice select cat alias detach _to_copy neg "
    "roll "
    "index constant_pad_nd native_dropout dropout mul div relu gelu silu tanh hardtanh".split()
)
_ZERO_BROADCASTS = frozenset(
    "expand clone contiguous alias detach _to_copy neg native_dropout dropout mul div relu gelu silu tanh hardtanh".split()
)
"""Of those the ones that take a zero of any shape, and give one that broadcasts as the real result would."""
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
class Branch:
    """A residual branch: its nodes, where it joins, and how it can be removed (or why it cannot).

    ``beside``: nodes that read the branch and lead to no output: what is kept of it, such as a slice of the keys in a cache.
    """

    name: str
    join: int
    operand: int
    fork: int
    nodes: frozenset[int]
    shortcut_nodes: frozenset[int]
    shortcut: str
    dropped_tail: frozenset[int] = frozenset()
    removal: Removal | None = None
    reason: str = ""
    parents: tuple[str, ...] = ()
    beside: frozenset[int] = frozenset()


def _depends_on_inputs(node: Node) -> bool:
    return any(o.dynamic for o in node.outputs)


def short_name(node: Node) -> str:
    """The operator's name without namespace and overload."""
    return node.op.split(".")[1]


def nonnegative(info: Info, nodes: list[Node]) -> bool:
    """Whether a tensor is provably free of negative values."""
    for _ in range(len(nodes)):
        if info.node < 0:
            return False
        node = nodes[info.node]
        if short_name(node) in _NONNEGATIVE:
            return True
        if not any(short_name(node).startswith(m) for m in _MOVES) or not node.inputs:
            return False
        info = node.inputs[0]
    return False


def realise(branch: Branch, recording: Recording, consumers: dict[int, list[int]], alive: set[int]) -> None:
    """Find how the branch can be removed in the user's class, or say why not; ``alive``: the nodes that the outputs depend on."""
    whole = _whole_module(branch, recording, consumers, alive)
    if not isinstance(whole, str):
        branch.removal = whole
        return
    parts = _parts(branch, recording, alive)
    if not isinstance(parts, str):
        branch.dropped_tail = frozenset()
        branch.removal = parts
        return
    branch.reason = f"{whole}; {parts}"


def _called_once(recording: Recording, path: str) -> bool:
    return recording.call_counts.get(path, 0) == 1


def _whole_module(branch: Branch, recording: Recording, consumers: dict[int, list[int]], alive: set[int]) -> ModuleReplacement | str:
    """The smallest module call that spans fork to join, if it holds nothing else that computes."""
    nodes, calls = recording.nodes, recording.module_calls
    inside = branch.nodes | branch.shortcut_nodes | {branch.join}
    low, high = min(inside), max(inside)
    spans = [c for c in calls if c.start <= low and high < c.stop and branch.fork < c.start and c.path]
    holder = nodes[branch.join].module
    if not spans:
        return f"the sum is written in the forward of '{holder}', which computes more than this branch"
    call = max(reversed(spans), key=lambda c: (c.start, -c.stop))  # of equal spans the innermost: it was entered last
    more = f"module '{call.path}' computes more than the branch, its shortcut and an activation"
    if not _called_once(recording, call.path):
        return f"module '{call.path}' is called several times"
    if call.structure is None or len(call.outputs) != 1:
        return more
    tail = _tail(branch, call, nodes, consumers)
    if tail is None:
        return more
    allowed = inside | set(tail)
    if any(n not in allowed and n in alive and _depends_on_inputs(nodes[n]) for n in range(call.start, call.stop)):
        return more
    source = nodes[branch.join].inputs[1 - branch.operand]
    entry = [k for k, i in enumerate(call.inputs) if i.node == branch.fork]
    if len({id(call.inputs[k]) for k in entry}) != 1:
        return f"the fork is no single argument of module '{call.path}'"
    start = call.inputs[entry[0]]
    shortcut = _module_chain(start, source, branch.shortcut_nodes, call, recording)
    if shortcut is None:
        return f"the shortcut is computed in the forward of '{call.path}', not by its modules"
    steps, dropped = _tail_steps(branch, tail, start, call, recording)
    if steps is None:
        return f"what follows the sum in '{call.path}' is no activation that can be kept alone"
    branch.dropped_tail = frozenset(dropped)
    return ModuleReplacement(
        module=call.path, argument=entry[0], shortcut=tuple(shortcut), tail=tuple(steps), output=_returned(call.structure)
    )


def _parts(branch: Branch, recording: Recording, alive: set[int]) -> tuple[PartReplacement, ...] | str:
    """The modules of the branch, each replaced by one that does nothing, and the last one by a zero."""
    nodes = recording.nodes
    calls = _calls_inside(branch, recording, alive)
    covered = {n for c in calls for n in range(c.start, c.stop)}
    glue = [n for n in sorted(branch.nodes) if n not in covered]
    holder = nodes[branch.join].module
    for n in glue:
        draft = nodes[n].kernel
        if draft is not None and draft.kind in _HEAVY:
            return f"a part of the branch ({nodes[n].op}) is computed in the forward of '{nodes[n].module}' itself"
    for call in calls:
        if len(call.outputs) > 1 and _read_elsewhere(call, branch, recording, alive, covered):
            return f"module '{call.path}' also returns values that are read outside of the branch"
    different = _difference(branch, recording, calls, set(glue))
    if different is not None:
        return different
    last, tail = _zero_call(branch, recording, calls, set(glue))
    if last is None:
        return f"no module in '{holder}' ends the branch"
    # A scalar zero broadcasts in the sum; where the sum is written into the branch's own tensor it must have that tensor's shape.
    scalar = all(_broadcasts(nodes[n]) for n in tail) and not (nodes[branch.join].op.startswith("aten.add_.") and branch.operand == 0)
    shaped = any(not _any_shape(nodes[n]) for n in glue if n not in tail)
    parts: list[PartReplacement] = []
    for call in calls:
        if not _called_once(recording, call.path):
            if any(nodes[n].kernel is not None and nodes[n].kernel.kind in _HEAVY for n in range(call.start, call.stop)):  # type: ignore[union-attr]
                return f"module '{call.path}' is called several times"
            continue
        entry = [k for k, i in enumerate(call.inputs) if i.node in branch.nodes or i.node == branch.fork]
        if call.structure is None or not entry:
            return f"module '{call.path}' returns something that cannot be stood in for"
        zero = "" if call is not last else "scalar" if scalar else "like"
        source, target = call.inputs[entry[0]], next((o for o in call.outputs if o.node in branch.nodes), call.outputs[0])
        if source.shape != target.shape and ((shaped and call is not last) or not scalar):
            return f"module '{call.path}' changes the shape inside the branch, and '{holder}' computes with it"
        parts.append(_stand_in(call, entry[0], recording, zero))
    return tuple(parts)


def _read_elsewhere(call: ModuleCall, branch: Branch, recording: Recording, alive: set[int], covered: set[int]) -> bool:
    """Whether something beside the branch reads what a module on it returns (a bias that later layers share)."""
    made = {id(o) for o in call.outputs if not any(o is i for i in call.inputs)}
    for node in recording.nodes[call.stop :]:
        goes = node.index == branch.join or node.index in branch.nodes or node.index in covered
        if not goes and (node.index in alive or not _depends_on_inputs(node)) and any(id(i) in made for i in node.inputs):
            return True
    return False


def _any_shape(node: Node) -> bool:
    """Whether an operation takes whatever shape a module's stand-in hands on."""
    return short_name(node).rstrip("_") in _ANY_SHAPE and all(math.prod(i.shape) == 1 for i in node.inputs if not i.dynamic)


def _broadcasts(node: Node) -> bool:
    """Whether a scalar zero goes through an operation to one that broadcasts in the sum."""
    name = short_name(node)
    written = name.endswith("_") and any(math.prod(i.shape) > 1 for i in node.inputs[1:])
    return name.rstrip("_") in _ZERO_BROADCASTS and not written


def _difference(branch: Branch, recording: Recording, calls: list[ModuleCall], glue: set[int]) -> tuple[PartReplacement, ...] | None:
    """A branch of the form ``scale * (f(x) - x)``: it is zero when every module of ``f`` hands its argument on."""
    nodes = recording.nodes
    at = nodes[branch.join].inputs[branch.operand]
    while at.node in glue and short_name(nodes[at.node]) not in ("sub", "sub_"):
        moving = [i for i in nodes[at.node].inputs if i.dynamic]
        if short_name(nodes[at.node]).rstrip("_") not in _ZERO_STAYS or len(moving) != 1:
            return None
        at = moving[0]
    if at.node not in glue or len(nodes[at.node].inputs) != 2:
        return None
    sides = nodes[at.node].inputs
    start = [k for k, i in enumerate(sides) if i.node == branch.fork]
    if len(start) != 1:
        return None
    fork, value = sides[start[0]], sides[1 - start[0]]
    parts: list[PartReplacement] = []
    while value is not fork:
        step = next((c for c in calls if any(o is value for o in c.outputs) and c.stop > c.start), None)
        if step is None or step.structure is None or not _called_once(recording, step.path) or value.shape != fork.shape:
            return None
        entry = [k for k, i in enumerate(step.inputs) if i.node in branch.nodes or i is fork]
        if len(entry) != 1:
            return None
        parts.append(_stand_in(step, entry[0], recording))
        value = step.inputs[entry[0]]
    heavy = {p.module for p in parts}
    return tuple(parts[::-1]) if all(c.path in heavy for c in calls if c.stop > c.start) else None


def _calls_inside(branch: Branch, recording: Recording, alive: set[int]) -> list[ModuleCall]:
    """The largest module calls whose computation lies inside the branch, and the empty ones that only hand its tensors on."""
    nodes = recording.nodes
    found: list[ModuleCall] = []
    first = bisect_left(recording.module_calls, branch.fork + 1, key=lambda c: c.start)
    for call in recording.module_calls[first:]:
        if call.start > branch.join:
            break
        if not call.path or call.stop > branch.join:
            continue
        if found and found[-1].start <= call.start < call.stop <= found[-1].stop:
            continue
        moving = [n for n in range(call.start, call.stop) if n in alive and _depends_on_inputs(nodes[n])]
        if moving and all(n in branch.nodes for n in moving):
            found.append(call)
        elif not moving and call.inputs and call.outputs and all(i.node in branch.nodes for i in call.inputs):
            inside = any(
                f.start <= call.start and call.stop <= f.stop and f.stop > f.start and call.path.startswith(f"{f.path}.") for f in found
            )
            if not inside:
                found.append(call)
    return found


def _zero_call(branch: Branch, recording: Recording, calls: list[ModuleCall], glue: set[int]) -> tuple[ModuleCall | None, list[int]]:
    """The call whose result reaches the sum by steps that keep zeros zero, and those steps."""
    nodes = recording.nodes
    at = nodes[branch.join].inputs[branch.operand]
    tail: list[int] = []
    while at.node in glue:
        node = nodes[at.node]
        moving = [i for i in node.inputs if i.dynamic]
        op = short_name(node).rstrip("_")
        if op not in _ZERO_STAYS or not moving or (op == "cat" and len(moving) > 1):
            return None, []
        tail.append(at.node)
        at = moving[0]
    ends = [c for c in calls if any(o is at for o in c.outputs) and c.stop > c.start and _called_once(recording, c.path)]
    return (ends[-1], tail) if ends else (None, [])


def _returned(structure: str | list[int | None]) -> ReturnedTensors:
    return None if isinstance(structure, str) else tuple(k is not None for k in structure)


def _stand_in(call: ModuleCall, argument: int, recording: Recording, zero: str = "") -> PartReplacement:
    """What takes a module's place: tensors that nothing reads are left out, arguments that it returns as they came are handed on."""
    assert call.structure is not None
    if isinstance(call.structure, str):
        return PartReplacement(module=call.path, argument=argument, zero=zero)
    read = {id(i) for n in recording.nodes[call.stop :] for i in n.inputs}
    given = {id(i): k for k, i in reversed(list(enumerate(call.inputs)))}
    output: list[bool] = []
    passed: list[tuple[int, int]] = []
    for place, k in enumerate(call.structure):
        used = k is not None and id(call.outputs[k]) in read
        output.append(used)
        if used and k is not None and id(call.outputs[k]) in given:
            passed.append((place, given[id(call.outputs[k])]))
    return PartReplacement(module=call.path, argument=argument, output=tuple(output), passed=tuple(passed), zero=zero)


def _tail(branch: Branch, call: ModuleCall, nodes: list[Node], consumers: dict[int, list[int]]) -> list[int] | None:
    """Nodes after the sum up to the call's only output, if each is an activation."""
    tail: list[int] = []
    if len(call.outputs) != 1:
        return None
    at = branch.join
    while call.outputs[0].node != at:
        following = [n for n in consumers.get(at, ()) if n < call.stop]
        if len(following) != 1 or short_name(nodes[following[0]]).rstrip("_") not in _TAIL:
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
) -> tuple[list[TailStep] | None, list[int]]:
    """The activations after the sum as steps to keep, and the ones that have no effect on the shortcut alone."""
    nodes = recording.nodes
    source = nodes[branch.join].inputs[1 - branch.operand]
    harmless = nonnegative(source if branch.shortcut_nodes else start, nodes)
    steps: list[TailStep] = []
    dropped: list[int] = []
    prefix = f"{call.path}."
    for n in tail:
        node = nodes[n]
        name = short_name(node).rstrip("_")
        if name == "relu" and harmless:
            dropped.append(n)
            continue
        harmless = harmless or name == "relu"
        owner = next(
            (c for c in recording.module_calls if c.start <= n < c.stop and c.stop - c.start == 1 and c.path.startswith(prefix)), None
        )
        if owner is not None:
            steps.append(TailStep(module=owner.path[len(prefix) :]))
        else:
            if any(not isinstance(v, (int, float, str, bool)) for v in node.literals):
                return None, []
            steps.append(TailStep(op=name, args=tuple(node.literals)))
    return steps, dropped
