"""Measuring one width-varied network: prune a copy, convert it, time it beside the dense network, and take its profile."""

from __future__ import annotations

import contextlib
import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from latprune.copying import copied
from latprune.graph.types import Selection
from latprune.latency.engines import CompiledNetwork, Engine
from latprune.latency.machine import clock_information
from latprune.latency.measuring.design import DesignPoint, pick_units
from latprune.latency.measuring.matching import MatchedProfile, match_profile
from latprune.latency.measuring.module_timers import Profiler
from latprune.latency.measuring.protocol import settle, timed_block, warm_up
from latprune.latency.measuring.signature import kernel_signature, network_fingerprint
from latprune.latency.measuring.statistics import median_error
from latprune.latency.measuring.unseen import price_unseen, unseen_layers
from latprune.latency.samples import RATIO_ERROR, KernelSample, NetworkSample
from latprune.latency.target import Target

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["Beside", "NetworkSampler", "profile_runs", "selection_for", "time_beside"]

_ROUNDS = 6
_PRECISE, _PATIENCE = 0.015, 2.0
"""Standard error of a ratio, relative, that is precise enough, and seconds after which it has to do as it is."""
_TRIES = 3
_SAME_SPEED = 0.1
"""Logarithm of the dense network's latency after a profile over that before it, beyond which both are taken again."""


