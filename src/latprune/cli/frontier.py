"""``latprune frontier``: solve at many limits of one resource: a saved result, a model, or a problem file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from latprune.cli.arguments import add_image_arguments, add_model_arguments, add_target_arguments
from latprune.cli.progress import add_progress_arguments
from latprune.cli.pruning_arguments import add_data_arguments, add_method_arguments, add_table_arguments, check_data, options_of

if TYPE_CHECKING:
    from latprune.problem import Problem
    from latprune.solve import Frontier

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune frontier pruned/result --points 50 --plot frontier.svg -o frontier.json
  latprune frontier --model nets.py:net --input 1x3x32x32 --criterion magnitude --resource flops -o frontier.json
  latprune frontier tables.json --model nets.py:net --input 1x3x32x32 --criterion magnitude --write-problem problem.json -o frontier.json
  latprune frontier problem.json --resource latency --points 50 -o frontier.json

exit codes: as `latprune solve`; an interrupted run writes the points that it finished and returns 130
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    from latprune.cli.solve import add_solver_arguments

    parser = subparsers.add_parser(
        "frontier",
        help="solve at many limits: a saved result, a model with its tables, or a problem file",
        description="Solve for limits of one resource, evenly spaced from the lowest reachable use to the dense one: the problem of a "
        "saved result or of a problem file, or that of a model, whose latency tables are built or given. `latprune explore` shows them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="a saved result (folder, .zip or result.json), a problem file, an ONNX file, or the latency tables of --model",
    )
    parser.add_argument("--resource", default=None, help="resource whose limit varies (default: the first one; latency of a model)")
    parser.add_argument("--points", type=int, default=50, help="number of limits (default: %(default)s)")
    add_model_arguments(parser, required=False)
    add_target_arguments(parser)
    # The solver has options of its own here.
    add_method_arguments(parser.add_argument_group("method, of a model"), solver=False)
    data = parser.add_argument_group("data, of a model")
    add_data_arguments(data, accuracy=False)
    add_image_arguments(data)
    add_table_arguments(parser.add_argument_group("tables, of a model"))
    add_solver_arguments(parser)
    parser.add_argument("--write-problem", metavar="FILE", help="also write the problem, for `latprune solve`")
    parser.add_argument("--plot", metavar="FILE", help="also draw it (.svg, .png, .pdf)")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write the frontier (default: standard output)")
    add_progress_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import sys

    from latprune.cli.option_rules import refuse_losing, refuse_shared
    from latprune.cli.solve import EXIT_CODES, INTERRUPTED, write_output
    from latprune.solve import FrontierInterrupted

    for option in ("output", "write_problem", "plot"):
        refuse_losing(args, getattr(args, option), argument=f"--{option.replace('_', '-')}")
    refuse_shared({"--output": args.output, "--write-problem": args.write_problem, "--plot": args.plot})
    if args.plot is not None:  # told now rather than when all is solved
        from latprune.report import figure_kind

        figure_kind(args.plot, argument="--plot")
    interrupted = False
    problem = None
    try:
        found, problem = _of_model(args) if args.model or (args.source or "").endswith(".onnx") else _of_problem(args)
    except FrontierInterrupted as stopped:
        found, interrupted = stopped.frontier, True
    except KeyboardInterrupt:
        from latprune.solve import Frontier

        found, interrupted = Frontier(resource=args.resource or "", unit="", points=()), True
    if args.output is None:
        sys.stdout.write(found.to_json())
    else:
        write_output(args.output, found.to_json())
    if args.write_problem is not None and problem is not None:
        write_output(args.write_problem, problem.to_json(), argument="--write-problem")
    statuses = [p.solution.status for p in found.points]
    counts = ", ".join(f"{statuses.count(s)} {s}" for s in EXIT_CODES if s in statuses)
    print(f"{len(statuses)} limits: {counts}", file=sys.stderr if args.output is None else sys.stdout)
    if args.plot is not None:
        _plot(found, args.plot)
    if interrupted:
        return INTERRUPTED
    codes = {EXIT_CODES[s] for s in statuses}
    return 0 if 0 in codes else min(codes)


def _of_problem(args: argparse.Namespace) -> tuple[Frontier, Problem]:
    """The frontier of a problem that is there: a problem file's, or a saved result's."""
    from latprune.cli.solve import chosen_solver
    from latprune.progress import stretch
    from latprune.solve import solve_frontier

    solver = chosen_solver(args)
    problem = _problem(args.source)
    resource = problem.costs[0].name if args.resource is None else args.resource
    with stretch("frontier", total=args.points, unit="budgets") as work:
        found = solve_frontier(
            problem, resource, points=args.points, solver=solver, time_limit=args.time_limit, gap=args.gap, progress=work.reached
        )
    return found, problem


def _problem(source: str | None) -> Problem:
    """The problem of a problem file or a saved result."""
    import json
    from pathlib import Path

    from latprune.errors import FileFormatError, InvalidArgumentError
    from latprune.export import read_record
    from latprune.problem import Problem

    if source is None:
        raise InvalidArgumentError("SOURCE is missing: give a saved result, a problem file or an ONNX file, or --model and --input")
    kind: Any = None
    if Path(source).is_dir() or Path(source).suffix == ".zip":
        kind = "latprune/result"
    else:
        try:
            data = json.loads(Path(source).read_bytes())
        except (OSError, ValueError):
            data = None  # the reader of problems says what is wrong
        kind = data.get("format") if isinstance(data, dict) else None
    if kind == "latprune/result":
        record = read_record(source)
        if record.problem is None:
            raise InvalidArgumentError(
                f"SOURCE (={source!r}) is a result of method {record.method.name!r} that no problem was solved for; give the model itself: "
                "--model and --input"
            )
        return Problem.from_json(json.dumps(record.problem))
    if kind == "latprune/latency-tables":
        raise InvalidArgumentError(
            f"SOURCE (={source!r}) holds latency tables, which say what widths cost, not what they are worth: give --model and --input too"
        )
    if kind == "latprune/explorer":
        raise FileFormatError(f"{source!r} holds networks, not the problem that they solve: give the model itself, --model and --input")
    return Problem.read(source)


def _of_model(args: argparse.Namespace) -> tuple[Frontier, Problem]:
    """The frontier of a model, traced and scored here, with the tables that were given or are built."""
    from latprune.cli.model_files import model_and_batches, settle_inputs
    from latprune.errors import InvalidArgumentError
    from latprune.pruning.frontier import frontier_of
    from latprune.pruning.pruner import Pruner

    if args.units is not None or args.gap:
        raise InvalidArgumentError("--units and --gap belong to a problem file; write one with --write-problem and solve that")
    if args.source is not None and args.tables is not None and not args.source.endswith(".onnx"):
        raise InvalidArgumentError(f"SOURCE (={args.source!r}) and --tables (={args.tables!r}) are both tables of the model; give one")
    budgets = {"latency": "100%", "flops": "flops=100%", "params": "params=100%"}
    resource = args.resource or "latency"
    if resource not in budgets:
        raise InvalidArgumentError(f"--resource (={args.resource!r}) must be one of {', '.join(budgets)} for a model")
    args.file = args.source if args.source is not None and args.source.endswith(".onnx") else None
    tables = args.tables if args.file else args.source or args.tables
    settle_inputs(args)
    check_data(args)
    model, inputs, batches = model_and_batches(args)
    args.solver = None if args.solver == "exact" and not args.solver_arg else args.solver
    pruner = Pruner(model, inputs, budget=budgets[resource], **options_of(args, tables=tables))
    try:
        return frontier_of(
            pruner,
            points=args.points,
            data=batches,
            batches=args.importance_batches or None,
            time_limit=args.time_limit,
        )
    finally:
        pruner.close()


def _plot(frontier: Frontier, path: str) -> None:
    """Draw the frontier into a file."""
    from latprune.report import compute_frontier, new_figure, plot_frontier, save_figure

    figure = new_figure(6.4, 4.0)
    plot_frontier(compute_frontier(frontier.to_dict(), unit=frontier.unit), figure.subplots())
    save_figure(figure, path)
