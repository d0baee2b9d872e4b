"""Measuring on many devices at once: jobs fan out over a Ray cluster to the nodes that carry a device's label."""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from latprune.errors import EngineError, InvalidArgumentError, LatpruneError, MissingExtraError
from latprune.latency.build import target_context
from latprune.latency.design import DesignPoint
from latprune.latency.engines import get_engine
from latprune.latency.sampling import NetworkSampler
from latprune.latency.store import ContextInfo, NetworkSample, Store
from latprune.latency.target import Target

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["FanoutProgress", "sample_on_cluster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FanoutProgress:
    """Where a fan-out stands: ``done`` of ``jobs`` networks, ``devices`` left, ``lost`` ones, and the ``worker`` that measured last."""

    done: int
    jobs: int
    devices: int
    lost: int
    worker: str


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    return ray


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
        How many networks were measured.

    Raises:
        EngineError: No node offers the label, all devices were lost, or a device refused a network.
        MissingExtraError: Ray is not installed.
    """
    if not points:
        raise InvalidArgumentError("points must hold at least one network")
    ray = _ray()
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    offered = int(ray.cluster_resources().get(label, 0))
    if offered < 1:
        hint = f"ray start --address=HEAD --resources='{{\"{label}\": 1}}'"
        raise EngineError(f"no node of the Ray cluster offers the resource {label!r}; start one with: {hint}")
    shared = [ray.put(value) for value in (model, graph, example_inputs, target)]
    remote = ray.remote(num_cpus=0, resources={label: 1})(_Device)
    idle: list[Any] = [remote.remote(*shared) for _ in range(min(offered, len(points)))]
    queue: deque[tuple[DesignPoint, int]] = deque((point, 0) for point in points)
    running: dict[Any, tuple[Any, DesignPoint, int]] = {}
    done = lost = 0
    try:
        while queue or running:
            while queue and idle:
                point, tried = queue.popleft()
                device = idle.pop()
                running[device.sample.remote(point)] = (device, point, tried)
            if not running:
                raise EngineError(
                    f"all {lost} devices labelled {label!r} were lost; {len(queue)} of {len(points)} networks are not measured"
                )
            finished, _ = ray.wait(list(running), num_returns=1)
            for reference in finished:
                device, point, tried = running.pop(reference)
                try:
                    worker, context, sample = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause
                    if isinstance(cause, LatpruneError):
                        raise cause from error
                    raise EngineError(f"a device with the label {label!r} failed: {error}") from error
                except ray.exceptions.RayError as error:
                    # The device is gone. Its job goes to another one.
                    lost += 1
                    if tried + 1 >= attempts:
                        raise EngineError(f"a network lost its device {attempts} times; the last time: {error}") from error
                    queue.appendleft((point, tried + 1))
                    continue
                idle.append(device)
                store.add(context, [sample])
                done += 1
                if progress is not None:
                    progress(FanoutProgress(done=done, jobs=len(points), devices=len(idle) + len(running), lost=lost, worker=worker))
    finally:
        for device in [*idle, *(device for device, _, _ in running.values())]:
            ray.kill(device)
    return done
