"""``latprune doctor``: what this machine can measure, how well, and what to do about it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latprune.cli.progress import add_progress_arguments

if TYPE_CHECKING:
    from latprune.latency.health import EngineHealth

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="say what this machine can measure, and how well",
        description="Look at engines, processor, clock and other work, and measure a small network against itself on every engine.",
        epilog="examples:\n  latprune doctor\n  latprune doctor --seconds 3 --json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of measuring for each engine (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_progress_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json
    from dataclasses import asdict

    from latprune.errors import InvalidArgumentError
    from latprune.latency.health import examine

    if not args.seconds > 0:
        raise InvalidArgumentError(f"--seconds (={args.seconds}) must be a number of seconds above 0")
    found = examine(seconds=args.seconds)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    load = f", load {found.load:.1f}" if found.load is not None else ""
    stolen = f", {found.stolen:.1%} of the time taken by other machines" if found.stolen is not None else ""
    print(f"processor  {found.processor}\n           {found.cores} to use{load}{stolen}")
    print(f"clock      {', '.join(f'{name} {value}' for name, value in found.clock.items()) or 'not shown by this system'}")
    for engine in found.engines:
        print(f"engine     {engine.name:<14} {_engine(engine)}")
    for line in found.advice or ("nothing stands in the way of measuring here",):
        print(f"advice     {line}")
    return 0


def _engine(engine: EngineHealth) -> str:
    if engine.version is None:
        return engine.problem or "not installed"
    if engine.itself is None:
        return f"{engine.version}  does not run: {engine.problem}"
    m = engine.itself
    against = f"{m.ratio:.2%} [{m.ratio_low:.2%}, {m.ratio_high:.2%}]" if m.ratio is not None else "–"
    return f"{engine.version}  {', '.join(engine.precisions)}; against itself {against}, {m.interrupted:.0%} interrupted"
