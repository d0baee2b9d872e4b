"""``latprune frontier``: solve a problem file at many limits of one resource."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latprune.solve import Frontier

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune frontier problem.json --resource latency --points 50 -o frontier.json
  latprune frontier problem.json --resource latency --plot frontier.svg -o frontier.json

exit codes: as `latprune solve`; an interrupted run writes the points that it finished and returns 130
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    from latprune.cli.solve import add_solver_arguments

    parser = subparsers.add_parser(
        "frontier",
        help="solve a problem file at many limits",
        description="Solve a problem file for limits of one resource, evenly spaced from the lowest reachable use to the dense one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("problem", metavar="PROBLEM", help="problem file (JSON)")
    parser.add_argument("--resource", default=None, help="resource whose limit varies (default: the first one)")
    parser.add_argument("--points", type=int, default=50, help="number of limits (default: %(default)s)")
    add_solver_arguments(parser)
    parser.add_argument("--plot", metavar="FILE", help="also draw it (.svg, .png, .pdf)")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write the frontier (default: standard output)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import sys

    from latprune.cli.solve import EXIT_CODES, INTERRUPTED, chosen_solver, write_output
    from latprune.problem import Problem
    from latprune.solve import Frontier, FrontierInterrupted, solve_frontier

    solver = chosen_solver(args)
    problem = Problem.read(args.problem)
    resource = problem.costs[0].name if args.resource is None else args.resource
    interrupted = False
    try:
        found = solve_frontier(
            problem, resource, points=args.points, solver=solver, time_limit=args.time_limit, gap=args.gap, progress=_progress()
        )
    except FrontierInterrupted as stopped:
        found, interrupted = stopped.frontier, True
    except KeyboardInterrupt:
        found, interrupted = Frontier(resource=resource, unit="", points=()), True
    if args.output is None:
        sys.stdout.write(found.to_json())
    else:
        write_output(args.output, found.to_json())
    statuses = [p.solution.status for p in found.points]
    counts = ", ".join(f"{statuses.count(s)} {s}" for s in EXIT_CODES if s in statuses)
    print(f"{len(statuses)} limits: {counts}", file=sys.stderr if args.output is None else sys.stdout)
    if args.plot is not None:
        _plot(found, args.plot)
    if interrupted:
        return INTERRUPTED
    codes = {EXIT_CODES[s] for s in statuses}
    return 0 if 0 in codes else min(codes)


def _plot(frontier: Frontier, path: str) -> None:
    """Draw the frontier into a file."""
    from latprune.report import compute_frontier, new_figure, plot_frontier, save_figure

    figure = new_figure(6.4, 4.0)
    plot_frontier(compute_frontier(frontier.to_dict(), unit=frontier.unit), figure.subplots())
    save_figure(figure, path)


def _progress() -> Callable[[int, int], None] | None:
    """A counter on a terminal; nothing elsewhere."""
    import sys

    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
