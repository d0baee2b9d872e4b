"""A made-up machine whose kernels have known costs, for tests that need no engine."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from latprune.graph.types import Block, ChannelGroup, Kernel, Piece, WidthAxis
from latprune.latency import ContextInfo, DesignPoint, KernelSample, NetworkSample, Target, kernel_signature
from latprune.latency.cache_effect import CacheEffect
from latprune.latency.features import kernel_traffic

CONTEXT = ContextInfo(target=Target(engine="torch"), version="1.0", machine="made up")
WIDTHS = {"stream": 128, "a": 96, "b": 96}
BLOCKS = {name: Block(name=name, kernels=(f"{name}.1", f"{name}.2")) for name in ("a", "b")}
GROUPS = {name: ChannelGroup(name=name, rows=1, columns=width, min_width=1, kind="channels", members=()) for name, width in WIDTHS.items()}
CONSTANT, OVERHEAD = 0.05, 0.002
STEADY = CacheEffect()


def axis(group: str) -> WidthAxis:
    return WidthAxis(pieces=(Piece(groups=(group,)),))


def kernel(name: str, axes: tuple[WidthAxis, ...], blocks: tuple[str, ...] = (), kind: str = "conv", stride: int = 1) -> Kernel:
    return Kernel(
        name=name, kind=kind, module=name, axes=axes, blocks=blocks, macs=9.0, attributes={"stride": stride, "input_shape": [1, 128, 8, 8]}
    )


KERNELS = {
    item.name: item
    for item in (
        kernel("stem", (WidthAxis(constant=3), axis("stream"))),
        kernel("a.1", (axis("stream"), axis("a")), ("a",)),
        kernel("a.2", (axis("a"), axis("stream")), ("a",)),
        kernel("b.1", (axis("stream"), axis("b")), ("b",)),
        kernel("b.2", (axis("b"), axis("stream")), ("b",)),
        kernel("head", (axis("stream"), WidthAxis(constant=10)), kind="linear"),
    )
}


def true_cost(name: str, sizes: tuple[int, ...], factors: Mapping[str, float] = {}) -> float:  # noqa: B006 - only read
    """Milliseconds: outputs in blocks of 16, inputs one by one, and a fixed part."""
    inputs, outputs = sizes
    if name == "head":
        return 0.004 + 2e-6 * inputs * outputs
    return factors.get(name, 1.0) * (0.006 + 4e-5 * inputs * (math.ceil(outputs / 16) * 16) / 16)


TRAFFIC = {name: kernel_traffic(kernel_signature(item), len(item.axes)) for name, item in KERNELS.items()}


class MadeUpMachine:
    """Samples networks as NetworkSampler does: noisy, with some kernels interrupted, at a speed that changes from network to network."""

    def __init__(
        self,
        seed: int = 0,
        *,
        noise: float = 0.02,
        interrupted: float = 0.01,
        timer: float = 0.0,
        layout_changes: bool = False,
        factors: Mapping[str, float] = {},  # noqa: B006
        beside: Mapping[str, tuple[str, float]] = {},  # noqa: B006
        added: Mapping[str, tuple[str, float]] = {},  # noqa: B006
        caches: CacheEffect = STEADY,
    ) -> None:
        """``beside``: kernel -> (block, what the kernel costs where that block is gone, as a factor). ``added``: kernel -> (block,
        milliseconds of a step that runs on the kernel's output where that block is gone, at the dense width). ``caches``: what the
        latency of the network around them makes of the kernels.

        With ``layout_changes`` a kernel whose last size is no multiple of 8
        shows two more steps in its profile, each with the timer's cost.
        """
        self.layout_changes = layout_changes
        self.random = np.random.default_rng(seed)
        self.noise, self.interrupted, self.timer, self.factors = noise, interrupted, timer, factors
        self.beside = beside
        self.added = added
        self.caches = caches

    def cost(self, name: str, sizes: tuple[int, ...], removed: tuple[str, ...], share: float = 1.0) -> float:
        """True milliseconds of a kernel in a network without ``removed`` that takes ``share`` of the dense one's latency."""
        block, factor = self.beside.get(name, ("", 1.0))
        around = float(self.caches.factor(share, TRAFFIC[name].weight_share(sizes)))
        gone, added = self.added.get(name, ("", 0.0))
        step = added * sizes[-1] / KERNELS[name].axes[-1].size(WIDTHS) if gone in removed else 0.0
        return true_cost(name, sizes, self.factors) * (factor if block in removed else 1.0) * around + step

    def latency(self, widths: Mapping[str, int], removed: tuple[str, ...] = ()) -> float:
        """True end-to-end milliseconds: what a network takes decides what its kernels cost."""
        dense, total = self._total(WIDTHS, (), 1.0), self._total(widths, removed, 1.0)
        for _ in range(40 if self.caches else 0):
            total = self._total(widths, removed, total / dense)
        return total

    def _total(self, widths: Mapping[str, int], removed: tuple[str, ...], share: float) -> float:
        total = CONSTANT
        for name, item in KERNELS.items():
            if not set(item.blocks) & set(removed):
                sizes = tuple(one.size(widths, removed) for one in item.axes)
                total += self.cost(name, sizes, removed, share) + OVERHEAD
        return total

    def sample(self, point: DesignPoint) -> NetworkSample:
        widths = {**WIDTHS, **point.widths}
        speed = float(np.exp(self.random.normal(0.0, 0.1)))
        share = self.latency(widths, point.removed) / self.latency(WIDTHS)
        kernels = []
        for name, item in KERNELS.items():
            if set(item.blocks) & set(point.removed):
                continue
            sizes = tuple(one.size(widths, point.removed) for one in item.axes)
            steps = 3 if self.layout_changes and sizes[-1] % 8 else 1
            ms = self.cost(name, sizes, point.removed, share) * float(np.exp(self.random.normal(0.0, self.noise))) + self.timer * steps
            if self.random.uniform() < self.interrupted:
                ms *= 5.0
            kernels.append(KernelSample(kernel=name, signature=kernel_signature(item), sizes=sizes, ms=ms * speed, steps=steps))
        return NetworkSample(
            fingerprint="made up",
            widths=widths,
            removed=point.removed,
            ms=self.latency(widths, point.removed) * speed * float(np.exp(self.random.normal(0.0, 0.005))),
            reference_ms=self.latency(WIDTHS) * speed,
            kernels=tuple(kernels),
            runs=10,
            spread=0.0,
            created=0.0,
            extra={},
        )
