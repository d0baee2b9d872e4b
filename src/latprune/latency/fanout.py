"""Measuring on many devices at once: jobs fan out over a Ray cluster to the nodes that carry a device's label."""

from __future__ import annotations

import os
import platform
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from latprune.errors import EngineError, InvalidArgumentError, LatpruneError, MissingExtraError
from latprune.latency.build import target_context
from latprune.latency.design import DesignPoint
from latprune.latency.engines import get_engine
from latprune.latency.repeats import REPEATS, as_repeat, due_again
from latprune.latency.samples import ContextInfo, NetworkSample
from latprune.latency.sampling import NetworkSampler
from latprune.latency.signature import network_fingerprint
from latprune.latency.store import Store
from latprune.latency.target import Target

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["FanoutProgress", "sample_on_cluster"]

_ANSWERS_WITHIN = 10.0
"""Seconds that the cluster's head may take to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FanoutProgress:
    """Where a fan-out stands.

    Attributes:
        done: Measurements made.
        jobs: Measurements planned; they grow when networks are to be measured again.
        again: Those of ``done`` that repeat a network.
        devices: Devices left.
        lost: Devices lost.
        worker: The one that measured last.
    """

    done: int
    jobs: int
    again: int
    devices: int
    lost: int
    worker: str


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    return ray


def _refuse_silence(address: str | None) -> None:
    """Ray asks for minutes where nobody answers, and then ends the process."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_WITHIN).close()
    except OSError as error:
        raise EngineError(f"address (={address!r}): no Ray cluster answers there ({error}); start one with ray start --head") from error


class _Device:
    """Lives on a device's node, one per device; measures one network at a time."""

    def __init__(self, model: nn.Module, graph: ModelGraph, example_inputs: Any, target: Target) -> None:
        self._context = target_context(target)
        self._sampler = NetworkSampler(model, graph, example_inputs, target, get_engine(target.engine))

    def name(self) -> str:
        """Host's process, for people and for tests that kill it."""
        return f"{platform.node()}:{os.getpid()}"

    def sample(self, point: DesignPoint) -> tuple[str, ContextInfo, NetworkSample]:
        """Measure one network."""
        return self.name(), self._context, self._sampler.sample(point)


