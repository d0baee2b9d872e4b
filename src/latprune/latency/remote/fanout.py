"""Measuring on many devices at once: jobs fan out over a Ray cluster to the nodes that carry a device's label."""

from __future__ import annotations

import os
import pickle
import platform
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from latprune.errors import EngineError, InvalidArgumentError, LatpruneError, MissingExtraError
from latprune.latency.engines import get_engine
from latprune.latency.measuring.context import target_context
from latprune.latency.measuring.design import DesignPoint
from latprune.latency.measuring.sampling import NetworkSampler
from latprune.latency.measuring.signature import network_fingerprint
from latprune.latency.remote.by_value import packed
from latprune.latency.remote.ray_cluster import Patience, connect, count_devices, one_line, ray_package
from latprune.latency.samples import ContextInfo, NetworkSample
from latprune.latency.storing.store import Store
from latprune.latency.tabulating.repeats import REPEAT, REPEATS, as_repeat, due_again
from latprune.latency.target import Target

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["FanoutProgress", "sample_on_cluster"]

_POLL = 1.0
"""Seconds between two looks for a device."""

_RAYS_OWN = re.compile(r"CPU|GPU|TPU|memory|object_store_memory|node:.*")
"""Resources that Ray counts by itself on every node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FanoutProgress:
    """Where a fan-out stands.

    Attributes:
        done: Networks done: measurements made, and those that the store held already.
        jobs: Networks planned; they grow when some are to be measured again.
        stored: Those of ``done`` that the store held already.
        again: Those of ``done`` that repeat a network.
        devices: Devices that are ready or measuring.
        lost: Devices lost.
        worker: The one that answered last.
    """

    done: int
    jobs: int
    stored: int
    again: int
    devices: int
    lost: int
    worker: str


class _Device:
    """Lives on a device's node; measures one network at a time."""

    def name(self) -> str:
        """Host's process, for people and for tests that kill it."""
        return f"{platform.node()}:{os.getpid()}"

    def start(self, network: bytes) -> ContextInfo | tuple[str, str]:
        """Make ready; the conditions, or the package and the extra that the node lacks.

        That is no constructor's work: Ray tells of the death of an actor whose constructor failed, not of what it raised.
        """
        model, graph, example_inputs, target = pickle.loads(network)
        try:
            context = target_context(target)
            self._sampler = NetworkSampler(model, graph, example_inputs, target, get_engine(target.engine))
        except MissingExtraError as error:
            # It is made of two arguments, of which pickle would give back one.
            return error.package, error.extra
        return context

    def sample(self, point: DesignPoint) -> NetworkSample:
        """Measure one network."""
        return self._sampler.sample(point)


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
    wait_seconds: float = 600.0,
    progress: Callable[[FanoutProgress], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> int:
    """Measure networks on every node of a Ray cluster that offers the resource ``label``; results go into the driver's store as they come.

    Start a device's node with ``ray start --address=HEAD --resources='{"LABEL": 1}'``: it then takes one job at a time. A device that is
    lost in the middle of a job loses that job only; another device measures it. Each sample is stored under the conditions of the
    device that took it (its engine's version, its processor), so devices of different kinds under one label do not mix. Networks that the
    store holds under the conditions of a device that answers are not measured again, so an interrupted run goes on where it stopped.

    The nodes need latprune and the engine, not the model's files: code of the model that is in no installed package is sent along.

    When all networks are measured, those that are far off what the others of their conditions say (``repeats.due_again``) go out again, to
    a device of the same conditions, until two measurements agree, at most twice. The repetitions are stored beside the first. A network
    whose kind of device is gone by then stays as it was measured, and is due again when networks are measured there the next time.

    Args:
        model: The dense model; sent to the devices with its code.
        graph: Its trace.
        example_inputs: What it runs on.
        target: Engine and conditions on the device.
        points: Networks to measure.
        store: The driver's store.
        label: Custom resource that devices of this kind offer, 1 per node.
        address: ``ray://host:port``, ``host:port`` or ``auto``; None uses this process's cluster, or starts a local one.
        attempts: How often a network may lose its device before the fan-out gives up.
        wait_seconds: How long to wait for a first device where another run holds them all.
        progress: Called after each network.
        report: Called with a line of text where the fan-out waits for a device or loses one.

    Returns:
        How many networks were measured, repetitions and those that the store held already not counted.

    Raises:
        InvalidArgumentError: The address has another form, the label is a resource of Ray's own, or the model cannot be sent.
        EngineError: Nobody answers at the address, no node offers the label, other runs hold it for too long, all devices were lost (the
            message says how the last one was), or a device refused a network.
        MissingExtraError: Ray is not installed here, its client not (``ray://``), or the engine on no device.
    """
    if not points:
        raise InvalidArgumentError("points must hold at least one network")
    if _RAYS_OWN.fullmatch(label):
        raise InvalidArgumentError(f"label (={label!r}) is a resource of Ray's own; start the devices' nodes with another name, as 'board'")
    ray = ray_package()
    connect(ray, address)
    offered = count_devices(ray, label)
    network = ray.put(packed(ray, model, graph, example_inputs, target))
    patience = Patience(label=label, seconds=wait_seconds, report=report)
    while ray.available_resources().get(label, 0.0) < 1.0:
        patience.spend("held by another run")
        time.sleep(_POLL)
    remote = ray.remote(num_cpus=0, resources={label: 1})(_Device)
    fingerprint = network_fingerprint(list(graph.kernels.values()), example_inputs, target)
    rack = _Rack(
        ray,
        [remote.remote() for _ in range(min(offered, len(points)))],
        network,
        store,
        stored=lambda context: (
            _key(sample.widths, sample.removed) for sample in store.networks(context, fingerprint) if REPEAT not in sample.extra
        ),
        dense=graph.dense_widths(),
        label=label,
        attempts=attempts,
        wait_seconds=wait_seconds,
        progress=progress,
        report=report,
    )
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
    return rack.done - rack.again - rack.stored


def _key(widths: Mapping[str, int], removed: Iterable[str]) -> Any:
    """What tells one network of a structure from another."""
    return frozenset(widths.items()), frozenset(removed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One network to measure; with ``first`` it is a repetition, which only a device of the conditions ``context`` can make."""

    point: DesignPoint
    first: NetworkSample | None = None
    context: ContextInfo | None = None
    tried: int = 0


@dataclass(slots=True, eq=False)
class _Member:
    """A device; its worker's name once a node has taken it, its conditions once it is ready."""

    handle: Any
    worker: str = ""
    context: ContextInfo | None = None


class _Rack:
    """The devices of one label, and what was measured on them so far."""

    def __init__(
        self,
        ray: Any,
        handles: Sequence[Any],
        network: Any,
        store: Store,
        *,
        stored: Callable[[ContextInfo], Iterable[Any]],
        dense: Mapping[str, int],
        label: str,
        attempts: int,
        wait_seconds: float,
        progress: Callable[[FanoutProgress], None] | None,
        report: Callable[[str], None] | None,
    ) -> None:
        self._ray = ray
        self._network = network
        self._store = store
        self._stored = stored
        self._dense = dense
        self._label = label
        self._attempts = attempts
        self._wait_seconds = wait_seconds
        self._progress = progress
        self._report = report
        self._idle: list[_Member] = []
        self._calls: dict[Any, tuple[_Member, _Job | None]] = {}
        for member in map(_Member, handles):
            self._calls[member.handle.name.remote()] = (member, None)
        self._jobs = self._lost = 0
        self._last: str | MissingExtraError = ""
        self.done = self.again = self.stored = 0
        self.contexts: dict[ContextInfo, None] = {}
        """Conditions that were met, in order."""

    def run(self, jobs: Sequence[_Job]) -> None:
        """Do the jobs. Networks that no device is left for are an error, repetitions are not: what they would repeat is stored."""
        queue = deque(jobs)
        self._jobs += len(jobs)
        while queue or any(job is not None for _, job in self._calls.values()):
            self._assign(queue)
            patience = None
            if not any(member.worker for member, _ in self._calls.values()):
                left = sum(job.first is None for job in queue)
                if not left:
                    self._jobs -= len(queue)
                    return
                if not self._calls:
                    raise self._all_lost(left)
                patience = Patience(label=self._label, seconds=self._wait_seconds, report=self._report)
            for reference in self._answered(patience):
                self._collect(reference, queue)

    def _all_lost(self, left: int) -> LatpruneError:
        if isinstance(self._last, MissingExtraError):
            return self._last
        return EngineError(
            f"all {self._lost} devices labelled {self._label!r} were lost; {left} of {self._jobs} networks are not measured; "
            f"the last device: {self._last}"
        )

    def _assign(self, queue: deque[_Job]) -> None:
        for _ in range(len(queue)):
            job = queue.popleft()
            member = next((member for member in self._idle if job.context is None or member.context == job.context), None)
            if member is None:
                queue.append(job)
            else:
                self._idle.remove(member)
                self._calls[member.handle.sample.remote(job.point)] = (member, job)

    def _answered(self, patience: Patience | None) -> list[Any]:
        """Calls that came back. Where no device has come yet, another run may hold them all, and patience ends."""
        while True:
            ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=None if patience is None else _POLL)
            if ready:
                return list(ready)
            if patience is not None:
                patience.spend("starting or held by another run")

    def _collect(self, reference: Any, queue: deque[_Job]) -> None:
        member, job = self._calls.pop(reference)
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if job is None:
                self._lose(member, one_line(cause))
                return
            if isinstance(cause, LatpruneError):
                raise cause from error
            raise EngineError(f"a device with the label {self._label!r} failed: {error}") from error
        except self._ray.exceptions.RayError as error:
            # The device is gone. Its job goes to another one.
            self._lose(member, one_line(error))
            if job is None:
                return
            if job.tried + 1 < self._attempts:
                queue.appendleft(replace(job, tried=job.tried + 1))
            elif job.first is None:
                raise EngineError(f"a network lost its device {self._attempts} times; the last time: {error}") from error
            else:
                self._jobs -= 1
            return
        if job is not None:
            self._keep(member, job, answer)
        elif not member.worker:
            member.worker = answer
            self._calls[member.handle.start.remote(self._network)] = (member, None)
        elif isinstance(answer, ContextInfo):
            member.context = answer
            self._idle.append(member)
            self._meet(member, answer, queue)
        else:
            self._lose(member, _MissingThereError(member.worker, *answer))

    def _lose(self, member: _Member, why: str | MissingExtraError) -> None:
        self._lost += 1
        self._last = why if isinstance(why, MissingExtraError) else f"{member.worker or 'not started yet'}: {why}"
        self._ray.kill(member.handle)
        if self._report is not None:
            self._report(f"lost a device: {self._last}")

    def _meet(self, member: _Member, context: ContextInfo, queue: deque[_Job]) -> None:
        """Take the networks off the queue that the store holds under conditions that were not met before."""
        if context in self.contexts:
            return
        self.contexts[context] = None
        # Small networks meet the same widths twice, and are then measured twice.
        stored, before = Counter(self._stored(context)), self.stored
        for _ in range(len(queue)):
            job = queue.popleft()
            key = _key({**self._dense, **job.point.widths}, job.point.removed)
            if job.first is None and stored[key]:
                stored[key] -= 1
                self.stored += 1
            else:
                queue.append(job)
        self.done += self.stored - before
        if self.stored > before:
            self._tell(member)

    def _keep(self, member: _Member, job: _Job, sample: NetworkSample) -> None:
        assert member.context is not None
        self._idle.append(member)
        self._store.add(member.context, [sample if job.first is None else as_repeat(sample, job.first)])
        self.done += 1
        self.again += job.first is not None
        self._tell(member)

    def _tell(self, member: _Member) -> None:
        if self._progress is not None:
            self._progress(
                FanoutProgress(
                    done=self.done,
                    jobs=self._jobs,
                    stored=self.stored,
                    again=self.again,
                    devices=len(self._idle) + sum(other.context is not None for other, _ in self._calls.values()),
                    lost=self._lost,
                    worker=member.worker,
                )
            )

    def close(self) -> None:
        """Let the devices go."""
        for member in [*self._idle, *(member for member, _ in self._calls.values())]:
            self._ray.kill(member.handle)


class _MissingThereError(MissingExtraError):
    """An extra that a device's node lacks."""

    def __init__(self, worker: str, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.msg = f"on the device {worker}: {self.msg}"