def selection_for(graph: ModelGraph, point: DesignPoint) -> Selection:
    """The selection that keeps the first units of each row at the point's widths."""
    kept = {name: pick_units(group, point.widths.get(name, group.columns)) for name, group in graph.groups.items()}
    return Selection(kept=kept, removed_blocks=frozenset(point.removed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A network timed beside the reference.

    Attributes:
        ms: Its latency at the reference's median speed, milliseconds.
        reference_ms: The reference's latency, milliseconds.
        ratio_error: Standard error of the one over the other, relative.
        spread: Interquartile range of the reference's rounds over their median.
        runs: Inferences made.
    """

    ms: float
    reference_ms: float
    ratio_error: float
    spread: float
    runs: int


def time_beside(reference: CompiledNetwork, reference_ms: float, network: CompiledNetwork) -> Beside:
    """Medians over short rounds that alternate between the two: six, and on a machine that others disturb more, until the ratio is known to
    1.5 % or two seconds have passed.
    """
    turns = ((reference, reference_ms), (network, max(warm_up(network, block=3, max_seconds=1.0), 1e-3)))
    medians: tuple[list[float], list[float]] = ([], [])
    runs, error = 0, float("inf")
    end = time.perf_counter() + _PATIENCE
    while len(medians[0]) < _ROUNDS or (error > _PRECISE and time.perf_counter() < end):
        for values, (held, ms) in zip(medians, turns, strict=True):
            runs += settle(held, ms)
            times, _ = timed_block(held, _block(ms))
            runs += len(times)
            values.append(float(np.median(times)))
        error = median_error(np.log(medians[1]) - np.log(medians[0]))
    level = float(np.median(medians[0]))
    ratio = float(np.median(np.asarray(medians[1]) / np.asarray(medians[0])))
    quartiles = np.quantile(medians[0], [0.25, 0.75])
    return Beside(ms=ratio * level, reference_ms=level, ratio_error=error, spread=float((quartiles[1] - quartiles[0]) / level), runs=runs)


def _block(ms: float) -> int:
    """Runs of one block: 8 ms' worth, at most 30.

    One run is enough of a slow network: once it has settled, runs of one block differ less than blocks do.
    """
    return int(np.clip(round(8.0 / ms), 1, 30))


def profile_runs(ms: float) -> int:
    """Runs that a profile of a network of this latency takes: a quarter of a second's worth, 15 to 120."""
    return int(np.clip(round(250.0 / max(ms, 1e-3)), 15, 120))


class NetworkSampler:
    """Takes samples of width-varied copies of one model on one target. The dense network stays compiled beside them as the reference.

    Args:
        model: The dense model; it is never changed.
        graph: Its trace.
        example_inputs: Inputs to run.
        target: Conditions.
        engine: The target's engine.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph, example_inputs: Any, target: Target, engine: Engine) -> None:
        self._model = model
        self._graph = graph
        self._kernels = list(graph.kernels.values())
        self._inputs = example_inputs
        self._target = target
        self.fingerprint = network_fingerprint(self._kernels, example_inputs, target)
        self.runs = 0
        """Inferences made so far."""
        self._widths = graph.dense_widths()
        self._profiler = Profiler(engine, target)
        with contextlib.ExitStack() as stack:
            self._reference = stack.enter_context(engine.compile(model, example_inputs, target))
            self._reference_ms = warm_up(self._reference)
            with self._profiler.compile(model, example_inputs) as network:
                profile = match_profile(network.profile(profile_runs(self._reference_ms)), self._kernels, (), self._widths)
            self.priced = unseen_layers(self._kernels, profile, self._widths, engine.name)
            """Layers that the engine's profile does not show; their times are prices (``latprune.latency.measuring.unseen``)."""
            profile = price_unseen(profile, self._kernels, self.priced, self._widths)
            stack.pop_all()
        self.signatures = {
            kernel.name: kernel_signature(kernel, profile.shares[kernel.name].attached)
            for kernel in self._kernels
            if kernel.name in profile.shares
        }
        """Kernel name -> signature, for the kernels that the engine spends time on."""

    def sample(self, point: DesignPoint) -> NetworkSample:
        """Measure one network. Raises SurgeryError or EngineError where it cannot be made or run."""
        from latprune.surgery import prune

        pruned = copied(self._model)
        prune(pruned, self._graph, selection_for(self._graph, point))
        for _ in range(_TRIES):
            with self._profiler.compile(pruned, self._inputs) as network:
                # The profile comes first: some engines tell a mean over all runs since they compiled, rounded, which is finest then.
                profile = self._profile(network, point)
                speed = self._speed_now()
                found = time_beside(self._reference, self._reference_ms, network)
            self.runs += found.runs
            # Kernels are brought to the dense network's speed, which must be that of the moment when they were profiled.
            if abs(np.log(speed / found.reference_ms)) <= _SAME_SPEED:
                break
        del pruned
        gc.collect(0)
        widths = {**self._widths, **point.widths}
        axes = {kernel.name: kernel.axes for kernel in self._kernels}
        return NetworkSample(
            fingerprint=self.fingerprint,
            widths=widths,
            removed=tuple(sorted(point.removed)),
            ms=found.ms,
            reference_ms=found.reference_ms,
            kernels=tuple(
                KernelSample(
                    kernel=name,
                    signature=self.signatures[name],
                    sizes=tuple(axis.size(widths, point.removed) for axis in axes[name]),
                    ms=share.ms,
                    steps=share.steps,
                )
                for name, share in profile.shares.items()
                if name in self.signatures
            ),
            runs=found.runs,
            spread=found.spread,
            created=time.time(),
            extra={**clock_information(), **self._profiler.extra, RATIO_ERROR: found.ratio_error},
        )

    def _profile(self, network: CompiledNetwork, point: DesignPoint) -> MatchedProfile:
        network.run()
        count = profile_runs(network.timed_run())
        self.runs += 2 + count
        widths = {**self._widths, **point.widths}
        profile = match_profile(network.profile(count), self._kernels, point.removed, widths)
        return price_unseen(profile, self._kernels, self.priced, widths, point.removed)

    def _speed_now(self) -> float:
        """The dense network's latency in one short block."""
        self.runs += settle(self._reference, self._reference_ms)
        times, _ = timed_block(self._reference, _block(self._reference_ms))
        self.runs += len(times)
        return float(np.median(times))

    def close(self) -> None:
        """Free the reference."""
        self._reference.close()
