"""What is measured: a network and its kernels, and under which conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latprune.latency.target import Target

__all__ = ["MODULE_TIMERS", "RATIO_ERROR", "SWEEP", "ContextInfo", "KernelSample", "NetworkSample"]

SWEEP = "sweep"
"""Key in ``NetworkSample.extra`` of a random network that was measured for the predictor, and is nobody's model."""

MODULE_TIMERS = "module_timers"
"""Key in ``NetworkSample.extra`` of a network whose kernels were timed as PyTorch's modules, because its engine has no profile; holds the
engine's milliseconds per eager one that they were brought to.
"""

RATIO_ERROR = "ratio_error"
"""Key in ``NetworkSample.extra`` of the relative standard error of the network's latency over the dense network's beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextInfo:
    """Conditions that samples were taken under; samples of different conditions are never mixed.

    Attributes:
        target: Engine, device, threads, batch, precision.
        version: The engine's version.
        machine: What identifies the machine's processor.
    """

    target: Target
    version: str
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSample:
    """One kernel inside one measured network.

    Attributes:
        kernel: Name of the kernel.
        signature: Its signature (``kernel_signature``).
        sizes: Axis sizes it ran at.
        ms: Time of one execution in milliseconds, as the engine's profile has it.
        steps: How many steps of the profile that is: its own, and those that go with it (a change of layout).
    """

    kernel: str
    signature: str
    sizes: tuple[int, ...]
    ms: float
    steps: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSample:
    """One measured network: its widths, what all of it took, and what its kernels took.

    Attributes:
        fingerprint: Structure that the widths refer to (``network_fingerprint``).
        widths: Group name -> width.
        removed: Removed blocks, sorted.
        ms: End-to-end latency, milliseconds, or None where only the profile was taken.
        reference_ms: End-to-end latency of the dense network measured beside it, milliseconds.
        kernels: The samples of its kernels.
        runs: Inferences behind it.
        spread: Interquartile range over median of the reference's runs: how quiet the machine was.
        created: Seconds since the epoch.
        extra: Anything else worth keeping (clock information).
    """

    fingerprint: str
    widths: Mapping[str, int]
    removed: tuple[str, ...]
    ms: float | None
    reference_ms: float
    kernels: tuple[KernelSample, ...]
    runs: int
    spread: float
    created: float
    extra: Mapping[str, Any]
