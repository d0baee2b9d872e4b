"""What the measuring machine is: the part of a sample's conditions that the target does not say."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["clock_information", "cuda_name", "machine_name"]

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")
_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq")


@cache
def machine_name() -> str:
    """Processor model, or the board's, with family and stepping where told: ``AMD EPYC 9655 (family 26, model 2, stepping 1)``."""
    fields: dict[str, str] = {}
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    # Arm processors do not tell their name there, but boards do.
    board = _BOARD.read_text(errors="replace").strip("\0 \n") if _BOARD.is_file() else ""
    name = fields.get("model name") or board or platform.processor() or platform.machine()
    details = [
        f"{key} {fields[source]}"
        for key, source in (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
        if source in fields
    ]
    return f"{name} ({', '.join(details)})" if details else name


@cache
def cuda_name(index: int = 0) -> str | None:
    """Name of an NVIDIA GPU as its driver's own tool has it, for engines that do not tell; None without the tool or the GPU."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={index}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def clock_information() -> dict[str, Any]:
    """Clock governor and frequency in kHz where the system shows them; empty on virtual machines that hide them."""
    found: dict[str, Any] = {}
    for key in ("scaling_governor", "scaling_cur_freq", "scaling_max_freq"):
        path = _CLOCK / key
        if path.is_file():
            try:
                text = path.read_text().strip()
            except OSError:
                continue
            found[key] = int(text) if text.isdigit() else text
    return found
