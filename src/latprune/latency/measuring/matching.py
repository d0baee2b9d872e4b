"""From the steps that an engine ran to the kernels of the traced model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
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
    "linear": ("gemm", "matmul", "linear", "fullyconnected", "conv", "addmm"),
    "matmul": ("matmul", "gemm", "bmm"),
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


def match_profile(entries: Sequence[KernelTime], kernels: Sequence[Kernel], removed_blocks: Iterable[str] = ()) -> MatchedProfile:
    """Give each step's time to a kernel.

    A step goes to the kernel of its own module (the k-th contraction step of a module to its k-th call); a step that the engine made up,
    or whose module owns no kernel, is attached to the kernel that ran before it, whose output it moves.
    """
    removed = set(removed_blocks)
    by_module: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        if removed.isdisjoint(kernel.blocks) and kernel.kind not in _FOLLOWERS:
            by_module[kernel.module if kernel.module is not None else kernel.name].append(kernel)
    pending = {module: list(owned) for module, owned in by_module.items()}
    last_of: dict[str, str] = {}
    times: dict[str, float] = defaultdict(float)
    attached: dict[str, list[str]] = defaultdict(list)
    current: str | None = None
    unmatched = 0.0
    for entry in sorted(entries, key=lambda item: item.order):
        chosen = _take(entry, pending.get(entry.path, [])) if entry.path is not None else None
        if chosen is not None:
            current = chosen.name
            last_of[entry.path or ""] = current
            times[current] += entry.ms
            continue
        if entry.path in last_of:
            current = last_of[entry.path]
        if current is None:
            unmatched += entry.ms
        else:
            times[current] += entry.ms
            attached[current].append(entry.op)
    shares = {name: KernelShare(ms=ms, attached=tuple(attached[name])) for name, ms in times.items()}
    return MatchedProfile(shares=shares, unmatched_ms=unmatched)


def _take(entry: KernelTime, owned: list[Kernel]) -> Kernel | None:
    """The next kernel of the step's module that the step can be; it is taken off the list."""
    if not owned:
        return None
    op = entry.op.lower()
    for index, kernel in enumerate(owned):
        if any(word in op for word in _OPS.get(kernel.kind, ())):
            return owned.pop(index)
    # A kernel that is no contraction (an embedding, an interpolation) takes whatever the engine calls its module's step.
    for index, kernel in enumerate(owned):
        if kernel.kind not in _CONTRACTIONS and kernel.kind not in _OPS:
            return owned.pop(index)
    return None
