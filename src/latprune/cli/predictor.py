"""``latprune predictor``: train a predictor on a latency store, and predict networks that were never measured."""

from __future__ import annotations

import argparse

from latprune.cli.arguments import add_model_arguments

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune predictor train 1 -o openvino.npz
  latprune predictor predict openvino.npz --model latprune.zoo:mobilenet_v2 --input 1x3x224x224
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "predictor",
        help="train a latency predictor on measured tables, and use it",
        description="A predictor stands in for a device that is not at hand: a forest per kernel family, trained on what a store holds "
        "for one set of conditions (numbered as `latprune table ls` lists them).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    train = actions.add_parser("train", help="train on a store")
    train.add_argument("context", type=int, metavar="N", help="number of the conditions")
    train.add_argument("--store", metavar="FILE", help="latency store (default: the user's cache folder)")
    train.add_argument("--seed", type=int, default=0, help="seed of the forests (default: %(default)s)")
    train.add_argument("-o", "--output", required=True, metavar="FILE", help="predictor file to write (.npz)")
    predict = actions.add_parser("predict", help="predict a model's latency")
    predict.add_argument("predictor", metavar="FILE", help="predictor file")
    add_model_arguments(predict)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from latprune.latency import KernelPredictor, Store, train_predictor

    if args.action == "train":
        from latprune.errors import InvalidArgumentError

        with Store(args.store) as store:
            contexts = store.contexts()
            if not 1 <= args.context <= len(contexts):
                raise InvalidArgumentError(f"N (={args.context}) must lie between 1 and {len(contexts)}; see latprune table ls")
            context = contexts[args.context - 1][0]
            predictor = train_predictor(context, store.networks(context), seed=args.seed)
        predictor.save(args.output)
        print(f"{predictor.samples} kernel samples of {context.target}; families: {', '.join(sorted(predictor.forests))}")
        print(f"95 % of the networks that it was trained on within {predictor.spread:.1%}; written to {args.output}")
        return 0

    from latprune.cli.loading import example_inputs, load_model
    from latprune.graph import trace

    predictor = KernelPredictor.load(args.predictor)
    model = load_model(args.model, args.model_arg, args.weights)
    graph = trace(model, example_inputs(args.input, batch=predictor.context.target.batch))
    found = predictor.network(graph.kernels.values(), graph.dense_widths())
    print(f"{found.ms:.3f} ms  [{found.low:.3f}, {found.high:.3f}]  on {predictor.context.target} ({predictor.context.machine})")
    return 0
