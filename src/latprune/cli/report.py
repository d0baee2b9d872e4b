"""``latprune report``: the table and the page of a saved result, or the page of an exploration."""

from __future__ import annotations

import argparse

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune report pruned/result
  latprune report pruned/result -o report.html
  latprune report pruned/result -o widths.svg
  latprune report onnxruntime.json --beside openvino.json -o both.html
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report",
        help="show a saved result as a table, or write it or an exploration as an HTML page",
        description="Print the before/after table of a saved result; with -o also write it as one self-contained HTML page or as a figure. "
        "Of an exploration (explorer.json) write the page, with explorations for other targets beside it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", metavar="RESULT", help="folder or .zip of a saved result, a result.json, or an explorer.json")
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write: .html, or a figure as .svg, .png or .pdf")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="FILE", help="explorer.json of the same model for another target; may be repeated"
    )
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
    if _is_exploration(args.result):
        return _write_explorer(args)
    if args.beside:
        raise InvalidArgumentError(
            f"--beside goes with an exploration, and {args.result!r} is a result; `latprune compare` measures two results"
        )
    record = read_record(args.result)
    print_summary(record)
    if kind == ".html":
        print(f"wrote {write_html(record, args.output)}")
    elif kind:
        print(f"wrote {save_figure(plot_result(record), args.output)}")
    return 0


def _is_exploration(path: str) -> bool:
    """Whether a file says that it is an exploration; what cannot be read is left to the reader of results."""
    import json
    from pathlib import Path

    from latprune.export.exploration import EXPLORER_FORMAT

    if not path.endswith(".json"):
        return False
    try:
        document = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("format") == EXPLORER_FORMAT


def _write_explorer(args: argparse.Namespace) -> int:
    from latprune.errors import InvalidArgumentError
    from latprune.pruning.exploration import Exploration

    if not args.output or not args.output.endswith(".html"):
        raise InvalidArgumentError(
            f"--output (={args.output!r}) must name the page to write, which ends in .html: {args.result!r} is an exploration"
        )
    found = Exploration.load(args.result)
    print(repr(found))
    print(f"wrote {found.write_html(args.output, beside=[Exploration.load(file) for file in args.beside])}")
    return 0
