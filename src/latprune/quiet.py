"""Exporters that print whole graphs where they fail, kept from the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["quiet_exporters"]

_LOGGERS = ("torch.onnx", "torch._dynamo", "torch.export", "onnxscript", "torch.fx.experimental.symbolic_shapes")


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """The exporters print whole graphs where they fail; the error that they raise says enough."""
    # TorchScript's exporter turns this log on by itself, whatever was set, so the log's own function is taken away for the while.
    native: Any = torch._C
    log = native._jit_onnx_log
    native._jit_onnx_log = lambda *_: None
    held = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in held:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        native._jit_onnx_log = log
        for name, level in held.items():
            logging.getLogger(name).setLevel(level)
