"""The form ``program`` of a pruned network, as tracing looks it up."""

from __future__ import annotations

from latprune.graph.captured import CapturedForm
from latprune.program.canonical import convertible
from latprune.program.capturing import capture

__all__ = ["FORM"]

FORM = CapturedForm(capture=capture, holds=convertible)
