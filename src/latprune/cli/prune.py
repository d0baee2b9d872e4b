"""``latprune prune``: prune a model to a budget and save the result."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from latprune.cli.arguments import add_form_argument, add_model_arguments, add_target_arguments

if TYPE_CHECKING:
    from latprune.methods import Method
    from latprune.pruning.run import Fit

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune prune --model torchvision.models:resnet50 --input 1x3x224x224 --budget 50% --importance magnitude -o pruned
  latprune prune --model nets.py:net --weights net.safetensors --input 1x3x32x32 --budget 8.5ms --engine onnxruntime \\
      --data nets.py:train_batches --test-data nets.py:test_batches --epochs 3 -o pruned

Interrupted? The same command with the same -o goes on where it stopped.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "prune",
        help="prune a model to a budget",
        description="Prune a model to a budget: trace, measure, score, solve, cut, fine-tune, measure again, save and report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    add_target_arguments(parser)
    job = parser.add_argument_group("job")
    job.add_argument("--budget", required=True, help="50%% (of the dense latency), 8.5ms, 2000/s, flops=45%%, params=1.2M")
    job.add_argument("--method", default="mdp", help="mdp, sp_lamp, uniform or random (default: %(default)s)")
    job.add_argument("--stages", type=int, help="stages of a staged method")
    job.add_argument("--importance", choices=["taylor", "sp_lamp", "magnitude"], help="criterion (default: the method's own)")
    job.add_argument("--no-blocks", action="store_true", help="keep all blocks (mdp)")
    job.add_argument("--no-channels", action="store_true", help="remove whole blocks only (mdp)")
    job.add_argument("--keep", action="append", default=[], metavar="GLOB", help="modules to leave whole; may be repeated")
    job.add_argument("--blocks-keep", action="append", default=[], metavar="GLOB", help="blocks that must stay; may be repeated")
    job.add_argument("--min-width", action="append", default=[], metavar="GROUP=N", help="smallest width of a group; may be repeated")
    add_form_argument(job)
    job.add_argument("--solver", help="exact, highs, group-knapsack, ... (default: the method's own)")
    job.add_argument("--time-limit", type=float, default=60.0, help="seconds that one solve may take (default: %(default)s)")
    job.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    data = parser.add_argument_group("data and training")
    data.add_argument("--data", metavar="MODULE:CALLABLE", help="returns batches (inputs, labels) for scoring and fine-tuning")
    data.add_argument("--test-data", metavar="MODULE:CALLABLE", help="returns batches (inputs, labels) for accuracy")
    data.add_argument("--data-arg", action="append", default=[], metavar="KEY=VALUE", help="keyword argument of both; may be repeated")
    data.add_argument("--importance-batches", type=int, default=16, help="batches to score with (default: %(default)s)")
    data.add_argument("--recipe", help="fine-tuning recipe by name, for instance sp-lamp-cifar10")
    data.add_argument("--epochs", type=int, help="epochs of fine-tuning after each stage (needs --data); none by default")
    data.add_argument("--stage-epochs", type=int, help="epochs after every stage but the last (default: as after the last)")
    data.add_argument("--learning-rate", type=float, help="peak learning rate (default: the recipe's, else 0.02)")
    data.add_argument("--train-precision", choices=["fp32", "bf16"], default="fp32", help="bf16: mixed precision (default: %(default)s)")
    data.add_argument("--distill", action="store_true", help="let the dense network teach while fine-tuning")
    data.add_argument("--train-threads", type=int, help="threads of fine-tuning and evaluation (default: all cores)")
    data.add_argument("--fit", metavar="MODULE:CALLABLE", help="fit(model, context) of your own instead of --epochs")
    data.add_argument("--evaluate", metavar="MODULE:CALLABLE", help="evaluate(model) -> accuracy of your own instead of --test-data")
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder for progress and result")
    out.add_argument("--store", metavar="FILE", help="latency store (default: the user's cache folder)")
    out.add_argument("--tables", metavar="FILE", help="latency tables of this model and target, from latprune measure -o (default: built)")
    out.add_argument(
        "--predict-only", action="store_true", help="measure nothing: the device is not here; take the word of --tables, less their error"
    )
    out.add_argument("--onnx", action="store_true", help="also export FOLDER/result/model.onnx")
    out.add_argument("--quiet", action="store_true", help="print the result only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from latprune.cli.loading import example_inputs, load_callable, load_model, load_tables, parse_arguments, target_from
    from latprune.cli.progress import reporter
    from latprune.latency import Store
    from latprune.pruning.run import prune

    target = target_from(args)
    model = load_model(args.model, args.model_arg, args.weights)
    inputs = example_inputs(args.input, batch=args.batch, seed=args.seed)
    keywords = parse_arguments(args.data_arg, argument="--data-arg")
    batches = load_callable(args.data, argument="--data")(**keywords) if args.data else None
    output = Path(args.output)
    tables = load_tables(args.tables) if args.tables else None
    result = prune(
        model,
        inputs,
        budget=args.budget,
        target=target,
        method=_method(args),
        data=batches,
        fit=_fit(args, batches, keywords),
        evaluate=_evaluate(args, keywords),
        importance_batches=args.importance_batches,
        keep=args.keep,
        blocks_keep=args.blocks_keep,
        min_widths=_min_widths(args.min_width),
        tables=tables,
        measure_latency=not args.predict_only,
        store=Store(args.store) if args.store else None,
        solver=args.solver,
        time_limit=args.time_limit,
        seed=args.seed,
        form=args.form,
        folder=output,
        constructor=args.model,
        arguments=parse_arguments(args.model_arg),
        progress=None if args.quiet else reporter(),
    )
    result.report(output / "result" / "report.html")
    if args.onnx:
        result.export_onnx(output / "result" / "model.onnx")
    print(result)
    own = "" if args.model.startswith("latprune.zoo:") else f" --model {args.model}"
    print(f"saved in {output / 'result'}; verify with: latprune verify {output / 'result'}{own}")
    return 0


def _method(args: argparse.Namespace) -> Method:
    from latprune.importance import MagnitudeConfig, SpLampConfig, TaylorConfig
    from latprune.methods import get_method

    options: dict[str, Any] = {}
    if args.stages is not None:
        options["stages"] = args.stages
    if args.importance is not None:
        options["score"] = {"taylor": TaylorConfig, "sp_lamp": SpLampConfig, "magnitude": MagnitudeConfig}[args.importance]()
    if args.no_blocks:
        options["blocks"] = False
    if args.no_channels:
        options["channels"] = False
    return get_method(args.method, **options)


def _min_widths(entries: list[str]) -> dict[str, int]:
    from latprune.errors import InvalidArgumentError

    found = {}
    for entry in entries:
        name, separator, value = entry.rpartition("=")
        if not separator or not name or not value.isdigit():
            raise InvalidArgumentError(f"--min-width (={entry!r}) must have the form GROUP=N with an integer N")
        found[name] = int(value)
    return found


def _evaluate(args: argparse.Namespace, keywords: dict[str, Any]) -> Any:
    from latprune.cli.loading import load_callable

    if args.evaluate:
        return load_callable(args.evaluate, argument="--evaluate")
    if args.test_data:
        from latprune.pruning.finetuning import training_threads
        from latprune.train import evaluate

        batches = load_callable(args.test_data, argument="--test-data")(**keywords)

        def accuracy(model: Any) -> float:
            with training_threads(args.train_threads):
                return evaluate(model, batches)

        return accuracy
    return None


def _fit(args: argparse.Namespace, batches: Any, keywords: dict[str, Any]) -> Fit | None:
    from dataclasses import replace

    from latprune.cli.loading import load_callable
    from latprune.errors import InvalidArgumentError

    if args.fit:
        return load_callable(args.fit, argument="--fit")
    if args.epochs is None and args.recipe is None:
        return None
    if batches is None:
        raise InvalidArgumentError("--epochs and --recipe need --data to train on")
    from latprune.pruning.finetuning import fit_with
    from latprune.train import Distillation, ProgressPrinter, Recipe, recipe

    chosen = recipe(args.recipe) if args.recipe else Recipe(epochs=args.epochs, learning_rate=args.learning_rate or 0.02, weight_decay=5e-4)
    if args.recipe and args.epochs is not None:
        chosen = chosen.with_epochs(args.epochs)
    if args.learning_rate is not None:
        chosen = replace(chosen, learning_rate=args.learning_rate)
    chosen = replace(
        chosen, precision=args.train_precision, channels_last=True, distillation=Distillation() if args.distill else chosen.distillation
    )
    progress = None if args.quiet else ProgressPrinter()
    return fit_with(
        batches, chosen, stage_epochs=args.stage_epochs, evaluate=_evaluate(args, keywords), threads=args.train_threads, progress=progress
    )
