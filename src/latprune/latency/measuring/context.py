"""The conditions of measurements made here and now."""

from __future__ import annotations

from latprune.latency.engines import get_engine
from latprune.latency.samples import ContextInfo
from latprune.latency.target import Target

__all__ = ["target_context"]


def target_context(target: Target) -> ContextInfo:
    """The conditions of measurements made here and now on ``target``."""
    engine = get_engine(target.engine)
    return ContextInfo(target=target, version=engine.version(), machine=engine.machine(target))
