"""Exporters that print whole graphs where they fail, kept from the terminal; and their errors in a line."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["in_a_line", "quiet_exporters"]

_LOGGERS = ("torch.onnx", "torch._dynamo", "torch.export", "onnxscript", "torch.fx.experimental.symbolic_shapes")


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 300


def in_a_line(error: BaseException, *, kind: bool = True) -> str:
    """The first line of what was raised first, at most 300 characters: exporters wrap it in pages of advice, in colours.

    Args:
        error: What was raised last.
        kind: Begin with the class of the error.
    """
    seen: set[int] = set()
    while (inner := error.__cause__) is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {lines[0][:_LONGEST]}" if kind else lines[0][:_LONGEST]


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
