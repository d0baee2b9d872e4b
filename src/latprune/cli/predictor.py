"""``latprune predictor``: train a predictor on a latency store, and predict networks that were never measured."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latprune.cli.arguments import add_model_arguments, add_target_arguments
from latprune.cli.option_rules import note_given
from latprune.cli.progress import add_progress_arguments

if TYPE_CHECKING:
    from latprune.latency import ContextInfo, Store

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune predictor train --sweep 200 --engine openvino -o openvino.npz
  latprune predictor train 1 -o openvino.npz
  latprune predictor predict openvino.npz --model latprune.zoo:mobilenet_v2 --input 1x3x224x224
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "predictor",
        help="train a latency predictor on measured tables and random networks, and use it",
        description="A predictor stands in for tables and for a device that is not at hand: a regression model per kernel family, trained "
        "on what a store holds for one set of conditions. --sweep first measures random networks here, which show it kernels of all kinds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    train = actions.add_parser("train", help="train on a store, with --sweep on random networks as well")
    note_given(train)
    train.add_argument(
        "context",
        type=int,
        nargs="?",
        metavar="N",
        help="number of the conditions, as `latprune table ls` lists them (with --sweep: the target's, here and now)",
    )
    train.add_argument("--store", metavar="FILE", help="latency store (default: the user's cache folder)")
    train.add_argument("--sweep", type=int, metavar="NETWORKS", help="measure random networks first until the store holds this many")
    train.add_argument("--time-limit", type=float, metavar="SECONDS", help="with --sweep: stop measuring after this long")
    train.add_argument("--seed", type=int, default=0, help="seed of the random networks and of the forests (default: %(default)s)")
    train.add_argument("-o", "--output", required=True, metavar="FILE", help="predictor file to write (.npz)")
    add_target_arguments(train)
    add_progress_arguments(train)
    predict = actions.add_parser("predict", help="predict a model's latency")
    predict.add_argument("predictor", metavar="FILE", help="predictor file")
    add_model_arguments(predict)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from latprune.latency import KernelPredictor, Store, train_predictor

    if args.action == "train":
        from latprune.cli.option_rules import existing_store, output_file, refuse_losing

        _check(args)
        refuse_losing(args, args.output, argument="--output")
        output = output_file(args.output, argument="--output")
        sweep = args.sweep is not None
        with Store(args.store) if sweep else Store(existing_store(args.store), reading=True) as store:
            context = _swept(args, store) if sweep else _chosen(args, store)
            predictor = train_predictor(context, store.networks(context), seed=args.seed)
        predictor.save(output)
        print(f"{predictor.samples} kernel samples of {context.target}; families: {', '.join(sorted(predictor.families))}")
        print(f"95 % of the networks that it was trained on within {predictor.spread:.1%}; written to {output}")
        return 0

    from latprune.cli.loading import example_inputs, load_model, parse_input
    from latprune.errors import InvalidArgumentError
    from latprune.graph import trace

    predictor = KernelPredictor.load(args.predictor)
    batch = predictor.context.target.batch
    if parse_input(args.input[0]).shape[0] != batch:
        raise InvalidArgumentError(f"--input (={args.input[0]!r}) must begin with {batch}, the batch that {args.predictor} predicts for")
    model = load_model(args.model, args.model_arg, args.weights)
    graph = trace(model, example_inputs(args.input, batch=batch, model=model))
    found = predictor.network(graph.kernels.values(), graph.dense_widths())
    print(f"{found.ms:.3f} ms  [{found.low:.3f}, {found.high:.3f}]  on {predictor.context.target} ({predictor.context.machine})")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would be ignored, and numbers that nothing can be done with."""
    from latprune.cli.option_rules import check_numbers, refuse_ignored
    from latprune.errors import InvalidArgumentError

    check_numbers(args)
    if args.sweep is None:
        refuse_ignored(
            args,
            ("engine", "device", "threads", "batch", "precision", "time_limit"),
            beside="N, the conditions of a store: --sweep measures",
        )
    elif args.sweep < 1:
        raise InvalidArgumentError(f"--sweep (={args.sweep}) must be at least 1")


def _chosen(args: argparse.Namespace, store: Store) -> ContextInfo:
    """The conditions of the given number."""
    from latprune.cli.option_rules import conditions
    from latprune.errors import InvalidArgumentError

    if args.context is None:
        raise InvalidArgumentError("train needs N, the number of the conditions (see latprune table ls), or --sweep to measure here")
    return conditions(store, args.context)


def _swept(args: argparse.Namespace, store: Store) -> ContextInfo:
    """Measure random networks under the target's conditions; returns those."""
    from latprune.cli.loading import target_from
    from latprune.errors import InvalidArgumentError
    from latprune.latency import SweepProgress, sweep_kernels, target_context
    from latprune.progress import stretch

    if args.context is not None:
        raise InvalidArgumentError(f"N (={args.context}) and --sweep exclude each other: a sweep measures on the target, here and now")
    target = target_from(args)

    def progress(state: SweepProgress) -> None:
        work.reached(state.networks, state.wanted, failed=state.failed, chosen="by doubt" if state.adaptive else "at random")

    with stretch("measuring random networks", total=args.sweep, unit="networks", timed=True) as work:
        measured = sweep_kernels(target, store, args.sweep, seed=args.seed, time_limit=args.time_limit, progress=progress)
    print(f"{measured} random networks measured and stored in {store.path}")
    return target_context(target)
