"""Telling a run that the operating system interrupted from one that had the processor to itself."""

from __future__ import annotations

import sys

__all__ = ["involuntary_switches"]

if sys.platform == "win32":

    def involuntary_switches() -> int:
        """Windows does not tell a process about its own interruptions; every run counts as undisturbed."""
        return 0

else:
    import resource

    def involuntary_switches() -> int:
        """How often another process took a processor away from this one's threads so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
