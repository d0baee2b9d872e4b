"""From the steps that an engine ran to the kernels of the traced model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from latprune.graph.types import Kernel
from latprune.latency.engines.base import KernelTime

__all__ = ["KernelShare", "MatchedProfile", "match_profile"]

_CONTRACTIONS = ("conv", "linear", "depthwise", "attention", "matmul")
_FOLLOWERS = ("activation", "elementwise")
"""Kinds that always count to the kernel before them: engines fuse them at will, and their width is that kernel's output."""
_OPS = {
    "conv": ("conv",),
    "depthwise": ("conv",),
    "linear": ("gemm", "matmul", "linear", "fullyconnected", "conv", "addmm", "einsum"),
    "matmul": ("matmul", "gemm", "bmm", "einsum", "fullyconnected"),
    # OpenVINO runs a whole attention as one of its generated subgraphs.
    "attention": ("matmul", "attention", "softmax", "sdpa", "mha", "subgraph"),
    "norm": ("norm", "mvn"),
    "pool": ("pool", "reduce"),
    "reduce": ("reduce", "pool"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShare:
    """What one kernel cost in one profile.

    Attributes:
        ms: Its own step plus everything that was attached to it, milliseconds.
        attached: Kinds of the attached steps (a reorder, an addition that was not fused).
    """

    ms: float
    attached: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many steps of the profile it is made of."""
        return 1 + len(self.attached)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedProfile:
    """A profile told by kernels.

    Attributes:
        shares: Kernel name -> its share. A kernel that the engine fused into another one is not in it.
        unmatched_ms: Time before the first kernel that is known; it belongs to the network's constant.
    """

    shares: dict[str, KernelShare]
    unmatched_ms: float


def match_profile(
    entries: Sequence[KernelTime],
    kernels: Sequence[Kernel],
    removed_blocks: Iterable[str] = (),
    widths: Mapping[str, int] | None = None,
) -> MatchedProfile:
    """Give each step's time to a kernel.

    A step goes to the kernel of its own module (the k-th contraction step of a module to its k-th call); a step that the engine made up,
    or whose module owns no kernel, is attached to the kernel that ran before it, whose output it moves. The time of a step that computes
    several kernels (``KernelTime.computes``) is divided among them by their multiply-adds at ``widths``, or equally without ``widths``:
    what a product costs that shares its step with others is not measured, and the calibration on whole networks corrects the division.

    Args:
        entries: The engine's steps.
        kernels: The model's kernels, in order.
        removed_blocks: Blocks that the network lacks.
        widths: Group name -> width of the network.
    """
    removed = set(removed_blocks)
    pending: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        if removed.isdisjoint(kernel.blocks) and kernel.kind not in _FOLLOWERS:
            for path in _places(kernel):
                pending[path].append(kernel)
    last_of: dict[str, str] = {}
    times: dict[str, float] = defaultdict(float)
    attached: dict[str, list[str]] = defaultdict(list)
    current: str | None = None
    unmatched = 0.0
    for entry in sorted(entries, key=lambda item: item.order):
        computed = _whole(entry.path or "", pending) if entry.whole else _computed(entry.computes, pending)
        if computed:
            for kernel, part in zip(computed, _parts(computed, widths, removed), strict=True):
                current = kernel.name
                last_of |= dict.fromkeys(_places(kernel), current)
                times[current] += entry.ms * part
            continue
        chosen = _take(entry, pending) if entry.path is not None else None
        if chosen is not None:
            current = chosen.name
            last_of[entry.path or ""] = current
            times[current] += entry.ms
            continue
        # What the model's own forward runs is spread over all of it.
        if entry.path and entry.path in last_of:
            current = last_of[entry.path]
        if current is None:
            unmatched += entry.ms
        else:
            times[current] += entry.ms
            attached[current].append(entry.op)
    shares = {name: KernelShare(ms=ms, attached=tuple(attached[name])) for name, ms in times.items()}
    return MatchedProfile(shares=shares, unmatched_ms=unmatched)


def _places(kernel: Kernel) -> tuple[str, ...]:
    """Paths that an engine may name the kernel's step after: the module that runs it, and the one that holds its weight."""
    owner = kernel.module if kernel.module is not None else kernel.name
    return (owner,) if kernel.caller is None else (kernel.caller, owner)


def _pop(kernel: Kernel, pending: Mapping[str, list[Kernel]]) -> Kernel:
    """The kernel, taken off every list."""
    for path in _places(kernel):
        pending[path].remove(kernel)
    return kernel


def _computed(paths: Iterable[str], pending: Mapping[str, list[Kernel]]) -> list[Kernel]:
    """The next contraction of each path; they are taken off the lists."""
    found = []
    for path in paths:
        chosen = next((kernel for kernel in pending.get(path, ()) if kernel.kind in _CONTRACTIONS), None)
        if chosen is not None:
            found.append(_pop(chosen, pending))
    return found


def _whole(path: str, pending: Mapping[str, list[Kernel]]) -> list[Kernel]:
    """The contractions of one call of a module; they are taken off the lists."""
    calls: dict[str, Kernel] = {}
    for kernel in pending.get(path, ()):
        if kernel.kind in _CONTRACTIONS:
            # ``name#k`` is the k-th further call of what ``name`` is.
            calls.setdefault(kernel.name.partition("#")[0], kernel)
    return [_pop(kernel, pending) for kernel in calls.values()]


def _parts(kernels: Sequence[Kernel], widths: Mapping[str, int] | None, removed: set[str]) -> list[float]:
    """Shares of a step's time, which sum to one: by multiply-adds at ``widths``."""
    if widths is None or len(kernels) == 1:
        return [1.0 / len(kernels)] * len(kernels)
    work = [max(kernel.macs * math.prod(axis.size(widths, removed) for axis in kernel.axes), 1.0) for kernel in kernels]
    return [value / sum(work) for value in work]


def _take(entry: KernelTime, pending: Mapping[str, list[Kernel]]) -> Kernel | None:
    """The next kernel of the step's module that the step can be; it is taken off the lists."""
    owned = pending.get(entry.path or "", [])
    op = entry.op.lower()
    for kernel in owned:
        if any(word in op for word in _OPS.get(kernel.kind, ())):
            return _pop(kernel, pending)
    # A kernel that is no contraction (an embedding, an interpolation) takes whatever the engine calls its module's step.
    for kernel in owned:
        if kernel.kind not in _CONTRACTIONS and kernel.kind not in _OPS:
            return _pop(kernel, pending)
    return None
