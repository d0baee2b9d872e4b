"""``latprune sweep``: prune to several budgets, by several methods, for several engines and seeds, and sum it up."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latprune.cli import prune
from latprune.cli.option_rules import check_seed, check_threads, note_given
from latprune.cli.pruning_arguments import check_data, method_of, schedule_of

if TYPE_CHECKING:
    from pathlib import Path

    from latprune.pruning.result import Result
    from latprune.sweeping import Cell

__all__ = ["add_parser", "run"]

# Axes of the sweep, and what decides nothing about its rows.
_NO_SETTINGS = {
    "budget",
    "method",
    "engine",
    "seed",
    "output",
    "ray",
    "run",
    "command",
    "debug",
    "given",
    "quiet",
    "progress",
    "log_file",
    "onnx",
    "store",
    "train_threads",
}

_EPILOG = """\
examples:
  latprune sweep --model nets.py:net --weights net.safetensors --input 1x3x32x32 --budget 70% --budget 50% --budget 30% \\
      --method mdp --method sp_lamp --method mdp:score=taylor --seed 0 --seed 1 --data nets.py:train --test-data nets.py:test -o sweep

A budget may join several that are all to be met: --budget params=467K+flops=13.36M. All options of `latprune prune` apply to every run.
Interrupted? The same command with the same -o goes on where it stopped; with further budgets, methods, engines or seeds it adds their runs.
FOLDER gets a folder for each run, results.parquet (extra: tables) and trade-off.svg (extra: demo).
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "sweep",
        help="prune to many budgets, by many methods, and compare",
        description="Prune to every budget by every method for every engine and seed; sum up accuracy against measured latency.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",
    )
    note_given(parser)
    prune.add_arguments(parser)
    axes = parser.add_argument_group("axes of the sweep")
    axes.add_argument("--budget", action="append", required=True, metavar="BUDGET", help="a budget; repeat for several")
    axes.add_argument(
        "--method",
        action="append",
        metavar="NAME[:KEY=VALUE,...]",
        help="a method, with options as mdp:score=taylor,blocks=false; repeat for several (default: mdp)",
    )
    axes.add_argument(
        "--engine",
        action="append",
        metavar="NAME",
        help="an engine; repeat for several (default: the one that a budget names, else openvino)",
    )
    axes.add_argument("--seed", action="append", type=int, metavar="N", help="a seed; repeat for several (default: 0)")
    axes.add_argument("--ray", metavar="ADDRESS", help="run on the nodes of a Ray cluster that offer the resource 'latprune', one run each")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from functools import partial
    from pathlib import Path

    from latprune.errors import BrokenPackageError, InvalidArgumentError, LatpruneError, MissingExtraError
    from latprune.report.trade_off import plot_trade_offs
    from latprune.sweeping import grid, sweep_with

    for name in ("tables", "predictor"):
        if getattr(args, name) and len(args.engine or ()) > 1:
            raise InvalidArgumentError(f"--{name} holds the latency of one engine; leave it out of a sweep over several")
    if args.pick or args.explore:
        raise InvalidArgumentError("--explore and --pick name one network; give them to latprune prune")
    check_threads(args)
    check_data(args)
    prune.check_training(args)
    methods, seeds = args.method or ["mdp"], args.seed or [0]
    engines = args.engine or (["openvino"] if args.tables else None)  # tables have an engine of their own, whatever a budget names
    folder = Path(args.output)
    if not args.output or folder.suffix == ".onnx":
        raise InvalidArgumentError(f"--output (={args.output!r}) must be a folder: a sweep keeps one for each run in it")
    for seed in seeds:
        check_seed(seed)
    for method in methods:  # what is wrong with a method is said before the first run
        _check_method(_of_cell(args, method=method))
    cells = grid(budgets=args.budget, methods=methods, engines=engines, seeds=seeds)
    for engine in dict.fromkeys(cell.engine for cell in cells):
        _check_engine(args, engine)
    found = sweep_with(
        partial(_prune_cell, args),
        cells,
        folder=folder,
        settings={name: value for name, value in vars(args).items() if name not in _NO_SETTINGS},
        ray_address=args.ray,
    )
    print(found)
    if any(point.accuracy is not None for point in found.summary()):
        try:
            plot_trade_offs(found.summary(), folder / "trade-off.svg")
        except (BrokenPackageError, MissingExtraError) as error:
            print(f"trade-off.svg is not drawn: {error}")
    print(f"written in {folder}")
    if found.failed:
        raise LatpruneError(f"{len(found.failed)} of {len(found.cells)} runs failed (see above); the same command runs them again")
    return 0


def _check_method(told: argparse.Namespace) -> None:
    """Refuse a method that cannot be made of its options, or that needs a training and has none."""
    from latprune.errors import InvalidArgumentError
    from latprune.methods import SoftMasks

    method = method_of(told)
    if isinstance(schedule_of(told) or method.schedule, SoftMasks) and not (told.fit or told.epochs is not None or told.recipe):
        raise InvalidArgumentError(
            f"method {method.name!r} solves for masks while the network trains: give --epochs or --recipe with --data, or --fit"
        )


def _check_engine(args: argparse.Namespace, name: str) -> None:
    """Refuse an engine that no run could use; on a cluster the nodes have it, not this machine."""
    from latprune.cli.loading import target_from
    from latprune.latency import get_engine

    engine = get_engine(name)
    if not args.ray and not args.predict_only:
        engine.check(target_from(argparse.Namespace(**{**vars(args), "engine": name})))


def _prune_cell(args: argparse.Namespace, cell: Cell, folder: Path) -> Result:
    """One run, by the arguments of the whole sweep."""
    told = _of_cell(args, method=cell.method)
    told.budget, told.engine, told.seed, told.output = list(cell.budgets), cell.engine, cell.seed, str(folder)
    return prune.prune_as_told(told).result


def _of_cell(args: argparse.Namespace, *, method: str) -> argparse.Namespace:
    """The arguments with one method; what the sweep alone knows is left out."""
    name, _, options = method.partition(":")
    told = argparse.Namespace(**{key: value for key, value in vars(args).items() if key not in ("run", "ray", "command")})
    told.method = name
    told.method_arg = [*args.method_arg, *(option for option in options.split(",") if option)]
    return told
