"""Where a result comes from: versions, platform, processor and moment."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from latprune.export.record import ProvenanceRecord

__all__ = ["current_provenance"]

PACKAGES = ("latprune", "torch", "numpy", "onnx", "onnxruntime", "openvino", "highspy")


def current_provenance(*, seed: int | None = None, command: str | None = None) -> ProvenanceRecord:
    """Where a result made by this process, now, comes from.

    Args:
        seed: Seed of everything random in the run.
        command: Command line that was run, where there was one.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return ProvenanceRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions,
        platform=platform.platform(),
        processor=_processor(),
        seed=seed,
        command=command,
    )


def _processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
