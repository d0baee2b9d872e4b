"""Arguments that commands share which score and solve: method, rules for widths, data, tables; and what they come to."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from latprune.cli.arguments import add_fold_argument, add_form_argument

if TYPE_CHECKING:
    from latprune.methods import Method, Schedule
    from latprune.methods.width_rules import WidthRules
    from latprune.pruning.options import SharedOptions
    from latprune.recovery import Recovery
    from latprune.solve import Solver

__all__ = [
    "add_data_arguments",
    "add_method_arguments",
    "add_solver_argument",
    "add_table_arguments",
    "check_data",
    "evaluation_of",
    "method_of",
    "options_of",
    "recovery_of",
    "schedule_of",
    "solver_of",
    "width_rules_of",
]


def add_method_arguments(group: argparse._ActionsContainer, *, solver: bool = True) -> None:
    """Add ``--method``, ``--schedule``, ``--solver`` and their options, rules for modules, blocks and widths, ``--form``, ``--fold``."""
    group.add_argument("--method", default="mdp", help="pruning method (default: %(default)s)")
    group.add_argument(
        "--method-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the method, such as stages=10; may be repeated",
    )
    group.add_argument("--criterion", "--importance", metavar="NAME", help="criterion that scores the channels (default: the method's own)")
    group.add_argument("--criterion-arg", action="append", default=[], metavar="KEY=VALUE", help="option of the criterion; may be repeated")
    group.add_argument("--schedule", metavar="NAME", help="how the method goes to its budget: single_pass, stages, ... (default: its own)")
    group.add_argument(
        "--schedule-arg", action="append", default=[], metavar="KEY=VALUE", help="option of --schedule, such as stages=10; may be repeated"
    )
    group.add_argument("--stages", type=int, help="stages of a staged method: short for --method-arg stages=N")
    group.add_argument("--no-blocks", action="store_true", help="keep all blocks: short for --method-arg blocks=false")
    group.add_argument("--no-channels", action="store_true", help="remove whole blocks only: short for --method-arg channels=false")
    group.add_argument("--keep", action="append", default=[], metavar="GLOB", help="modules to leave whole; may be repeated")
    group.add_argument("--blocks-keep", action="append", default=[], metavar="GLOB", help="blocks that must stay; may be repeated")
    group.add_argument("--min-width", action="append", default=[], metavar="GROUP=N", help="smallest width of a group or glob")
    group.add_argument("--max-width", action="append", default=[], metavar="GROUP=N", help="largest width of a group or glob")
    group.add_argument("--min-share", action="append", default=[], metavar="[GROUP=]X", help="smallest share of a group's channels, 0 to 1")
    group.add_argument("--max-share", action="append", default=[], metavar="[GROUP=]X", help="largest share of a group's channels, 0 to 1")
    group.add_argument("--multiple-of", action="append", default=[], metavar="[GROUP=]N", help="widths are multiples of N; may be repeated")
    group.add_argument("--within", metavar="PATH", help="prune inside of this sub-module only")
    add_form_argument(group)
    add_fold_argument(group, temporary=True)
    if solver:
        group.add_argument("--solver", help="solver of the pruning problem (default: the method's own)")
        add_solver_argument(group)
    group.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")


def add_solver_argument(group: argparse._ActionsContainer) -> None:
    """Add ``--solver-arg``."""
    group.add_argument(
        "--solver-arg", action="append", default=[], metavar="KEY=VALUE", help="option of the solver, such as units=20000; may be repeated"
    )


def add_data_arguments(group: argparse._ActionsContainer, *, accuracy: bool = True) -> None:
    """Add ``--data``, ``--recover``, ``--importance-batches`` with their options; unless told, what evaluates too."""
    group.add_argument("--data", metavar="MODULE:CALLABLE", help="returns batches (inputs, labels) for scoring, recovery and fine-tuning")
    if accuracy:
        group.add_argument("--test-data", metavar="MODULE:CALLABLE", help="returns batches (inputs, labels) for accuracy")
    group.add_argument("--data-arg", action="append", default=[], metavar="KEY=VALUE", help="keyword argument of both; may be repeated")
    group.add_argument(
        "--recover",
        metavar="STRATEGY",
        help="recovery without training of what is cut: refit (default with --data or --images), none, or as `latprune list strategies`",
    )
    group.add_argument(
        "--recover-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the strategy, such as ridge=0.01; may be repeated",
    )
    group.add_argument(
        "--importance-batches", type=_count_or_all, default=16, help="batches to score with; 0 takes all (default: %(default)s)"
    )
    if accuracy:
        group.add_argument("--evaluate", metavar="MODULE:CALLABLE", help="evaluate(model) -> accuracy of your own instead of --test-data")
        group.add_argument("--train-threads", type=int, help="threads of fine-tuning and evaluation (default: all cores)")


def add_table_arguments(group: argparse._ActionsContainer) -> None:
    """Add ``--store``, ``--tables``, ``--predictor`` and ``--predict-only``."""
    group.add_argument("--store", metavar="FILE", help="latency store (default: the user's cache folder)")
    group.add_argument(
        "--tables", metavar="FILE", help="latency tables of this model and target, from latprune measure -o (default: built)"
    )
    group.add_argument("--predictor", metavar="FILE", help="kernel predictor (latprune predictor train) in place of tables")
    group.add_argument(
        "--predict-only", action="store_true", help="measure nothing: the device is not here; go by what --tables predict, less their error"
    )


def check_data(args: argparse.Namespace) -> None:
    """Refuse options about images without images, images beside other batches, and two ways to evaluate."""
    from latprune.errors import InvalidArgumentError

    if getattr(args, "evaluate", None) and args.test_data:
        raise InvalidArgumentError("--test-data does nothing with --evaluate, which evaluates in its own way; leave one of them out")
    if args.images is None:
        given = next((name for name in ("mean", "std") if getattr(args, name) is not None), None)
        if given is not None:
            raise InvalidArgumentError(f"--{given} says how --images are read; there are none")
    elif args.data:
        raise InvalidArgumentError("--images and --data are both batches to score and recover with; leave one of them out")


def _count_or_all(text: str) -> int:
    """A number of batches; 0 is all of them."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"(={text}) must be a whole number of at least 1, or 0 for all")
    return int(text)


