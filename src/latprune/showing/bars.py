"""Progress where Python code runs: bars below the cell of a notebook, the display of a terminal, or lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from latprune.progress import listening
from latprune.showing.hearing import ticking
from latprune.showing.lines import Lines

__all__ = ["in_notebook", "progress_bars"]


@contextmanager
def progress_bars(stream: TextIO | None = None) -> Iterator[None]:
    """Show the progress of what is done inside of the ``with`` block: bars in a notebook and on a terminal, lines elsewhere.

    Args:
        stream: Where to write outside of a notebook; None takes stderr.

    Example:
        >>> with latprune.progress_bars():  # doctest: +SKIP
        ...     result = latprune.prune(model, x, budget="50%", data=batches)
    """
    stream = stream or sys.stderr
    with ExitStack() as stack:
        if in_notebook():
            from latprune.showing.notebook import NotebookBars

            listener: Any = stack.enter_context(ticking(stack.enter_context(NotebookBars())))
        elif stream.isatty():
            from latprune.showing.terminal import Display

            listener = stack.enter_context(ticking(stack.enter_context(Display(stream))))
        else:
            listener = stack.enter_context(ticking(Lines(stream)))
        with listening(listener):
            yield


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. Nothing is imported to find out: a kernel has imported IPython itself."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
