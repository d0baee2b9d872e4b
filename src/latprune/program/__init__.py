"""Captured programs: the second form of a pruned network, which needs no class and can shrink in every size.

The parts are imported when they are first asked for: tracing knows programs, and capturing a program uses parts of tracing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latprune.program.capturing import capture
    from latprune.program.format import load_program, save_program
    from latprune.program.module import ProgramModule, ProgramScope
    from latprune.program.steps import Program, Step

__all__ = ["Program", "ProgramModule", "ProgramScope", "Step", "capture", "load_program", "save_program"]

_HOMES = {
    "Program": "steps",
    "ProgramModule": "module",
    "ProgramScope": "module",
    "Step": "steps",
    "capture": "capturing",
    "load_program": "format",
    "save_program": "format",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"latprune.program.{_HOMES[name]}"), name)
        globals()[name] = value  # a submodule of the same name must not stand in its place
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