def method_of(args: argparse.Namespace) -> Method:
    """The method that the arguments describe."""
    from latprune.cli.loading import parse_arguments
    from latprune.cli.option_rules import refuse_twice
    from latprune.errors import InvalidArgumentError
    from latprune.importance import get_criterion
    from latprune.methods import get_method

    options: dict[str, Any] = parse_arguments(args.method_arg, argument="--method-arg")
    for short, name, given in (
        ("--stages", "stages", args.stages is not None),
        ("--criterion", "score", args.criterion is not None),
        ("--no-blocks", "blocks", args.no_blocks),
        ("--no-channels", "channels", args.no_channels),
    ):
        if given:
            refuse_twice(options, name, argument="--method-arg", beside=short)
    if args.schedule is not None:
        _refuse_unscheduled(args.method, options, schedule=args.schedule)
    if args.schedule is not None and args.stages is not None:
        raise InvalidArgumentError(
            f"--stages does nothing with --schedule (={args.schedule!r}), which goes to the budget in its own way; leave one of them out "
            f"(--schedule-arg stages={args.stages})"
        )
    if args.stages is not None:
        options["stages"] = args.stages
    if args.criterion is not None:
        options["score"] = get_criterion(args.criterion, **parse_arguments(args.criterion_arg, argument="--criterion-arg"))
    elif args.criterion_arg:
        raise InvalidArgumentError("--criterion-arg needs --criterion")
    if args.no_blocks:
        options["blocks"] = False
    if args.no_channels:
        options["channels"] = False
    return get_method(args.method, **options)


def _refuse_unscheduled(method: str, options: dict[str, Any], *, schedule: str) -> None:
    """Refuse options that say how the method itself goes to its budget, where a schedule stands in for that."""
    from dataclasses import fields

    from latprune.errors import InvalidArgumentError
    from latprune.methods import Schedule, get_method

    made = get_method(method, **options)
    own = {entry.name for entry in fields(made.schedule)}
    for name in options:
        if name in own or isinstance(getattr(made, name, None), Schedule):
            raise InvalidArgumentError(
                f"--method-arg {name}= does nothing with --schedule (={schedule!r}), which goes to the budget in its own way; leave one of "
                f"them out (--schedule-arg {name}=)"
            )


