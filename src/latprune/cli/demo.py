"""``latprune demo``: the whole way on real data in a few minutes."""

from __future__ import annotations

import argparse

from latprune.cli.progress import add_progress_arguments

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune demo
  latprune demo --output demo-result --engine onnxruntime
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "demo",
        help="train, explore, prune, verify, export and report a small network",
        description="Train a small residual network on scikit-learn's handwritten digits, show what every budget would give, prune it to "
        "half of its measured latency, recover without training, verify in a new process, export ONNX and write a report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--output", default="demo-result", metavar="FOLDER", help="where to put the result (default: %(default)s)")
    parser.add_argument("--engine", default="openvino", help="engine to prune for (default: %(default)s)")
    parser.add_argument("--budget", default="50%", help="what to prune to (default: 50%%)")
    add_progress_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from latprune.cli.demonstration import demo

    result = demo(args.output, engine=args.engine, budget=args.budget)
    print(result)
    print(f"every budget: {Path(args.output) / 'explorer.html'}")
    print(f"this one:     {Path(args.output) / 'result' / 'report.html'}")
    return 0
