"""A small residual network, made-up latency tables of it, and an exploration of it, for tests that need no engine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice

import numpy as np
import torch

import latprune
from latprune.graph.types import Kernel
from latprune.importance import MagnitudeConfig
from latprune.latency import (
    ContextInfo,
    KernelPredictor,
    KernelSample,
    LatencyTables,
    NetworkSample,
    Residual,
    TableStats,
    Target,
    design_points,
    kernel_signature,
)
from latprune.latency.features import LAYERS
from latprune.latency.measuring.signature import network_fingerprint
from latprune.latency.tabulating.fitting import fit_tables, predicted_and_measured
from latprune.pruning import Exploration
from latprune.zoo import digits_resnet

X = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
TARGET = Target(engine="onnxruntime")
BY_MAGNITUDE = latprune.MDP(score=MagnitudeConfig())


def network() -> torch.nn.Module:
    """Three stages of two blocks, with norms that are not at their start."""
    torch.manual_seed(0)
    model = digits_resnet(blocks=2, widths=(16, 16, 32))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def batches(count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 1, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator)) for _ in range(count)]


def cost(kernel: Kernel, sizes: Sequence[int]) -> float:
    """Milliseconds of a made-up layer."""
    *inputs, outputs = sizes
    return 0.004 + 1e-8 * kernel.macs * math.prod(inputs) * 8 * math.ceil(outputs / 8)


def made_up_latency(model: torch.nn.Module) -> float:
    """Milliseconds that a network, dense or cut, takes on the made-up machine."""
    graph = latprune.trace(model, X)
    dense = graph.dense_widths()
    layers = [kernel for kernel in graph.kernels.values() if kernel.kind in LAYERS]
    return 0.02 + sum(cost(kernel, [axis.size(dense) for axis in kernel.axes]) for kernel in layers)


@cache
def without_kernels(*, overhead_ms: float = 0.0) -> KernelPredictor:
    """A predictor that knows no kernel: for what only keeps, tells or compares predictors, at no cost."""
    return KernelPredictor(
        context=CONTEXT,
        families={},
        costing=frozenset(),
        constant_ms=1.0,
        overhead_ms=overhead_ms,
        spread=0.1,
        agreement=0.0,
        typical_weights=1e4,
        samples=0,
    )


def made_up_samples(target: Target = TARGET) -> list[NetworkSample]:
    """Made-up measurements: outputs in steps of 8, inputs one by one, a fixed part, and 2 % of noise."""
    graph = latprune.trace(network(), X)
    kernels, dense = list(graph.kernels.values()), graph.dense_widths()
    layers = [kernel for kernel in kernels if kernel.kind in LAYERS]
    random = np.random.default_rng(0)

    def sample(point):
        widths = {**dense, **point.widths}
        found = []
        for kernel in layers:
            if not set(kernel.blocks) & set(point.removed):
                sizes = tuple(axis.size(widths, point.removed) for axis in kernel.axes)
                ms = cost(kernel, sizes) * float(np.exp(random.normal(0.0, 0.02)))
                found.append(KernelSample(kernel=kernel.name, signature=kernel_signature(kernel), sizes=sizes, ms=ms))
        whole = sum(cost(graph.kernels[one.kernel], one.sizes) for one in found) + 0.02
        reference = sum(cost(kernel, tuple(axis.size(dense) for axis in kernel.axes)) for kernel in layers) + 0.02
        return NetworkSample(
            fingerprint=network_fingerprint(kernels, X, target),
            widths=widths,
            removed=point.removed,
            ms=whole * float(np.exp(random.normal(0.0, 0.01))),
            reference_ms=reference,
            kernels=tuple(found),
            runs=10,
            spread=0.0,
            created=0.0,
            extra={},
        )

    return [sample(point) for point in islice(design_points(list(graph.groups.values()), list(graph.blocks.values())), 72)]


CONTEXT = ContextInfo(target=TARGET, version="1.0", machine="made up")


@cache
def made_up_tables(target: Target = TARGET) -> LatencyTables:
    """Tables fitted to :func:`made_up_samples`."""
    graph = latprune.trace(network(), X)
    kernels, samples = list(graph.kernels.values()), made_up_samples(target)
    context = replace(CONTEXT, target=target)

    def fit(residual):
        return fit_tables(samples[:48], kernels, list(graph.groups.values()), context, residual=residual, stats=TableStats(networks=48))

    return fit(Residual.of(*predicted_and_measured(fit(Residual.of([], [])), samples[48:])))


@cache
def exploration(resource: str = "flops", points: int = 24) -> Exploration:
    """Counted, or by the made-up tables; nothing is measured."""
    tables = made_up_tables() if resource == "latency" else None
    return latprune.explore(
        network(),
        X,
        resource=resource,
        points=points,
        target=TARGET,
        method=BY_MAGNITUDE,
        tables=tables,
        measure_latency=False,
        constructor="nets.py:net",
        command=("--model", "nets.py:net", "--input", "1x1x32x32", "--method-arg", "note=it's"),
    )


@cache
def elsewhere(points: int = 24) -> Exploration:
    """The same network for another target, by a method that removes no block, so that its networks are others."""
    tables = dataclasses.replace(made_up_tables(), target=Target(engine="openvino", batch=1, threads=1))
    return latprune.explore(
        network(),
        X,
        resource="latency",
        points=points,
        method=latprune.MDP(blocks=False, score=MagnitudeConfig()),
        tables=tables,
        measure_latency=False,
    )
