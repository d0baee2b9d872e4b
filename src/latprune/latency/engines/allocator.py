"""Memory of the process while eager PyTorch is timed on CPU: what it frees stays with the process."""

from __future__ import annotations

import ctypes
import functools
import platform

from latprune.errors import EngineError

__all__ = ["allocator_kept", "keep_freed_memory"]

# From glibc's malloc.h; Python has no names for them.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024
_NEVER = 2**31 - 1


def allocator_kept() -> bool:
    """Whether this process's C library can be told to keep freed memory (glibc can)."""
    return platform.libc_ver()[0] == "glibc"


@functools.cache
def keep_freed_memory() -> bool:
    """Make the C library keep what is freed instead of giving it back to the system; for the rest of the process -> whether it can be told.

    PyTorch asks the C library for every activation at every run. By default glibc returns the top of its heap when more than a threshold
    of it is free; the next run then faults those pages in again, some thousands of them. Whether that happens depends on where other
    objects of the process lie, so the same network is slower in one process than in the next (``benchmarks/latency/page_faults.py``).
    Blocks above glibc's own largest threshold (32 MiB) are mapped and unmapped at every run in any case: that cost goes with the size
    alone.

    Raises EngineError where glibc refuses.
    """
    if not allocator_kept():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # Both: to set one of them freezes the other one where it is, and it starts at 128 KiB.
    if not (mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER)):
        raise EngineError("glibc refused to keep freed memory (mallopt); eager PyTorch cannot be timed reproducibly in this process")
    return True
