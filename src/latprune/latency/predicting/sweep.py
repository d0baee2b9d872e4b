"""Measuring random networks for the predictor, so that its kernels cover the space of configurations (nn-Meter's adaptive sampling)."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from latprune.errors import CaptureError, EngineError, InvalidArgumentError
from latprune.graph import trace
from latprune.graph.types import Kernel, WidthAxis
from latprune.latency.engines import Engine, get_engine
from latprune.latency.features import family_of, kernel_features, kernel_weights
from latprune.latency.machine import clock_information
from latprune.latency.measuring.context import target_context
from latprune.latency.measuring.matching import MatchedProfile, match_profile
from latprune.latency.measuring.module_timers import Profiler
from latprune.latency.measuring.protocol import warm_up
from latprune.latency.measuring.sampling import profile_runs, time_beside
from latprune.latency.measuring.signature import kernel_signature, network_fingerprint
from latprune.latency.predicting.predictor import KernelPredictor
from latprune.latency.predicting.predictor_training import train_predictor
from latprune.latency.predicting.random_networks import DESIGN, random_network
from latprune.latency.samples import RATIO_ERROR, SWEEP, KernelSample, NetworkSample
from latprune.latency.storing.store import Store
from latprune.latency.target import Target

__all__ = ["SweepProgress", "sweep_kernels"]

_REFERENCE = (0, 36)
"""Seed and index of the network that is timed beside all others, whatever the sweep's seed: it brings all sweeps to one speed."""
_LEAST_FIRST, _ROUND, _CANDIDATES = 24, 32, 4
_CONSISTENT = 1.15
_SHORT_MS = 0.004
_LEAST_MS, _MOST_MS = 0.1, 60.0
"""Predicted milliseconds of networks that may be chosen."""
_MOST_FAILURES = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepProgress:
    """Where a sweep stands.

    Attributes:
        networks: Random networks measured, earlier ones included.
        wanted: Networks asked for.
        failed: Networks that this run could not measure; others took their places.
        seconds: Seconds since the start.
        adaptive: Whether the present ones were chosen where the predictor is in doubt.
    """

    networks: int
    wanted: int
    failed: int
    seconds: float
    adaptive: bool


