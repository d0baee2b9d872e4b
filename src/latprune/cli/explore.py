"""``latprune explore``: every budget's network at once, as a page and a file that ``latprune prune`` takes a network from."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from latprune.cli.arguments import add_image_arguments, add_model_arguments, add_target_arguments
from latprune.cli.progress import add_progress_arguments
from latprune.cli.pruning_arguments import (
    add_data_arguments,
    add_method_arguments,
    add_table_arguments,
    check_data,
    evaluation_of,
    options_of,
)

if TYPE_CHECKING:
    from latprune.pruning.exploration import Exploration

__all__ = ["add_parser", "given_arguments", "run"]

_EPILOG = """\
examples:
  latprune explore --model torchvision.models:resnet50 --input 1x3x224x224 --criterion magnitude -o explorer.html
  latprune explore --model nets.py:net --input 1x3x32x32 --criterion magnitude --resource flops -o run/explorer.html
  latprune explore model.onnx --images photos -o explorer.html
  latprune explore --model nets.py:net --input 1x3x32x32 --criterion magnitude --engine openvino --beside onnx.json -o openvino.html
  latprune explore --model nets.py:net --weights net.safetensors --input 1x3x32x32 --engine onnxruntime --data nets.py:train_batches \\
      --test-data nets.py:test_batches --measure 6 -o run/explorer.html
  latprune prune --model nets.py:net --weights net.safetensors --input 1x3x32x32 --engine onnxruntime --data nets.py:train_batches \\
      --explore run/explorer.json --pick 63% -o pruned

`-o run/explorer.html` writes run/explorer.json too, which holds the networks.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "explore",
        help="see what every budget would give before choosing one",
        description="Trace and score a model, build its latency tables, and solve for every budget at once: a page that shows the networks "
        "from the smallest to the dense one, and a file that `latprune prune --explore FILE --pick BUDGET` takes one from.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, file=True)
    add_target_arguments(parser)
    add_method_arguments(parser.add_argument_group("method"))
    data = parser.add_argument_group("data")
    add_data_arguments(data)
    add_image_arguments(data)
    add_table_arguments(parser.add_argument_group("tables"))
    shared = tuple(parser._actions)
    own = parser.add_argument_group("exploring")
    own.add_argument(
        "--resource",
        choices=["latency", "flops", "params"],
        default="latency",
        help="what the budgets limit; multiply-adds and parameters are counted, and need no tables (default: %(default)s)",
    )
    own.add_argument("--budget", action="append", default=[], help="a further limit that every network meets, such as params=1.2M")
    own.add_argument("--points", type=int, default=120, metavar="N", help="different networks that are wanted (default: %(default)s)")
    own.add_argument(
        "--measure", type=int, default=0, metavar="N", help="measure N of them beside the dense network; accuracy after the cut too"
    )
    own.add_argument("--time-limit", type=float, default=600.0, help="seconds that all solving may take (default: %(default)s)")
    own.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="FILE",
        help="explorer.json of the same model for another device or engine, shown beside this one; may be repeated",
    )
    own.add_argument("-o", "--output", required=True, metavar="FILE.html", help="page to write; the .json is written beside it")
    add_progress_arguments(parser)
    parser.set_defaults(run=partial(run, shared=shared))


def run(args: argparse.Namespace, *, shared: tuple[argparse.Action, ...]) -> int:
    """Run the command; ``shared`` are the options that ``latprune prune`` has too."""
    import math
    import shlex
    from pathlib import Path

    from latprune.cli.loading import parse_arguments
    from latprune.cli.model_files import model_and_batches, recorded_as, settle_inputs
    from latprune.cli.option_rules import output_file, refuse_losing, refuse_overwriting
    from latprune.errors import InvalidArgumentError
    from latprune.pruning.exploration import Exploration
    from latprune.pruning.exploring import explore

    page = output_file(args.output, argument="--output")
    if page.suffix != ".html":
        raise InvalidArgumentError(f"--output (={args.output!r}) must end in .html")
    command = given_arguments(args, shared)
    refuse_losing(args, page, argument="--output")
    refuse_losing(args, page.with_suffix(".json"), argument="--output, whose networks go beside the page")
    for file in args.beside:
        refuse_overwriting(page.with_suffix(".json"), file, argument="--output, whose networks go beside the page")
    beside = [Exploration.load(file) for file in args.beside]
    settle_inputs(args)
    check_data(args)
    model, inputs, batches = model_and_batches(args)
    constructor, arguments = recorded_as(args, parse_arguments(args.model_arg))

    saved = page.with_suffix(".json")
    kept: Exploration | None = None

    def save(known: Exploration) -> None:
        nonlocal kept
        known.save(saved)
        known.write_html(page, beside=beside)
        kept = known

    explored = partial(
        explore,
        model,
        inputs,
        resource=args.resource,
        budget=args.budget,
        points=args.points,
        measure=args.measure,
        data=batches,
        evaluate=evaluation_of(args, parse_arguments(args.data_arg, argument="--data-arg")) if args.measure else None,
        importance_batches=args.importance_batches or None,
        time_limit=args.time_limit,
        name=Path(args.file).stem if args.file else None,
        constructor=constructor,
        arguments=arguments,
        command=command,
        save=save,
        beside=beside,
        **options_of(args),
    )
    try:
        found = explored()
    except KeyboardInterrupt:
        if kept is not None:
            print(f"{kept!r}\nwrote what was known so far: {page} and {saved}", file=sys.stderr)
        raise
    print(repr(found))
    for note in found.record.notes:
        print(f"note: {note}")
    print(f"wrote {page} ({page.stat().st_size / 1e3:.0f} kB) and {saved}")
    smallest = min(point.value for point in found.record.points) / found.record.dense.value
    share = max(0.5, math.ceil(100.0 * smallest) / 100.0)
    taken = ["latprune", "prune", *command, "--explore", str(saved), "--pick", f"{share:.0%}", "-o", "pruned"]
    print(f"take one with: {shlex.join(taken)}")
    return 0


def given_arguments(args: argparse.Namespace, actions: tuple[argparse.Action, ...]) -> list[str]:
    """What was given of the options ``actions``, as a command line has it."""
    words: list[str] = []
    for action in actions:
        value = getattr(args, action.dest, None)
        if value is None or value == action.default:
            continue
        if not action.option_strings:
            words.append(str(value))
            continue
        option = action.option_strings[0]
        if action.nargs == 0:  # a flag; several may set one value
            words += [option] if value == action.const else []
        else:
            words += [word for entry in (value if isinstance(value, list) else [value]) for word in (option, str(entry))]
    return words
