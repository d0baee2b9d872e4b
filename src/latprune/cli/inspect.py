"""``latprune inspect``: what can be pruned, and why the rest cannot."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from latprune.cli.arguments import add_fold_argument, add_form_argument, add_model_arguments

if TYPE_CHECKING:
    from torch import nn

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune inspect --model torchvision.models:resnet50 --input 1x3x224x224
  latprune inspect --model nets.py:net --input 1x3x32x32 --keep 'head.*' --json
  latprune inspect model.onnx
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="show channel groups, blocks, and what cannot be pruned and why",
        description="Trace a model and show its channel groups, its removable blocks, and the reason for everything kept whole.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, file=True)
    parser.add_argument("--keep", action="append", default=[], metavar="GLOB", help="modules to leave whole; may be repeated")
    parser.add_argument("--blocks-keep", action="append", default=[], metavar="GLOB", help="blocks that must stay; may be repeated")
    parser.add_argument("--min-width", action="append", default=[], metavar="GROUP=N", help="smallest width of a group; may be repeated")
    parser.add_argument("--within", metavar="MODULE", help="prune a sub-module with the inputs that it sees in a run of the whole")
    add_form_argument(parser)
    add_fold_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import sys

    from latprune.cli.loading import example_inputs, glob_numbers
    from latprune.cli.model_files import build_model, settle_inputs
    from latprune.graph import trace
    from latprune.graph.conditions import check_repeatable
    from latprune.graph.folding import folds_of
    from latprune.pruning.through_norms import through_norms

    settle_inputs(args)
    model = build_model(args)
    inputs = example_inputs(args.input, model=model)
    check_repeatable(model, inputs)
    through = through_norms(model, {"form": args.form, "fold": args.fold})
    graph = trace(
        model,
        inputs,
        keep=args.keep,
        blocks_keep=args.blocks_keep,
        min_widths=dict(glob_numbers(args.min_width, "--min-width", int)) or None,
        within=args.within,
        form=args.form,
        fold=args.fold or through,
    )
    print(graph.to_json() if args.json else graph.describe())
    if not (args.fold or through) and (refusal := _refusal(model, args.keep)):
        print(f"\nprune would refuse this model: {refusal}", file=sys.stderr if args.json else None)
    if graph.folded is not None and not args.json:
        named = ", ".join(f"{fold.module} ({fold.kind})" for fold in folds_of(model))
        print(f"\n{'pruned through their weight norms' if through else 'folded into plain weights, in a copy'}\n  {named}")
    return 0


def _refusal(model: nn.Module, keep: Sequence[str]) -> str:
    """What ``prune`` says before it traces a model that can be traced; empty where it takes it."""
    from latprune.errors import InvalidArgumentError
    from latprune.graph.admission import check_derived_weights, check_state

    try:
        check_state(model)
        check_derived_weights(model, tuple(keep))
    except InvalidArgumentError as error:
        return str(error)
    return ""
