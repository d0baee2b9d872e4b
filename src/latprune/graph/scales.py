"""Scales that follow a size: ``head_dim ** -0.5`` would change when heads shrink, but attention keeps its original scale.

Where the scaled tensor comes from weights by steps that are linear in them, surgery multiplies those weights so that the product stays
as it was. Here the weights are found, backwards from the scaled tensor. Where there are none, the size must not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

from latprune.graph.provenance import Expression
from latprune.graph.surgery_plan import ScaleTarget

if TYPE_CHECKING:
    from latprune.graph.labels import LabelSpace
    from latprune.graph.recording import Info, Node

__all__ = ["Candidate", "ScaleUse", "absorbed", "find_candidate", "readers_of"]

IntArray = npt.NDArray[np.int64]

_MOVES = frozenset(
    "view _unsafe_view reshape transpose permute t unsqueeze squeeze expand clone contiguous slice select split split_with_sizes unbind "
    "chunk cat stack alias detach _to_copy neg roll index constant_pad_nd native_dropout dropout".split()
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScaleUse:
    """The run multiplied a tensor by ``base ** exponent``; scaling all ``targets`` scales that tensor."""

    targets: tuple[ScaleTarget, ...]
    base: Expression
    exponent: float


class Run(Protocol):
    """What is read of a run: its nodes so far, and the labels."""

    nodes: list[Node]
    space: LabelSpace
    grouped: dict[str, torch.Tensor]


@dataclass(slots=True, eq=False)
class Candidate:
    """A tensor that may be scaled through its weights, if nothing else reads what lies between.

    Attributes:
        targets: The weights.
        tensor: The tensor.
        start: Number of nodes recorded before it is scaled.
        way: Node between weights and tensor -> labels of its results that are on the way.
    """

    targets: tuple[ScaleTarget, ...]
    tensor: Info
    start: int
    way: dict[int, IntArray | None]


def find_candidate(recorder: Run, info: Info) -> Candidate | None:
    """Weights whose scaling scales the tensor of ``info``, or None where the way back is not linear or not theirs alone."""
    found: dict[tuple[str, int], IntArray | None] = {}
    way: dict[int, IntArray | None] = {}
    if not _walk(recorder, info, None, found, way, 0) or not found:
        return None  # nothing found either where the tensor comes from parameters alone
    targets = tuple(ScaleTarget(tensor=n, dim=d, positions=p) for (n, d), p in found.items())
    return Candidate(targets=targets, tensor=info, start=len(recorder.nodes), way=way)


Readers = dict[int, list[tuple["Node", "Info"]]]
"""Node -> the nodes that read its results, and what they read."""


def readers_of(nodes: list[Node]) -> Readers:
    """Who reads the results of each node on the way to results that depend on the inputs."""
    found: Readers = {}
    for node in nodes:
        if any(o.dynamic for o in node.outputs):
            for info in node.inputs:
                found.setdefault(info.node, []).append((node, info))
    return found


def absorbed(readers: Readers, candidates: list[Candidate]) -> Candidate | None:
    """The first candidate of which nothing else reads what would be scaled (a position bias computed from the queries would)."""
    for candidate in candidates:
        way = candidate.way
        others = [(n, i) for k in way for n, i in readers.get(k, ()) if n.index not in way]
        scaling = min((n.index for n, i in others if i is candidate.tensor and n.index >= candidate.start), default=-1)
        if not any(n.index != scaling and _reads(n, i, way[i.node]) for n, i in others):
            return candidate
    return None


def _reads(node: Node, info: Info, wanted: IntArray | None) -> bool:
    """Whether a node reads any of the ``wanted`` labels of a tensor; one that only moves places may pick others (keys beside queries)."""
    moving = node.op.split(".")[1].rstrip("_") in _MOVES
    parts = [_raw(i) for i in (node.outputs if moving else [info])]
    return wanted is None or any(p is None or bool(np.isin(p, wanted).any()) for p in parts)


def _raw(info: Info) -> IntArray | None:
    if not info.fields:
        return None
    return np.unique(np.concatenate([f.reshape(-1).numpy() for f in info.fields]))


def _walk(
    recorder: Run,
    info: Info,
    wanted: IntArray | None,
    found: dict[tuple[str, int], IntArray | None],
    way: dict[int, IntArray | None],
    depth: int,
) -> bool:
    if depth > 60 or info.node < 0:
        return False
    own = _raw(info)
    if own is not None:
        wanted = own if wanted is None or not np.isin(wanted, own).any() else wanted[np.isin(wanted, own)]
    before = way.get(info.node)
    way[info.node] = wanted if before is None or wanted is None else np.union1d(before, wanted)
    node = recorder.nodes[info.node]
    op = node.op.split(".")[1].rstrip("_")
    dynamic = [i for i in node.inputs if i.dynamic]
    if node.kernel is not None and node.kernel.weight is not None and node.kernel.kind in ("linear", "conv", "norm", "depthwise"):
        return _weights(recorder, info.node, wanted, found)
    if op in _MOVES:
        return all([_walk(recorder, i, wanted, found, way, depth + 1) for i in dynamic if i.shape and np.prod(i.shape)])
    if op in ("add", "sub"):
        return len(dynamic) == len(node.inputs) and all([_walk(recorder, i, wanted, found, way, depth + 1) for i in dynamic])
    if op in ("mul", "div"):
        named = [i for i in node.inputs if i.name is not None and not i.dynamic]
        if named and op == "mul" and _vector(recorder, named[0], found):
            return True
        carrying = [i for i in dynamic if wanted is not None and (raw := _raw(i)) is not None and np.isin(raw, wanted).any()]
        chosen = carrying[:1] if carrying else dynamic[:1]
        return bool(chosen) and len(carrying) < 2 and _walk(recorder, chosen[0], wanted, found, way, depth + 1)
    if op in ("bmm", "mm", "matmul", "baddbmm") and len(dynamic) == 2:
        return op != "baddbmm" and _walk(recorder, dynamic[0], None, found, way, depth + 1)
    return False


def _once(recorder: Run, name: str) -> bool:
    """Whether a parameter is read by one computing operation only."""
    return sum(1 for n in recorder.nodes if any(i.name == name for i in n.inputs) and any(i.dynamic for i in n.inputs)) == 1


def _weights(recorder: Run, index: int, wanted: IntArray | None, found: dict[tuple[str, int], IntArray | None]) -> bool:
    node = recorder.nodes[index]
    assert node.kernel is not None and node.kernel.weight is not None
    weight = node.kernel.weight
    if not _once(recorder, weight):
        return False
    composed = [i for i in node.inputs if i.name is None and not i.dynamic and len(i.shape) == 1]
    if composed and (node.kernel.kind == "norm" or len(composed) > 1):
        return False
    others = [
        i.name for i in node.inputs if i.name is not None and i.name != weight and len(i.shape) == 1 and not i.name.endswith("running_mean")
    ]
    if node.kernel.kind == "norm":
        if "batch_norm" in node.op:
            return False
        for name in [weight, *others]:
            found[(name, 0)] = None
        return True
    if wanted is None:
        return False
    for r in recorder.space.ranges:
        if r.kind == "tensor" and r.tensor == weight and not (r.dim == 1 and weight in recorder.grouped):
            at = wanted[(wanted >= r.start) & (wanted < r.stop)] - r.start
            if at.size:
                for name, dim in [(weight, r.dim), *((n, 0) for n in others)]:
                    _add(found, name, dim, at)
                return all([_parts_of_bias(recorder, i, at, found) for i in composed])
    return False


def _add(found: dict[tuple[str, int], IntArray | None], name: str, dim: int, positions: IntArray) -> None:
    before = found.get((name, dim))
    found[(name, dim)] = positions if before is None else np.union1d(before, positions)


def _parts_of_bias(recorder: Run, bias: Info, at: IntArray, found: dict[tuple[str, int], IntArray | None]) -> bool:
    """A bias that the forward joins from several parameters: the places of those that stand at ``at``."""
    if len(bias.fields) != 1 or bias.fields[0].numel() != bias.shape[0] or not recorder.nodes[bias.node].op.startswith("aten.cat"):
        return False
    left = np.unique(bias.fields[0].numpy()[at])
    for r in recorder.space.ranges:
        places = left[(left >= r.start) & (left < r.stop)] - r.start
        if r.kind == "tensor" and places.size:
            if sum(any(i.name == r.tensor for i in n.inputs) for n in recorder.nodes) != 1:
                return False
            _add(found, r.tensor, r.dim, places)
            left = left[(left < r.start) | (left >= r.stop)]
    return not left.size


def _vector(recorder: Run, info: Info, found: dict[tuple[str, int], IntArray | None]) -> bool:
    """A parameter that multiplies place by place (the gain of a hand-written norm)."""
    if info.name is None or not _once(recorder, info.name):
        return False
    found[(info.name, 0)] = None
    return True
