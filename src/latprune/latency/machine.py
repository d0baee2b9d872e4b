"""What the measuring machine is: the part of a sample's conditions that the target does not say."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["clock_information", "machine_name"]

_CPUINFO = Path("/proc/cpuinfo")
_CLOCK = Path("/sys/devices/system/cpu/cpu0/cpufreq")


@cache
def machine_name() -> str:
    """Processor model with family and stepping where the system tells them: ``AMD EPYC 9655 (family 26, model 2, stepping 1)``."""
    fields: dict[str, str] = {}
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    details = [
        f"{key} {fields[source]}"
        for key, source in (("family", "cpu family"), ("model", "model"), ("stepping", "stepping"))
        if source in fields
    ]
    return f"{name} ({', '.join(details)})" if details else name


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
