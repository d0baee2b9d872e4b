"""Freed memory stays with the process while eager PyTorch is timed."""

import subprocess
import sys

import pytest

from latprune.latency import get_engine
from latprune.latency.engines.allocator import allocator_kept

_needs_glibc = pytest.mark.skipif(not allocator_kept(), reason="only glibc can be told to keep freed memory")


@_needs_glibc
def test_no_page_faults_at_large_activations() -> None:
    """Runs of a network take no new memory, in a process of its own: the heap of one that did other work may still grow once."""
    # Each output is above glibc's first threshold for mapped blocks (128 KiB) and together they are above the one for trimming.
    program = (
        "import resource, torch\n"
        "from torch import nn\n"
        "from latprune.latency import Target, get_engine\n"
        "model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU())\n"
        "with get_engine('torch').compile(model, torch.zeros(1, 3, 160, 160), Target(engine='torch')) as network:\n"
        "    for _ in range(5):\n"
        "        network.run()\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10):\n"
        "        network.run()\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    assert int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout) < 100


@_needs_glibc
def test_default_allocator_faults_where_the_engine_does_not() -> None:
    """What the setting is for: blocks above the first threshold are mapped anew at every run of a process that never freed a larger one."""
    program = (
        "import ctypes, resource, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]\n"
        "if sys.argv[1] == 'kept':\n"
        "    from latprune.latency.engines.allocator import keep_freed_memory\n"
        "    assert keep_freed_memory() and keep_freed_memory()\n"
        "def churn():\n"
        "    blocks = [libc.malloc(1 << 20) for _ in range(80)]\n"
        "    for block in blocks:\n"
        "        ctypes.memset(block, 1, 1 << 20)\n"
        "    for block in blocks:\n"
        "        libc.free(block)\n"
        "churn()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "churn()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = {
        setting: int(subprocess.run([sys.executable, "-c", program, setting], check=True, capture_output=True, text=True).stdout)
        for setting in ("default", "kept")
    }
    assert faults["default"] > 10_000
    assert faults["kept"] < 100
    assert "freed memory kept" in get_engine("torch").version()
