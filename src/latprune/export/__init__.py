"""Saving, reloading and exporting pruned networks: safetensors and JSON, ONNX, ``torch.export`` programs.

Reading a record (``latprune.export.record``) needs no torch, so the parts that do are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from latprune.export.exploration import ExplorationRecord
from latprune.export.record import ResultRecord

if TYPE_CHECKING:
    from latprune.export.checkpoint import SavedResult, load_result, read_record, restore, save_result, tensor_shapes, update_record
    from latprune.export.onnx import OnnxExport, check_onnx, export_onnx
    from latprune.export.program import export_program
    from latprune.export.provenance import current_provenance

__all__ = [
    "ExplorationRecord",
    "OnnxExport",
    "ResultRecord",
    "SavedResult",
    "check_onnx",
    "current_provenance",
    "export_onnx",
    "export_program",
    "load_result",
    "read_record",
    "restore",
    "save_result",
    "tensor_shapes",
    "update_record",
]

_HOMES = {
    "OnnxExport": "onnx",
    "SavedResult": "checkpoint",
    "check_onnx": "onnx",
    "current_provenance": "provenance",
    "export_onnx": "onnx",
    "export_program": "program",
    "load_result": "checkpoint",
    "read_record": "checkpoint",
    "restore": "checkpoint",
    "save_result": "checkpoint",
    "tensor_shapes": "checkpoint",
    "update_record": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"latprune.export.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
