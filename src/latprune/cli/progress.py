"""Progress on the command line: a display on terminals, lines elsewhere, JSON for machines, a log file beside any of them, or nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from latprune.progress import Listener

__all__ = ["FORMS", "add_progress_arguments", "shown"]

FORMS = ("auto", "bar", "log", "json", "none")


def add_progress_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--progress``, ``--quiet`` and ``--log-file``."""
    group = parser.add_argument_group("progress")
    group.add_argument(
        "--progress",
        choices=FORMS,
        default="auto",
        help="how progress is shown on stderr: a display, lines, JSON objects for machines, or not at all (default: a display on "
        "terminals, else lines)",
    )
    group.add_argument("--quiet", action="store_true", help="print the result only: short for --progress none")
    group.add_argument("--log-file", metavar="FILE", help="append the lines of progress to FILE, too, whatever is shown")


@contextmanager
def shown(args: argparse.Namespace, *, stream: TextIO | None = None) -> Iterator[None]:
    """Show what is told inside of the ``with`` block as the arguments of :func:`add_progress_arguments` have it."""
    form = getattr(args, "progress", None)
    if form is None:
        yield
        return
    from latprune.errors import InvalidArgumentError
    from latprune.progress import listening, stretch
    from latprune.showing import JsonLines, Lines, Several, ticking

    stream = stream or sys.stderr
    if args.quiet and form not in ("auto", "none"):
        raise InvalidArgumentError(f"--quiet shows no progress, and --progress {form} asks for it; leave one of them out")
    form = "none" if args.quiet or (form == "auto" and getattr(args, "json", False)) else form
    if form == "auto":
        form = "bar" if stream.isatty() else "log"
    with ExitStack() as stack:
        listeners: list[Listener] = []
        if form == "log":
            listeners.append(stack.enter_context(ticking(Lines(stream))))
        elif form == "json":
            listeners.append(stack.enter_context(ticking(JsonLines(stream))))
        elif form == "bar":
            from latprune.showing.terminal import Display

            display = stack.enter_context(Display(stream))
            listeners.append(stack.enter_context(ticking(display, seconds=1.0)))
        if args.log_file:
            try:
                file = stack.enter_context(open(args.log_file, "a", encoding="utf-8"))
            except OSError as error:
                raise InvalidArgumentError(
                    f"--log-file (={args.log_file!r}) cannot be written ({error.strerror or error}); give a file in a folder that exists"
                ) from error
            listeners.append(stack.enter_context(ticking(Lines(file))))
        if listeners:
            stack.enter_context(listening(Several(listeners)))
        with stretch(args.command):
            yield
