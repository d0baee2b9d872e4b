"""Ways of showing the progress of long work: a display on terminals, bars in notebooks, lines, JSON for machines.

What is shown is told by :mod:`latprune.progress`; each way is a listener.
"""

from __future__ import annotations

from latprune.showing.bars import progress_bars
from latprune.showing.hearing import Hearing, ticking
from latprune.showing.lines import JsonLines, Lines, Several

__all__ = ["Hearing", "JsonLines", "Lines", "Several", "progress_bars", "ticking"]
