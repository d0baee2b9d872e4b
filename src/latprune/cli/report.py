"""``latprune report``: the table and the page of a saved result."""

from __future__ import annotations

import argparse

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune report pruned/result
  latprune report pruned/result -o report.html
  latprune report pruned/result -o widths.svg
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report",
        help="show a saved result as a table, or write it as an HTML page",
        description="Print the before/after table of a saved result; with -o also write it as one self-contained HTML page or as a figure.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", metavar="RESULT", help="folder or .zip of a saved result, or a result.json")
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write: .html, or a figure as .svg, .png or .pdf")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from latprune.errors import InvalidArgumentError
    from latprune.export import read_record
    from latprune.report import plot_result, print_summary, save_figure, write_html

    kind = Path(args.output).suffix or "." if args.output else ""
    if kind not in ("", ".html", ".svg", ".png", ".pdf"):
        raise InvalidArgumentError(f"--output (={args.output!r}) must end in .html, .svg, .png or .pdf")
    record = read_record(args.result)
    print_summary(record)
    if kind == ".html":
        print(f"wrote {write_html(record, args.output)}")
    elif kind:
        print(f"wrote {save_figure(plot_result(record), args.output)}")
    return 0
