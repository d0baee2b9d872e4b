"""``latprune verify``: rebuild a saved result and measure it again."""

from __future__ import annotations

import argparse

from latprune.cli.arguments import add_recorded_model_arguments
from latprune.cli.progress import add_progress_arguments

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune verify pruned/result
  latprune verify pruned/result --model nets.py:net
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "verify",
        help="measure a saved result again, in a new process",
        description="Rebuild the dense and the pruned network from a saved result, measure both in turns, and judge the budget.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", metavar="RESULT", help="folder or .zip of a saved result")
    add_recorded_model_arguments(parser)
    parser.add_argument("--evaluate", metavar="MODULE:CALLABLE", help="evaluate(model) -> accuracy")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="share of the budget that the measured interval may lie above it (default: %(default)s)",
    )
    parser.add_argument("--no-save", action="store_true", help="do not append the outcome to the result")
    add_progress_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from latprune.cli.loading import load_callable, recorded_constructor
    from latprune.errors import OverBudgetError
    from latprune.export import load_result
    from latprune.pruning.verification import verify

    record = load_result(args.result).record
    build = recorded_constructor(record, args.model, args.model_arg, trust=args.trust_recorded_model)
    evaluate = load_callable(args.evaluate, argument="--evaluate") if args.evaluate else None
    outcome = verify(args.result, build, evaluate=evaluate, tolerance=args.tolerance, save=not args.no_save)
    pruned = outcome.pruned
    print(f"target   {outcome.target}")
    if outcome.dense is not None:
        print(f"dense    {outcome.dense.ms:.3f} ms  [{outcome.dense.low:.3f}, {outcome.dense.high:.3f}]")
    print(f"pruned   {pruned.ms:.3f} ms  [{pruned.low:.3f}, {pruned.high:.3f}]")
    if pruned.ratio is not None and pruned.ratio_low is not None and pruned.ratio_high is not None:
        print(f"ratio    {pruned.ratio:.2%}  [{pruned.ratio_low:.2%}, {pruned.ratio_high:.2%}]  (95 % interval, measured in turns)")
    if outcome.accuracy is not None:
        print(f"accuracy {outcome.accuracy:.2%}")
    budgets = " and ".join(budget.text for budget in (record.budget, *record.further_budgets))
    print(f"budget   {budgets}: {'met' if outcome.met else 'NOT met'} (tolerance {args.tolerance:.0%})")
    for budget in (record.budget, *record.further_budgets):
        if budget.engine in (None, record.target.engine) or budget.share is not None:
            continue
        print(f"         {budget.text} was not measured when the network was pruned: latprune compare --engine {budget.engine} measures it")
    if not outcome.met:
        raise OverBudgetError(
            f"budget {budgets!r} is not met: measured {pruned.ms:.3f} ms",
            budget_ms=record.budget.limit or 0.0,
            measured_ms=pruned.ms,
        )
    return 0
