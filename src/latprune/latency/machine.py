"""What the measuring machine is: the part of a sample's conditions that the target does not say."""

from __future__ import annotations

import os
from functools import cache

from latprune.errors import EngineError

# A kit's runner can import nothing from here, and must give the same names.
from latprune.latency.kit_runner import clock_information, gpu_name, processor_name

__all__ = ["clock_information", "cuda_name", "machine_name", "usable_processors"]


@cache
def machine_name() -> str:
    """Processor model, or the board's, with family and stepping where told: ``AMD EPYC 9655 (family 26, model 2, stepping 1)``."""
    return processor_name()


def usable_processors() -> int:
    """Processors that this process may run on: fewer than the machine has under ``taskset`` or a container's set of processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cuda_name(index: int = 0) -> str | None:
    """Name of the NVIDIA GPU that CUDA numbers ``index``, as its driver's own tool has it, for engines that do not tell.

    None without the tool or the GPU. Raises EngineError where CUDA's numbers do not tell which of several kinds of GPU it is.
    """
    try:
        return gpu_name(index)
    except ValueError as error:
        raise EngineError(str(error)) from None
