"""The contract of an engine adapter: convert a module, run it, say what each kernel costs, and where each kernel came from."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from latprune.errors import EngineError, MissingExtraError
from latprune.latency.engines.interruptions import involuntary_switches
from latprune.latency.machine import machine_name, usable_processors
from latprune.latency.target import Target
from latprune.registry import Registry

__all__ = [
    "CompiledNetwork",
    "Engine",
    "KernelTime",
    "available_engines",
    "engine_problems",
    "get_engine",
    "register_engine",
    "require_threads",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """What one step of the engine's own schedule costs.

    Attributes:
        name: The engine's name for it (unique within a network).
        op: The engine's kind of operation (``Convolution``, ``Conv``, ``Reorder``, a module's class).
        path: Path of the module that the step computes, or None where the engine made it up (a layout reorder).
        order: Place in the engine's execution order.
        ms: Mean time of one execution in milliseconds, without the runs that were disturbed where the engine lets us see single runs.
        runs: Executions behind ``ms``.
        computes: Paths of the modules whose contractions the step computes, in order, where the engine says so: a fused step (linear layers
            with an activation between them, a whole attention) computes several. Empty where ``path`` says all.
        whole: Whether the step is the whole forward of the module at ``path``, and not one operation of it.
    """

    name: str
    op: str
    path: str | None
    order: int
    ms: float
    runs: int
    computes: tuple[str, ...] = ()
    whole: bool = False


class CompiledNetwork(ABC):
    """A network that an engine holds ready to run, on fixed inputs.

    Not thread-safe: one network is run by one thread. It is a context manager; ``close`` frees what the engine holds and may be called
    twice.
    """

    def __init__(self, target: Target, conversion: str, seconds: float) -> None:
        self.target = target
        self.conversion = conversion
        """Route by which the module reached the engine, in words (``torchscript -> onnx -> openvino``)."""
        self.seconds = seconds
        """Seconds that conversion and compilation took."""

    @abstractmethod
    def run(self) -> None:
        """Do one inference on the example inputs and wait for its end. Raises EngineError where the engine fails."""

    @abstractmethod
    def outputs(self) -> list[npt.NDArray[np.floating[Any]]]:
        """Run once and return the outputs, flattened in order, as float arrays of the PyTorch outputs' shapes."""

    @abstractmethod
    def profile(self, runs: int) -> list[KernelTime]:
        """Run ``runs`` times and return the time of every step of these runs, in execution order.

        Raises EngineError where the network was not compiled with ``profile=True``, which an engine without a profile refuses.
        """

    def timed_run(self) -> float:
        """Milliseconds of one inference by the wall clock (or the device's own events), input already on the device."""
        start = time.perf_counter_ns()
        self.run()
        return (time.perf_counter_ns() - start) * 1e-6

    def checked_run(self) -> tuple[float, bool]:
        """``timed_run``, and whether another process took the processor away meanwhile.

        An interrupted run of one thread on the host counts with the processor time that it used, which leaves out the time it waited.
        """
        switches = involuntary_switches()
        start = time.process_time_ns()
        ms = self.timed_run()
        used = (time.process_time_ns() - start) * 1e-6
        if involuntary_switches() == switches:
            return ms, False
        on_host = self.target.threads == 1 and self.target.device.lower() in ("cpu", "cpuexecutionprovider")
        return (min(ms, used) if on_host else ms), True

    def close(self) -> None:  # noqa: B027 - an engine that holds nothing has nothing to free
        """Free what the engine holds; the network cannot be run afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Engine(ABC):
    """An inference engine. Adapters are stateless: every condition of a run is in the target.

    Contract (``latprune.latency.testing.EngineContract`` checks it): ``compile`` never changes the module or its training flags, its
    outputs equal PyTorch's to the precision of the target, every parametrised contraction that runs shows up in the profile with its
    module's path, times are milliseconds, and anything the engine cannot do raises EngineError (MissingExtraError where a package is not
    installed, BrokenPackageError where it is and cannot be imported).
    """

    name: ClassVar[str]
    """Name in ``Target.engine``."""
    fuses: ClassVar[str]
    """How the engine fuses, in words."""
    profiles_kernels: ClassVar[bool]
    """Whether ``profile`` works. Tables of an engine without one are made from the modules' own times and whole networks."""
    pins: ClassVar[str]
    """What the adapter pins so that two measurements compare, in words."""
    runs_held: ClassVar[tuple[str, ...]] = ()
    """Precisions in which a model that is held in that type runs as it is, where none was asked for; a model held in another type is
    brought to float32 for the precision ``fp32``."""

    @abstractmethod
    def version(self) -> str:
        """Version of the engine; raises MissingExtraError where it is not installed."""

    @abstractmethod
    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> CompiledNetwork:
        """Convert ``model`` (as in eval mode) and hold it ready for ``example_inputs`` brought to ``target.batch``.

        Args:
            model: Module to run; it is left as it is. The network may hold it instead of a copy: do not change it before ``close``.
            example_inputs: Tensor, tuple of positional arguments, or mapping of keyword arguments.
            target: Conditions of the run.
            profile: Compile so that ``profile`` works (some engines run a little slower then). Only for engines whose
                ``profiles_kernels`` is true; ``Profiler`` (``latprune.latency.measuring.module_timers``) gives every engine's networks one.

        Raises:
            EngineError: Conversion failed, the engine cannot meet the target (device, precision), or ``profile`` was asked of an engine
                that has none.
            MissingExtraError: The engine is not installed.
        """

    def check(self, target: Target) -> None:
        """Refuse what ``compile`` would refuse of ``target`` on any network: known at once, before hours of work rest on it.

        What only a compiled network shows is left to ``compile``. By default the package alone is asked for.

        Raises:
            EngineError: The engine does not have the device here, or does not compute in the precision.
            MissingExtraError: The engine is not installed.
        """
        self.version()

    def machine(self, target: Target) -> str:
        """What identifies the hardware that ``target`` runs on: the processor, and before it the accelerator where there is one."""
        return machine_name()

    def describe(self) -> dict[str, Any]:
        """What the adapter states about itself, as a JSON object."""
        return {
            "name": self.name,
            "version": self.version(),
            "fuses": self.fuses,
            "profiles_kernels": self.profiles_kernels,
            "pins": self.pins,
        }


