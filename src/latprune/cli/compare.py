"""``latprune compare``: results, or models from anywhere, measured in turns on one engine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from latprune.cli.arguments import add_recorded_model_arguments, add_target_arguments
from latprune.cli.progress import add_progress_arguments

if TYPE_CHECKING:
    from latprune.latency import Target
    from latprune.pruning.comparison import Compared

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune compare pruned-a pruned-b
  latprune compare nets.py:net pruned --input 1x3x32x32 --engine onnxruntime --test-data nets.py:test_batches
  latprune compare nets.py:pruned_by_hand pruned --input 1x3x224x224

A network is the folder or .zip of a saved result, or MODULE:CALLABLE that returns a model. Ratios are to the first.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "compare",
        help="measure results, or other models, beside each other",
        description="Measure several networks in turns on one target, with what else they cost, in one table.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("networks", metavar="NETWORK", nargs="+", help="a saved result, or MODULE:CALLABLE that returns a model")
    add_recorded_model_arguments(parser)
    add_target_arguments(parser)
    for action in parser._actions:
        if action.dest in ("engine", "device", "threads", "precision"):
            action.default = None
            action.help = str(action.help).replace("(default: %(default)s)", "(default: as the first result records)")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]SHAPE[:DTYPE[:HIGH]]",
        help="an example input (default: as the first result records); repeat for several inputs in order",
    )
    parser.add_argument("--test-data", metavar="MODULE:CALLABLE", help="returns batches (inputs, labels) for accuracy")
    parser.add_argument("--data-arg", action="append", default=[], metavar="KEY=VALUE", help="keyword argument of it; may be repeated")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="seconds of measuring at most (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_progress_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json
    from dataclasses import asdict
    from pathlib import Path

    from latprune.cli.loading import example_inputs, load_batches, load_model, parse_arguments, recorded_constructor, recorded_inputs
    from latprune.errors import InvalidArgumentError
    from latprune.export import load_result
    from latprune.pruning.comparison import compare

    if len(args.networks) < 2:
        raise InvalidArgumentError(
            f"networks (={args.networks!r}) must be at least two, to be compared: name another result, or MODULE:CALLABLE"
        )
    saved = {name: load_result(name) for name in args.networks if Path(name).exists()}
    first = next(iter(saved.values())).record if saved else None
    if first is None and not args.input:
        raise InvalidArgumentError("none of the networks is a saved result, which would record its inputs; give --input")
    twice = sorted({name for name in args.networks if args.networks.count(name) > 1})
    if twice:
        raise InvalidArgumentError(f"{', '.join(twice)} is named twice; a network is compared with others")
    networks: dict[str, Any] = {}
    for name in args.networks:
        if name in saved:
            record = saved[name].record
            build = None
            if record.program is None:
                build = recorded_constructor(record, args.model, args.model_arg, trust=args.trust_recorded_model)
            networks[name] = saved[name].restore(build).eval()
        else:
            networks[name] = load_model(name, []).eval()
    held = networks[args.networks[0]]
    inputs = example_inputs(args.input, model=held) if first is None else recorded_inputs(first, args.input, model=held)
    evaluate = None
    if args.test_data:
        from latprune.train import evaluate as accuracy
        from latprune.train.contracts import rereadable

        keywords = parse_arguments(args.data_arg, argument="--data-arg")
        batches = rereadable(load_batches(args.test_data, keywords, argument="--test-data"))
        evaluate = lambda network: accuracy(network, batches)  # noqa: E731
    target = _target(args, first)
    found = compare(networks, inputs, target, evaluate=evaluate, max_seconds=args.max_seconds)
    if args.json:
        rows = [{**asdict(each), "latency": each.latency.to_dict()} for each in found]
        print(json.dumps({"target": target.to_dict(), "networks": rows}, indent=2))
    else:
        print(f"target  {target}")
        _table(found)
    return 0


def _target(args: argparse.Namespace, record: Any) -> Target:
    """The target of the first result, with what the command line says otherwise."""
    from latprune.latency import Target

    known = record.target.model_dump() if record is not None else {}
    asked = {name: getattr(args, name) for name in ("engine", "device", "threads", "batch", "precision")}
    if asked["batch"] is None and args.input:
        from latprune.cli.loading import parse_input

        asked["batch"] = parse_input(args.input[0]).shape[0]
    return Target(**{**known, **{name: value for name, value in asked.items() if value is not None}})


def _table(found: list[Compared]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("network", overflow="fold")
    for title in ("latency, ms", "of the first", "parameters", "multiply-adds", "accuracy"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in found:
        m = each.latency
        ratio = f"{m.ratio:.1%} [{m.ratio_low:.1%}, {m.ratio_high:.1%}]" if m.ratio is not None else ""
        table.add_row(
            escape(each.name),
            f"{m.ms:.3f} [{m.low:.3f}, {m.high:.3f}]",
            ratio if each is not found[0] else "–",
            f"{each.parameters:,}",
            f"{each.macs:,.0f}" if each.macs is not None else "–",
            f"{each.accuracy:.2%}" if each.accuracy is not None else "–",
        )
    console = Console()
    console.width = max(console.width, 110)  # figures are not broken over lines; a narrow terminal wraps whole ones
    console.print(table)
    for each in found:
        for doubt in each.latency.doubts:
            print(f"doubt   {each.name}: {doubt}")
