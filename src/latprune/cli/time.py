"""``latprune time``: how long a network takes on an engine, as it is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latprune.cli.arguments import add_model_arguments, add_target_arguments
from latprune.cli.progress import add_progress_arguments

if TYPE_CHECKING:
    from latprune.latency.measuring.scenarios import Scenario, Timing

__all__ = ["add_parser", "run"]

_SCENARIOS = ("single-stream", "offline", "sp-lamp")

_EPILOG = """\
examples:
  latprune time --model torchvision.models:resnet50 --input 1x3x224x224 --engine openvino
  latprune time --model nets.py:net --input 1x3x32x32 --engine onnxruntime --scenario offline --max-batch 128
  latprune time --model nets.py:net --input 1x3x32x32 --engine torch --device cuda:0 --scenario sp-lamp --json
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "time",
        help="time a network on an engine: latency, or throughput at saturation",
        description="Time a network on the target, as it is. single-stream: latency of one inference after the other. offline: throughput "
        "at the batch that saturates the device. sp-lamp: that paper's protocol, mean and deviation of many runs at that batch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, file=True)
    add_target_arguments(parser)
    group = parser.add_argument_group("timing")
    group.add_argument("--scenario", choices=_SCENARIOS, default=_SCENARIOS[0], help="what is asked (default: %(default)s)")
    group.add_argument(
        "--max-seconds", type=float, metavar="SECONDS", help="time for one batch size (default: 60 for single-stream, 5 for the others)"
    )
    group.add_argument(
        "--max-batch", type=int, metavar="N", help="offline, sp-lamp: largest batch to try, from --batch on by doubling (default: 256)"
    )
    group.add_argument("--runs", type=int, metavar="N", help="sp-lamp: inferences in a row (default: 3000)")
    group.add_argument("--keep", type=int, metavar="N", help="sp-lamp: how many of them count, the last ones (default: 2500)")
    group.add_argument("--json", action="store_true", help="print JSON")
    add_progress_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import json

    from latprune.cli.loading import example_inputs, target_from
    from latprune.cli.model_files import build_model, settle_inputs
    from latprune.latency.measuring.scenarios import time_network

    settle_inputs(args)
    scenario, target = _scenario(args), target_from(args)
    model = build_model(args)
    found = time_network(model, example_inputs(args.input, batch=args.batch, model=model), target, scenario)
    print(json.dumps(found.to_dict(), indent=2) if args.json else "\n".join(_lines(found)))
    return 0


def _scenario(args: argparse.Namespace) -> Scenario:
    """The scenario with the options that were given; one that it does not have is refused, not ignored."""
    from dataclasses import fields

    from latprune.errors import InvalidArgumentError
    from latprune.latency.measuring.scenarios import SCENARIOS

    kind = SCENARIOS[args.scenario]
    known = {field.name for field in fields(kind)}
    options = {name: getattr(args, name) for name in ("max_seconds", "max_batch", "runs", "keep") if getattr(args, name) is not None}
    for name in options.keys() - known:
        raise InvalidArgumentError(f"--{name.replace('_', '-')} does nothing with --scenario {args.scenario}; leave it out")
    return kind(**options)


def _lines(found: Timing) -> list[str]:
    latency, conditions, fixed, search = found.latency, found.conditions, found.fixed, found.search
    batch = conditions.target.batch
    low, high = (batch / (ms * 1e-3) for ms in (latency.high, latency.low))
    lines = [
        f"target      {conditions.target}",
        f"engine      {conditions.target.engine} {conditions.version}",
        f"machine     {conditions.machine}",
        f"scenario    {found.scenario}",
    ]
    if search is not None:
        rates = ", ".join(f"{size}: {rate:.4g}/s" for size, rate in search.tried)
        lines.append(f"batches     {rates}; {'saturated' if search.saturated else 'not shown to saturate'} at {search.batch}")
    if fixed is not None:
        lines += [
            f"mean        {fixed.mean:.3f} ms, deviation {fixed.deviation:.3f} ms, of the last {fixed.kept} of {fixed.runs} runs; "
            f"{found.per_second:.4g} inputs/s",
            f"            drift {fixed.drift:+.1%}, {fixed.interrupted:.1%} interrupted; nothing ran beside them to tell the machine's "
            "changes from the network's",
        ]
    lines += [
        f"latency     {latency.ms:.3f} ms [{latency.low:.3f}, {latency.high:.3f}]  (median of one inference, 95 % interval)",
        f"throughput  {batch / (latency.ms * 1e-3):.4g} inputs/s [{low:.4g}, {high:.4g}]",
        f"            {latency.runs} runs in {latency.rounds} rounds, spread {latency.spread:.1%}, drift {latency.drift:+.1%}, "
        f"{latency.interrupted:.1%} interrupted",
    ]
    lines += [f"note        {found.note}"] if found.note else []
    return lines + [f"doubt       {doubt}" for doubt in found.doubts]
