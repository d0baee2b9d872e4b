"""Engines without a profile: the modules' own times stand in for it, and whole networks put the surfaces right."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latprune.graph import trace
from latprune.latency import (
    CompiledNetwork,
    DesignPoint,
    KernelSample,
    LatencyTables,
    NetworkSample,
    Residual,
    TableStats,
    Target,
    design_points,
)
from latprune.latency.engines import OpenVinoEngine
from latprune.latency.measuring.module_timers import ModuleTimed, Profiler
from latprune.latency.measuring.sampling import NetworkSampler
from latprune.latency.predicting.kernel_rows import training_networks
from latprune.latency.samples import MODULE_TIMERS, SWEEP
from latprune.latency.tabulating.fitting import fit_tables, predicted_and_measured
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, WIDTHS, MadeUpMachine


class Unprofiled(OpenVinoEngine):
    """An engine that tells nothing of what it runs."""

    name = "unprofiled"
    profiles_kernels = False

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        assert not profile, "an engine without a profile must not be asked for one"
        return super().compile(model, example_inputs, target)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 8, 1)
    )
    return model.eval(), torch.randn(1, 3, 24, 24)


def test_module_times_add_up_to_the_engines_latency() -> None:
    model, x = small()
    profiler = Profiler(Unprofiled(), Target(engine="unprofiled"))
    with profiler.compile(model, x) as network:
        entries = network.profile(20)
        whole = float(np.median([network.timed_run() for _ in range(40)]))
        assert network.outputs()[0].shape == (1, 8, 24, 24)
    assert list(profiler.extra) == [MODULE_TIMERS] and profiler.extra[MODULE_TIMERS] > 0.0
    assert {"0", "3", "5"} <= {entry.path for entry in entries}
    # Loose on purpose: other processes may run meanwhile.
    assert 0.2 * whole < sum(entry.ms for entry in entries) < 5.0 * whole


def test_networks_of_one_profiler_share_one_scale() -> None:
    model, x = small()
    profiler = Profiler(Unprofiled(), Target(engine="unprofiled"))
    with profiler.compile(model, x) as first, profiler.compile(model[:3], x) as second:
        assert isinstance(first, ModuleTimed) and isinstance(second, ModuleTimed)
        first.profile(10)
        ratio = first.scale.ratio
        assert ratio is not None and ratio > 0.0
        second.profile(10)
        assert second.scale.ratio == ratio


def test_a_scale_can_be_set_by_a_network_that_is_no_sample() -> None:
    model, x = small()
    profiler = Profiler(Unprofiled(), Target(engine="unprofiled"))
    profiler.set_scale(model, x, 10)
    with profiler.compile(model, x) as network:
        assert isinstance(network, ModuleTimed) and network.scale.ratio is not None


def test_an_engines_own_profile_is_left_as_it_is() -> None:
    model, x = small()
    profiler = Profiler(OpenVinoEngine(), Target())
    with profiler.compile(model, x) as network:
        network.profile(5)
        assert not isinstance(network, ModuleTimed) and not profiler.extra


def test_samples_say_that_modules_were_timed() -> None:
    model, x = small()
    graph = trace(model, x)
    sampler = NetworkSampler(model, graph, x, Target(engine="unprofiled"), Unprofiled())
    try:
        points = islice(design_points(list(graph.groups.values()), list(graph.blocks.values())), 2)
        taken = [sampler.sample(point) for point in points]
    finally:
        sampler.close()
    assert all(sample.extra[MODULE_TIMERS] for sample in taken)
    assert {kernel.kernel for kernel in taken[0].kernels} >= {"0", "3", "5"}


def misjudged(sample: NetworkSample, factors: dict[str, float], *, to_whole: bool = False) -> NetworkSample:
    """The sample with kernels that were timed by something else, of which no two are alike; with ``to_whole`` their sum was then brought to
    the network's own latency.
    """
    scale = 1.0
    if to_whole:
        scale = (sample.ms or 0.0) / sum(kernel.ms * factors[kernel.kernel] for kernel in sample.kernels)
    wrong = tuple(
        dataclasses.replace(kernel, signature=own(kernel), ms=kernel.ms * scale * factors[kernel.kernel]) for kernel in sample.kernels
    )
    return dataclasses.replace(sample, kernels=wrong, extra={MODULE_TIMERS: 1.0})


def own(kernel: KernelSample) -> str:
    """A signature that no other kernel has."""
    entry = json.loads(kernel.signature)
    entry["attributes"]["place"] = kernel.kernel
    return json.dumps(entry, sort_keys=True)


def tables_of(samples: list[NetworkSample]) -> LatencyTables:
    return fit_tables(samples, list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=TableStats())


def test_whole_networks_put_surfaces_of_modules_right() -> None:
    machine = MadeUpMachine(0)
    samples = [machine.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values())), 160)]
    random = np.random.default_rng(0)
    factors = {name: float(np.exp(random.normal(0.0, 0.4))) for name in KERNELS}
    errors = []
    for to_whole in (False, True):
        seen = [misjudged(sample, factors, to_whole=to_whole) for sample in samples]
        predicted, measured = predicted_and_measured(tables_of(seen[:96]), seen[96:])
        errors.append(float(np.mean(np.abs(predicted / measured - 1.0))))
    assert errors[0] < 0.01
    # One scale for all networks is what lets them be compared.
    assert errors[0] < 0.3 * errors[1]


def test_samples_of_several_processes_are_brought_to_one_scale() -> None:
    machine = MadeUpMachine(3)
    samples = [machine.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values())), 48)]
    ratios = [(0.8, 1.0, 1.3)[index // 16] for index in range(48)]

    def taken(sample: NetworkSample, ratio: float) -> NetworkSample:
        kernels = tuple(dataclasses.replace(kernel, ms=kernel.ms * ratio) for kernel in sample.kernels)
        return dataclasses.replace(sample, kernels=kernels, extra={MODULE_TIMERS: ratio})

    same = tables_of([taken(sample, 1.0) for sample in samples])
    mixed = tables_of([taken(sample, ratio) for sample, ratio in zip(samples, ratios, strict=True)])
    for widths in ({}, {"stream": 64}, {"a": 16, "b": 48}):
        assert mixed.predict(widths) == pytest.approx(same.predict(widths), rel=1e-6)


def test_modules_times_train_the_predictor_as_they_are() -> None:
    """They do not add up to the network's latency, which says nothing against them."""
    sample = MadeUpMachine(3, interrupted=0.0).sample(DesignPoint(widths=WIDTHS))
    total = sum(kernel.ms for kernel in sample.kernels)
    sweep = dataclasses.replace(sample, ms=0.4 * total, extra={MODULE_TIMERS: 1.0, SWEEP: {}})
    (network,) = training_networks([sweep])
    assert network.trusted and float(np.exp(network.target).sum()) == pytest.approx(total, rel=1e-9)
    profiled = dataclasses.replace(sweep, extra={SWEEP: {}})
    assert not training_networks([profiled])[0].trusted
