"""Saving, reloading and exporting pruned networks: safetensors and JSON, ONNX, ``torch.export`` programs."""

from __future__ import annotations

from latprune.export.record import ResultRecord

__all__ = ["ResultRecord"]
