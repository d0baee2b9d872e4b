"""``latprune solve``: solve a problem file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latprune.cli.progress import add_progress_arguments
from latprune.cli.pruning_arguments import add_solver_argument

if TYPE_CHECKING:
    from latprune.problem import Problem, Solution
    from latprune.solve import Solver

__all__ = ["add_parser", "run"]

EXIT_CODES = {"optimal": 0, "feasible": 0, "infeasible": 3, "limit": 4}
INTERRUPTED = 130

_EPILOG = """\
examples:
  latprune solve problem.json -o solution.json
  latprune solve problem.json --solver highs --time-limit 60 -o solution.json
  latprune solve problem.json --solver group-knapsack --units 20000
  latprune solve problem.json --sensitivity

exit codes: 0 optimal or feasible, 1 internal error, 2 bad file or arguments, 3 infeasible, 4 stopped by the limit with nothing found,
5 solver not applicable or its extra missing, 130 interrupted; 0, 3, 4 and 130 write the solution
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "solve",
        help="solve a problem file",
        description="Choose the widths and blocks of a problem file (latprune/problem) that gain most within its limits.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("problem", metavar="PROBLEM", help="problem file (JSON)")
    add_solver_arguments(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write the solution (default: standard output)")
    parser.add_argument("--sensitivity", action="store_true", help="also print what one more unit of each resource buys, and what binds")
    add_progress_arguments(parser)
    parser.set_defaults(run=run)


def add_solver_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--solver`` and its options, ``--time-limit`` and ``--gap``."""
    parser.add_argument(
        "--solver",
        default="exact",
        metavar="NAME",
        help="solver (default: %(default)s); `latprune list solvers` names them, with their options",
    )
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop after this many seconds with the best answer so far")
    parser.add_argument("--gap", type=float, default=0.0, help="relative gap at which an answer is good enough (default: a proof)")
    parser.add_argument("--units", type=int, metavar="N", help="integer budget units of the knapsack solvers: as --solver-arg units=N")
    add_solver_argument(parser)


def chosen_solver(args: argparse.Namespace) -> Solver:
    """The solver that the arguments name."""
    from latprune.cli.loading import parse_arguments
    from latprune.solve import solver_named

    options = parse_arguments(args.solver_arg, argument="--solver-arg")
    if args.units is not None:
        options["units"] = args.units
    return solver_named(args.solver, **options)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import sys

    from latprune.cli.option_rules import refuse_overwriting
    from latprune.problem import Problem, Solution
    from latprune.progress import stretch
    from latprune.solve import SolveInterrupted, solve

    refuse_overwriting(args.output, args.problem, argument="--output")
    problem = None
    interrupted = False
    try:
        solver = chosen_solver(args)
        problem = Problem.read(args.problem)
        with stretch("solving") as work:

            def tell(gain: float | None, bound: float | None) -> None:
                work.note(**{name: value for name, value in (("gain", gain), ("bound", bound)) if value is not None})

            solution = solve(problem, solver, time_limit=args.time_limit, gap=args.gap, progress=tell)
    except SolveInterrupted as stopped:
        solution, interrupted = stopped.solution, True
    except KeyboardInterrupt:
        solution, interrupted = Solution(solver=args.solver, status="limit"), True
    if args.output is None:
        sys.stdout.write(solution.to_json())
    else:
        write_output(args.output, solution.to_json())
    for line in summary(solution, interrupted=interrupted):
        print(line, file=sys.stderr if args.output is None else sys.stdout)
    if problem is not None and solution.status == "infeasible":
        print(f"latprune: {reason(problem, solution)}", file=sys.stderr)
    if problem is not None and args.sensitivity and solution.assignment is not None and not interrupted:
        for line in sensitivity_lines(problem, solution):
            print(line, file=sys.stderr if args.output is None else sys.stdout)
    return INTERRUPTED if interrupted else EXIT_CODES[solution.status]


def write_output(path: str, text: str, *, argument: str = "--output") -> None:
    """Write a result file; what stands in the way becomes an error of the arguments."""
    from latprune.errors import InvalidArgumentError
    from latprune.problem.writer import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise InvalidArgumentError(f"{argument} (={path!r}) cannot be written: {error.strerror or error}") from error


def summary(solution: Solution, *, interrupted: bool) -> list[str]:
    """The solution in a few lines."""
    lines = [f"status   {solution.status}{' (interrupted)' if interrupted else ''}, solver {solution.solver}, {solution.seconds:.2f} s"]
    if solution.gain is not None:
        bound = "no bound" if solution.bound is None else f"bound {solution.bound:.6g}, gap {solution.gap:.2g}"
        lines.append(f"gain     {solution.gain:.6g} ({bound})")
    for name, value in (solution.costs or {}).items():
        lines.append(f"{name:8} {value:.6g}")
    return [*lines, *(f"note     {note}" for note in solution.notes)]


def reason(problem: Problem, solution: Solution) -> str:
    """Why a problem is infeasible, in words."""
    from latprune.errors import BudgetInfeasibleError
    from latprune.solve import require_answer

    try:
        require_answer(problem, solution)
    except BudgetInfeasibleError as error:
        return str(error)
    return solution.status


def sensitivity_lines(problem: Problem, solution: Solution) -> list[str]:
    """What the solution hangs on, in a few lines."""
    from latprune.solve import sensitivity

    found = sensitivity(problem, solution)
    units = {r.name: r.unit or "unit" for r in problem.costs}
    lines = [
        f"{name}: one more {units[name]} buys {worth:.4g} gain; {found.slack[name]:.4g} {units[name]} left"
        + (", binds" if name in found.binding else "")
        for name, worth in found.multipliers.items()
    ]
    for what, names in (
        ("at their largest choice", found.at_most),
        ("at their smallest choice", found.at_least),
        ("removed", found.removed),
    ):
        if names:
            lines.append(f"{what}: {', '.join(names)}")
    return lines