def require_threads(target: Target) -> None:
    """Refuse more threads on the CPU than there are processors: they would wait for each other, and that would be what is measured.

    Raises:
        EngineError: ``target`` asks for more than this process may run on.
    """
    processors = usable_processors()
    if target.threads > processors:
        raise EngineError(
            f"threads (={target.threads}) must be at most {processors}, the processors that this process may run on (taskset and "
            f"containers allow fewer than the machine has): more would wait for each other; choose at most {processors}"
        )


ENGINES = Registry[Callable[[], Engine]]("engine", group="latprune.engines", hint="add one with latprune.latency.register_engine")
"""Makers of engine adapters by name."""


def register_engine(name: str, factory: Callable[[], Engine]) -> None:
    """Make ``Target(engine=name)`` known; ``factory`` is called at each use.

    Another package names its factory in the group of entry points ``latprune.engines``.

    Raises:
        InvalidArgumentError: The name is taken.
    """
    ENGINES.register(name, factory)


def get_engine(name: str) -> Engine:
    """The adapter registered under ``name``. Raises InvalidArgumentError for an unknown name."""
    return ENGINES.get(name)()


def available_engines() -> Mapping[str, str | None]:
    """Registered names -> version, or None where the engine is not installed or cannot be imported (:func:`engine_problems`)."""
    return {name: None if isinstance(found, ImportError) else found for name, found in _versions().items()}


def engine_problems() -> Mapping[str, str]:
    """Names of engines that are installed and cannot be imported -> why."""
    absent = (MissingExtraError, ModuleNotFoundError)
    return {name: str(found) for name, found in _versions().items() if isinstance(found, ImportError) and not isinstance(found, absent)}


def _versions() -> dict[str, str | ImportError]:
    """Registered names -> version, or why there is none."""
    found: dict[str, str | ImportError] = {}
    for name in ENGINES.names():
        try:
            found[name] = get_engine(name).version()
        except ImportError as error:
            found[name] = error
    return found