def sweep_kernels(
    target: Target,
    store: Store,
    networks: int,
    *,
    seed: int = 0,
    time_limit: float | None = None,
    progress: Callable[[SweepProgress], None] | None = None,
) -> int:
    """Bring the sweep of a target to ``networks`` random networks; returns how many were measured now.

    The first half is drawn evenly (``random_network``). Then a predictor is trained on all that the store holds for these conditions, four
    times as many networks are drawn as the next round measures, and those are measured whose kernels' predictions have the widest
    intervals; and so on, 32 networks to a round. Each network runs once with the engine's profile, beside a reference, like the networks
    of a table. It is written to the store when it has been measured, marked as a sweep's, so an interrupted sweep goes on where it stopped.

    Args:
        target: Engine and conditions.
        store: Where the networks go, and where the predictor finds what it knows already.
        networks: Random networks of this seed that the store is to hold.
        seed: Seed of the networks.
        time_limit: Seconds after which no further network is begun.
        progress: Called after each network.

    Raises:
        EngineError: The engine cannot run a quarter of the networks, or any.
        MissingExtraError: The engine or scikit-learn is not installed.

    Example:
        >>> with Store() as store:  # doctest: +SKIP
        ...     sweep_kernels(Target(engine="openvino"), store, 200)
        ...     predictor = train_predictor(target_context(target), store.networks(target_context(target)))
    """
    if networks < 1:
        raise InvalidArgumentError(f"networks (={networks}) must be at least 1")
    start = time.perf_counter()
    context = target_context(target)
    done = _indices(store.networks(context), seed)
    if len(done) >= networks:
        return 0
    before, failed = len(done), set[int]()
    first = max(_LEAST_FIRST, networks // 2)
    sampler = _Sampler(target, get_engine(target.engine), seed)
    try:
        while len(done) < networks:
            adaptive = len(done) >= first
            if adaptive:
                batch = _doubtful(train_predictor(context, store.networks(context), seed=seed), seed, done | failed, target.batch)
            else:
                batch = _unused(done | failed, min(first, networks) - len(done))
            for index in batch[: networks - len(done)]:
                if time_limit is not None and time.perf_counter() - start > time_limit:
                    return len(done) - before
                try:
                    store.add(context, [sampler.sample(index)])
                    done.add(index)
                except (CaptureError, EngineError) as problem:
                    failed.add(index)
                    if len(failed) > 2 + _MOST_FAILURES * (len(done) - before):
                        raise EngineError(
                            f"{target.engine}: {len(failed)} random networks could not be measured; the last: {problem}"
                        ) from problem
                if progress is not None:
                    seconds = time.perf_counter() - start
                    progress(SweepProgress(networks=len(done), wanted=networks, failed=len(failed), seconds=seconds, adaptive=adaptive))
    finally:
        sampler.close()
    return len(done) - before


def _indices(networks: Sequence[NetworkSample], seed: int) -> set[int]:
    marks = [network.extra[SWEEP] for network in networks if SWEEP in network.extra]
    return {int(mark["index"]) for mark in marks if (mark["design"], mark["seed"]) == (DESIGN, seed)}


def _unused(used: set[int], count: int) -> list[int]:
    found: list[int] = []
    index = 0
    while len(found) < count:
        if index not in used:
            found.append(index)
        index += 1
    return found


def _doubtful(predictor: KernelPredictor, seed: int, used: set[int], batch: int) -> list[int]:
    """The next round: the networks in whose kernels the predictor is most in doubt, of several times as many."""
    candidates = _unused(used, _CANDIDATES * _ROUND)
    doubts = {index: _doubt(predictor, *random_network(seed, index, batch=batch, device="meta")) for index in candidates}
    return sorted(candidates, key=lambda index: -doubts[index])[:_ROUND]


def _doubt(predictor: KernelPredictor, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Mean width of the intervals of a network's kernels; kernels that are mostly noise count for less, however wide theirs are.

    Networks that are all noise, or would take the time of many, are passed over: their doubt is 0.
    """
    found, total = [], 0.0
    kernels = [(kernel_signature(kernel), [axis.constant for axis in kernel.axes]) for kernel in _module_kernels(model, inputs)]
    around = sum(kernel_weights(signature, sizes) for signature, sizes in kernels)
    for signature, sizes in kernels:
        family = predictor.families.get(family_of(signature))
        if family is None:
            found.append(1.0)
            continue
        features = kernel_features(signature, sizes, around)[None, :]
        ms = float(np.exp(family.logarithm(features)[0]))
        total += ms
        found.append(min(1.0, float(family.error(features)[0])) * ms / (ms + _SHORT_MS))
    return float(np.mean(found)) if found and _LEAST_MS <= total <= _MOST_MS else 0.0


def _module_kernels(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[Kernel]:
    """Convolutions and linear layers of a network without weights, as its trace would name them."""
    found: list[Kernel] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        attributes: dict[str, Any] = {"input_shape": list(args[0].shape), "output_shape": list(output.shape)}
        kind, axes = "linear", (args[0].shape[-1], output.shape[-1])
        if isinstance(module, nn.Conv2d):
            attributes |= {"kernel_size": list(module.kernel_size), "stride": list(module.stride), "groups": module.groups}
            kind, axes = "conv", (module.in_channels // module.groups, module.out_channels)
            if 1 < module.groups == module.in_channels:
                kind, axes = "depthwise", (module.out_channels,)  # type: ignore[assignment]
        sized = tuple(WidthAxis(constant=int(size)) for size in axes)
        found.append(Kernel(name=str(len(found)), kind=kind, module=None, axes=sized, blocks=(), macs=0.0, attributes=attributes))

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Sampler:
    """Takes samples of random networks; the reference stays compiled beside them."""

    def __init__(self, target: Target, engine: Engine, seed: int) -> None:
        self._target, self._engine, self._seed = target, engine, seed
        model, inputs = random_network(*_REFERENCE, batch=target.batch)
        self._profiler = Profiler(engine, target)
        with contextlib.ExitStack() as stack:
            self._reference = stack.enter_context(engine.compile(model, inputs, target))
            self._reference_ms = warm_up(self._reference)
            self._profiler.set_scale(model, inputs, profile_runs(self._reference_ms))
            stack.pop_all()

    def sample(self, index: int) -> NetworkSample:
        """Measure one network. Raises EngineError or CaptureError where it cannot be run or traced."""
        model, inputs = random_network(self._seed, index, batch=self._target.batch)
        graph = trace(model, inputs)
        kernels, widths = list(graph.kernels.values()), graph.dense_widths()
        with self._profiler.compile(model, inputs) as network:
            # The profile comes first: some engines tell a mean over all runs since they compiled, rounded, which is finest then.
            network.run()
            runs = profile_runs(network.timed_run())
            profile = match_profile(network.profile(runs), kernels, (), widths)
            beside = time_beside(self._reference, self._reference_ms, network)
        if not self._profiler.extra and _total(profile) > _CONSISTENT * beside.ms:
            # Something else ran on the processor, or the profiler's own cost shows: the lower of two profiles is the better one.
            with self._profiler.compile(model, inputs) as network:
                again = match_profile(network.profile(profile_runs(beside.ms)), kernels, (), widths)
            profile, runs = min(profile, again, key=_total), runs + profile_runs(beside.ms)
        if not profile.shares:
            raise EngineError(f"{self._engine.name}: no step of the profile of random network {index} could be matched to a kernel")
        del model
        gc.collect(0)
        return NetworkSample(
            fingerprint=network_fingerprint(kernels, inputs, self._target),
            widths=widths,
            removed=(),
            ms=beside.ms,
            reference_ms=beside.reference_ms,
            kernels=tuple(
                KernelSample(
                    kernel=kernel.name,
                    signature=kernel_signature(kernel, profile.shares[kernel.name].attached),
                    sizes=tuple(axis.size(widths) for axis in kernel.axes),
                    ms=profile.shares[kernel.name].ms,
                    steps=profile.shares[kernel.name].steps,
                )
                for kernel in kernels
                if kernel.name in profile.shares
            ),
            runs=runs + beside.runs,
            spread=beside.spread,
            created=time.time(),
            extra={
                **clock_information(),
                **self._profiler.extra,
                RATIO_ERROR: beside.ratio_error,
                SWEEP: {"design": DESIGN, "seed": self._seed, "index": index},
            },
        )

    def close(self) -> None:
        """Free the reference."""
        self._reference.close()


def _total(profile: MatchedProfile) -> float:
    return sum(share.ms for share in profile.shares.values())
