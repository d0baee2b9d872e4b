"""``latprune report``: the table and the page of a saved result."""

from __future__ import annotations

import argparse

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune report pruned/result
  latprune report pruned/result -o report.html
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report",
        help="show a saved result as a table, or write it as an HTML page",
        description="Print the before/after table of a saved result; with -o also write it as one self-contained HTML page.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", metavar="RESULT", help="folder or .zip of a saved result, or a result.json")
    parser.add_argument("-o", "--output", metavar="FILE", help="HTML file to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from latprune.export import read_record
    from latprune.report import print_summary, write_html

    record = read_record(args.result)
    print_summary(record)
    if args.output:
        print(f"wrote {write_html(record, args.output)}")
    return 0