def sample_on_cluster(
    model: nn.Module,
    graph: ModelGraph,
    example_inputs: Any,
    target: Target,
    points: Sequence[DesignPoint],
    store: Store,
    *,
    label: str,
    address: str | None = None,
    attempts: int = 3,
    progress: Callable[[FanoutProgress], None] | None = None,
) -> int:
    """Measure networks on every node of a Ray cluster that offers the resource ``label``; results go into the driver's store as they come.

    Start a device's node with ``ray start --address=HEAD --resources='{"LABEL": 1}'``: it then takes one job at a time. A device that is
    lost in the middle of a job loses that job only; another device measures it. Each sample is stored under the conditions of the
    device that took it (its engine's version, its processor), so devices of different kinds under one label do not mix.

    When all networks are measured, those that are far off what the others of their conditions say (``repeats.due_again``) go out again, to
    a device of the same conditions, until two measurements agree, at most twice. The repetitions are stored beside the first. A network
    whose kind of device is gone by then stays as it was measured, and is due again when networks are measured there the next time.

    Args:
        model: The dense model; sent to the devices.
        graph: Its trace.
        example_inputs: What it runs on.
        target: Engine and conditions on the device.
        points: Networks to measure.
        store: The driver's store.
        label: Custom resource that devices of this kind offer.
        address: ``ray://host:port``, ``host:port`` or ``auto``; None uses this process's cluster, or starts a local one.
        attempts: How often a network may lose its device before the fan-out gives up.
        progress: Called after each network.

    Returns:
        How many networks were measured, repetitions not counted.

    Raises:
        EngineError: Nobody answers at the address, no node offers the label, all devices were lost, or a device refused a network.
        MissingExtraError: Ray is not installed.
    """
    if not points:
        raise InvalidArgumentError("points must hold at least one network")
    ray = _ray()
    if not ray.is_initialized():
        _refuse_silence(address)
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    offered = int(ray.cluster_resources().get(label, 0))
    if offered < 1:
        hint = f"ray start --address=HEAD --resources='{{\"{label}\": 1}}'"
        raise EngineError(f"no node of the Ray cluster offers the resource {label!r}; start one with: {hint}")
    shared = [ray.put(value) for value in (model, graph, example_inputs, target)]
    remote = ray.remote(num_cpus=0, resources={label: 1})(_Device)
    rack = _Rack(
        ray, [remote.remote(*shared) for _ in range(min(offered, len(points)))], store, label=label, attempts=attempts, progress=progress
    )
    fingerprint = network_fingerprint(list(graph.kernels.values()), example_inputs, target)
    try:
        rack.run([_Job(point=point) for point in points])
        for _ in range(REPEATS):
            again = [
                _Job(point=DesignPoint(widths=first.widths, removed=first.removed), first=first, context=context)
                for context in rack.contexts
                for first in due_again(graph, context, store.networks(context, fingerprint))
            ]
            if not again:
                break
            rack.run(again)
    finally:
        rack.close()
    return rack.done - rack.again


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One network to measure; with ``first`` it is a repetition, which only a device of the conditions ``context`` can make."""

    point: DesignPoint
    first: NetworkSample | None = None
    context: ContextInfo | None = None
    tried: int = 0


@dataclass(slots=True, eq=False)
class _Member:
    """A device, and its conditions once it has answered."""

    handle: Any
    context: ContextInfo | None = None


class _Rack:
    """The devices of one label, and what was measured on them so far."""

    def __init__(
        self,
        ray: Any,
        handles: Sequence[Any],
        store: Store,
        *,
        label: str,
        attempts: int,
        progress: Callable[[FanoutProgress], None] | None,
    ) -> None:
        self._ray = ray
        self._idle = [_Member(handle) for handle in handles]
        self._running: dict[Any, tuple[_Member, _Job]] = {}
        self._store = store
        self._label = label
        self._attempts = attempts
        self._progress = progress
        self._jobs = self._lost = 0
        self.done = self.again = 0
        self.contexts: dict[ContextInfo, None] = {}
        """Conditions that were met, in order."""

    def run(self, jobs: Sequence[_Job]) -> None:
        """Do the jobs. Networks that no device is left for are an error, repetitions are not: what they would repeat is stored."""
        queue = deque(jobs)
        self._jobs += len(jobs)
        while queue or self._running:
            self._assign(queue)
            if not self._running:
                left = sum(job.first is None for job in queue)
                if left:
                    raise EngineError(
                        f"all {self._lost} devices labelled {self._label!r} were lost; {left} of {self._jobs} networks are not measured"
                    )
                self._jobs -= len(queue)
                return
            for reference in self._ray.wait(list(self._running), num_returns=1)[0]:
                self._collect(reference, queue)

    def _assign(self, queue: deque[_Job]) -> None:
        for _ in range(len(queue)):
            job = queue.popleft()
            member = next((member for member in self._idle if job.context is None or member.context == job.context), None)
            if member is None:
                queue.append(job)
            else:
                self._idle.remove(member)
                self._running[member.handle.sample.remote(job.point)] = (member, job)

    def _collect(self, reference: Any, queue: deque[_Job]) -> None:
        member, job = self._running.pop(reference)
        try:
            worker, context, sample = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, LatpruneError):
                raise cause from error
            raise EngineError(f"a device with the label {self._label!r} failed: {error}") from error
        except self._ray.exceptions.RayError as error:
            # The device is gone. Its job goes to another one.
            self._lost += 1
            if job.tried + 1 < self._attempts:
                queue.appendleft(replace(job, tried=job.tried + 1))
            elif job.first is None:
                raise EngineError(f"a network lost its device {self._attempts} times; the last time: {error}") from error
            else:
                self._jobs -= 1
            return
        member.context = context
        self.contexts[context] = None
        self._idle.append(member)
        self._store.add(context, [sample if job.first is None else as_repeat(sample, job.first)])
        self.done += 1
        self.again += job.first is not None
        if self._progress is not None:
            self._progress(
                FanoutProgress(
                    done=self.done,
                    jobs=self._jobs,
                    again=self.again,
                    devices=len(self._idle) + len(self._running),
                    lost=self._lost,
                    worker=worker,
                )
            )

    def close(self) -> None:
        """Let the devices go."""
        for member in [*self._idle, *(member for member, _ in self._running.values())]:
            self._ray.kill(member.handle)