def options_of(args: argparse.Namespace, *, tables: str | None = None) -> SharedOptions:
    """What :func:`add_method_arguments`, :func:`add_table_arguments` and the target's arguments come to, for ``prune`` and its kin.

    Args:
        args: The arguments, after ``settle_inputs``.
        tables: File of latency tables in place of ``--tables``.
    """
    from latprune.cli.loading import glob_numbers, load_tables, target_from
    from latprune.cli.option_rules import check_seed, check_threads
    from latprune.latency import KernelPredictor, Store

    check_seed(args.seed)
    check_threads(args)
    file = tables or args.tables
    return {
        "target": target_from(args),
        "method": method_of(args),
        "schedule": schedule_of(args),
        "keep": args.keep,
        "blocks_keep": args.blocks_keep,
        "min_widths": dict(glob_numbers(args.min_width, "--min-width", int)),
        "widths": width_rules_of(args),
        "within": args.within,
        "tables": load_tables(file) if file else None,
        "predictor": KernelPredictor.load(args.predictor) if args.predictor else None,
        "store": Store(args.store) if args.store else None,
        "solver": solver_of(args),
        "recover": recovery_of(args),
        "seed": args.seed,
        "measure_latency": not args.predict_only,
        "progress": None,  # the display of the command line listens already
        "form": args.form,
        "fold": args.fold,
    }


def recovery_of(args: argparse.Namespace) -> bool | Recovery:
    """The strategy of recovery: none, the default where there is data, or one with its options."""
    from latprune.cli.loading import parse_arguments
    from latprune.errors import InvalidArgumentError
    from latprune.recovery import get_strategy

    options = parse_arguments(args.recover_arg, argument="--recover-arg")
    if args.recover in (None, "none"):
        if options:
            raise InvalidArgumentError("--recover-arg needs --recover with a strategy")
        return args.recover is None
    return get_strategy(args.recover, **options)


def schedule_of(args: argparse.Namespace) -> Schedule | None:
    """The schedule that the arguments name, with its options; None leaves it to the method."""
    from latprune.cli.loading import parse_arguments
    from latprune.errors import InvalidArgumentError
    from latprune.methods import get_schedule

    options = parse_arguments(args.schedule_arg, argument="--schedule-arg")
    if args.schedule is None:
        if options:
            raise InvalidArgumentError("--schedule-arg needs --schedule")
        return None
    return get_schedule(args.schedule, **options)


def solver_of(args: argparse.Namespace) -> str | Solver | None:
    """The solver that the arguments name, with its options; None leaves it to the method."""
    from latprune.cli.loading import parse_arguments
    from latprune.errors import InvalidArgumentError
    from latprune.solve import solver_named

    options = parse_arguments(args.solver_arg, argument="--solver-arg")
    if args.solver is None:
        if options:
            raise InvalidArgumentError("--solver-arg needs --solver")
        return None
    return solver_named(args.solver, **options) if options else str(args.solver)


def width_rules_of(args: argparse.Namespace) -> WidthRules | None:
    """The rules for widths on offer; None where there are none."""
    from latprune.cli.loading import glob_numbers
    from latprune.methods.width_rules import WidthRules

    multiple, largest = glob_numbers(args.multiple_of, "--multiple-of", int), glob_numbers(args.max_width, "--max-width", int)
    least, most = glob_numbers(args.min_share, "--min-share", float), glob_numbers(args.max_share, "--max-share", float)
    if not (multiple or largest or least or most):
        return None
    return WidthRules(
        multiple_of=dict(multiple) or None, max_widths=dict(largest) or None, min_share=dict(least) or None, max_share=dict(most) or None
    )


def evaluation_of(args: argparse.Namespace, keywords: dict[str, Any]) -> Any:
    """The accuracy of a model as a function; None where nothing says how to evaluate."""
    from latprune.cli.loading import load_batches, load_callable

    if args.evaluate:
        return load_callable(args.evaluate, argument="--evaluate")
    if args.test_data:
        from latprune.pruning.finetuning import training_threads
        from latprune.train import evaluate
        from latprune.train.contracts import rereadable

        batches = rereadable(load_batches(args.test_data, keywords, argument="--test-data"))

        def accuracy(model: Any) -> float:
            with training_threads(args.train_threads):
                return evaluate(model, batches)

        return accuracy
    return None
