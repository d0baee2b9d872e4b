"""``latprune prune``: prune a model to a budget and save the result."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from latprune.cli.arguments import add_form_argument, add_image_arguments, add_model_arguments, add_target_arguments

if TYPE_CHECKING:
    from latprune.methods import Method
    from latprune.methods.width_rules import WidthRules
    from latprune.pruning.run import Fit

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune prune --model torchvision.models:resnet50 --input 1x3x224x224 --budget 50% --criterion magnitude -o pruned
  latprune prune --model nets.py:net --weights net.safetensors --input 1x3x32x32 --budget 8.5ms --engine onnxruntime \\
      --data nets.py:train_batches --test-data nets.py:test_batches --epochs 3 -o pruned
  latprune prune --model nets.py:net --input 1x3x32x32 --budget params=467K --budget flops=13.36M \\
      --method sp_lamp --method-arg stages=10 --method-arg between=mask -o pruned
  latprune prune model.onnx --budget 50% --images photos -o small.onnx

`latprune list` names the methods, criteria, solvers and engines, with their options.
Interrupted? The same command with the same -o goes on where it stopped.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "prune",
        help="prune a model to a budget",
        description="Prune a model to a budget: trace, measure, score, solve, cut, recover, fine-tune, measure again, save and report.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, file=True)
    add_target_arguments(parser)
    job = parser.add_argument_group("job")
    job.add_argument(
        "--budget",
        action="append",
        required=True,
        help="50%% (of the dense latency), 8.5ms, 2000/s, flops=45%%, params=1.2M; may be repeated: all are met",
    )
    job.add_argument("--method", default="mdp", help="pruning method (default: %(default)s)")
    job.add_argument(
        "--method-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the method, such as stages=10; may be repeated",
    )
    job.add_argument("--criterion", "--importance", metavar="NAME", help="criterion that scores the channels (default: the method's own)")
    job.add_argument("--criterion-arg", action="append", default=[], metavar="KEY=VALUE", help="option of the criterion; may be repeated")
    job.add_argument("--stages", type=int, help="stages of a staged method: short for --method-arg stages=N")
    job.add_argument("--no-blocks", action="store_true", help="keep all blocks: short for --method-arg blocks=false")
    job.add_argument("--no-channels", action="store_true", help="remove whole blocks only: short for --method-arg channels=false")
    job.add_argument("--keep", action="append", default=[], metavar="GLOB", help="modules to leave whole; may be repeated")
    job.add_argument("--blocks-keep", action="append", default=[], metavar="GLOB", help="blocks that must stay; may be repeated")
    job.add_argument("--min-width", action="append", default=[], metavar="GROUP=N", help="smallest width of a group or glob")
    job.add_argument("--max-width", action="append", default=[], metavar="GROUP=N", help="largest width of a group or glob")
    job.add_argument("--min-share", action="append", default=[], metavar="[GROUP=]X", help="smallest share of a group's channels, 0 to 1")
    job.add_argument("--max-share", action="append", default=[], metavar="[GROUP=]X", help="largest share of a group's channels, 0 to 1")
    job.add_argument("--multiple-of", action="append", default=[], metavar="[GROUP=]N", help="widths are multiples of N; may be repeated")
    job.add_argument("--within", metavar="PATH", help="prune inside of this sub-module only")
    add_form_argument(job)
    job.add_argument("--solver", help="solver of the pruning problem (default: the method's own)")
    job.add_argument("--time-limit", type=float, default=60.0, help="seconds that one solve may take (default: %(default)s)")
    job.add_argument("--slack", type=float, default=0.03, help="how far below the budget the result may lie (default: %(default)s)")
    job.add_argument("--narrow", action="store_true", help="if the end is measured over the budget, narrow once more")
    job.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    data = parser.add_argument_group("data and training")
    data.add_argument("--data", metavar="MODULE:CALLABLE", help="returns batches (inputs, labels) for scoring, recovery and fine-tuning")
    data.add_argument("--test-data", metavar="MODULE:CALLABLE", help="returns batches (inputs, labels) for accuracy")
    data.add_argument("--data-arg", action="append", default=[], metavar="KEY=VALUE", help="keyword argument of both; may be repeated")
    add_image_arguments(data)
    data.add_argument("--candidates", type=int, default=1, help="pick by accuracy among N near-optimal answers (default: %(default)s)")
    data.add_argument(
        "--units", choices=["score", "reconstruction"], default="score", help="which channels stay, given how many (default: %(default)s)"
    )
    data.add_argument("--importance-batches", type=int, default=16, help="batches to score with; 0 takes all (default: %(default)s)")
    data.add_argument(
        "--recover",
        metavar="STRATEGY",
        help="recovery without training after each cut: refit (default with --data or --images), map, shift, norms, fold, distil, or none",
    )
    data.add_argument("--recovery-images", type=int, default=2048, help="inputs to recover with, without labels (default: %(default)s)")
    data.add_argument("--recipe", help="fine-tuning recipe by name, for instance sp-lamp-cifar10")
    data.add_argument("--epochs", type=int, help="epochs of fine-tuning after each stage (needs --data); none by default")
    data.add_argument("--stage-epochs", type=int, help="epochs after every stage but the last (default: as after the last)")
    data.add_argument("--learning-rate", type=float, help="peak learning rate (default: the recipe's, else 0.02)")
    data.add_argument("--train-precision", choices=["fp32", "bf16"], help="bf16: mixed precision (default: the recipe's, else fp32)")
    data.add_argument("--channels-last", action="store_true", help="train with channels-last weights (default: the recipe's)")
    data.add_argument("--distill", action="store_true", help="let the dense network teach while fine-tuning")
    data.add_argument("--train-threads", type=int, help="threads of fine-tuning and evaluation (default: all cores)")
    data.add_argument("--fit", metavar="MODULE:CALLABLE", help="fit(model, context) of your own instead of --epochs")
    data.add_argument("--evaluate", metavar="MODULE:CALLABLE", help="evaluate(model) -> accuracy of your own instead of --test-data")
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER|FILE.onnx",
        help="folder for progress and result; with FILE.onnx the pruned network is written there, too, and the folder is called FILE",
    )
    out.add_argument("--store", metavar="FILE", help="latency store (default: the user's cache folder)")
    out.add_argument("--tables", metavar="FILE", help="latency tables of this model and target, from latprune measure -o (default: built)")
    out.add_argument("--predictor", metavar="FILE", help="kernel predictor (latprune predictor train) in place of tables")
    out.add_argument(
        "--predict-only", action="store_true", help="measure nothing: the device is not here; take the word of --tables, less their error"
    )
    out.add_argument("--onnx", action="store_true", help="also export FOLDER/result/model.onnx")
    out.add_argument("--quiet", action="store_true", help="print the result only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from latprune.cli.export import described
    from latprune.cli.loading import (
        example_inputs,
        glob_numbers,
        load_callable,
        load_tables,
        output_file,
        parse_arguments,
        target_from,
    )
    from latprune.cli.model_files import build_model, image_batches, recorded_as, settle_inputs, shown_model
    from latprune.cli.progress import reporter
    from latprune.errors import OverBudgetError
    from latprune.export import export_onnx
    from latprune.latency import KernelPredictor, Store
    from latprune.pruning.run import prune

    settle_inputs(args)
    target = target_from(args)
    method = _method(args)
    widths = _width_rules(args)
    _check_data(args)
    output = Path(args.output)
    written = output_file(args.output, argument="--output") if output.suffix == ".onnx" else None
    output = output.with_suffix("") if written is not None else output
    model = build_model(args)
    inputs = example_inputs(args.input, batch=args.batch, seed=args.seed)
    keywords = parse_arguments(args.data_arg, argument="--data-arg")
    batches = load_callable(args.data, argument="--data")(**keywords) if args.data else None
    if args.images:
        batches = image_batches(args, model, inputs)
        if not args.quiet:
            print(f"images: {batches}")
    evaluate = _evaluate(args, keywords)
    constructor, arguments = recorded_as(args, parse_arguments(args.model_arg))
    result = prune(
        model,
        inputs,
        budget=args.budget,
        target=target,
        method=method,
        data=batches,
        recover=True if args.recover is None else False if args.recover == "none" else args.recover,
        recovery_images=args.recovery_images,
        fit=_fit(args, batches, evaluate),
        evaluate=evaluate,
        candidates=args.candidates,
        units=args.units,
        importance_batches=args.importance_batches or None,
        keep=args.keep,
        blocks_keep=args.blocks_keep,
        min_widths=dict(glob_numbers(args.min_width, "--min-width", int)),
        widths=widths,
        within=args.within,
        tables=load_tables(args.tables) if args.tables else None,
        predictor=KernelPredictor.load(args.predictor) if args.predictor else None,
        measure_latency=not args.predict_only,
        store=Store(args.store) if args.store else None,
        solver=args.solver,
        time_limit=args.time_limit,
        seed=args.seed,
        slack=args.slack,
        narrow=args.narrow,
        form=args.form,
        folder=output,
        name=Path(args.file).stem if args.file else None,
        constructor=constructor,
        arguments=arguments,
        progress=None if args.quiet else reporter(),
    )
    result.report(output / "result" / "report.html")
    if args.onnx or written is not None:
        path = written or output / "result" / "model.onnx"
        exported = export_onnx(result.model, inputs, path, dynamic_batch=args.open_batch)
    print(result)
    if args.onnx or written is not None:
        print(f"wrote {exported.path}: {described(exported)}")
    print(f"saved in {output / 'result'}; verify with: latprune verify {output / 'result'}{shown_model(args)}")
    if result.verdict == "over":
        record = result.record
        raise OverBudgetError(
            f"the delivered network lies at {record.budget_share or 0.0:.2%} of the budget {record.budget.text!r}; the result, its report "
            "and exports are written. Run again with --narrow, or with a smaller budget",
            budget_ms=record.budget.limit or 0.0,
            measured_ms=(record.budget_share or 0.0) * (record.budget.limit or 0.0),
        )
    return 0


def _check_data(args: argparse.Namespace) -> None:
    """Refuse options about images without images, and training on images that have no labels."""
    from latprune.errors import InvalidArgumentError

    if args.images is None:
        given = next((name for name in ("mean", "std") if getattr(args, name) is not None), None)
        if given is not None:
            raise InvalidArgumentError(f"--{given} says how --images are read; there are none")
        return
    if args.data:
        raise InvalidArgumentError("--images and --data are both batches to score and recover with; leave one of them out")
    if args.epochs is not None or args.recipe is not None:
        raise InvalidArgumentError(
            "--epochs and --recipe train on labels, which --images have none of; give --data, or a --fit of your own"
        )


def _method(args: argparse.Namespace) -> Method:
    from latprune.cli.loading import parse_arguments
    from latprune.errors import InvalidArgumentError
    from latprune.importance import get_criterion
    from latprune.methods import get_method

    options: dict[str, Any] = parse_arguments(args.method_arg, argument="--method-arg")
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


def _width_rules(args: argparse.Namespace) -> WidthRules | None:
    from latprune.cli.loading import glob_numbers
    from latprune.methods.width_rules import WidthRules

    multiple, largest = glob_numbers(args.multiple_of, "--multiple-of", int), glob_numbers(args.max_width, "--max-width", int)
    least, most = glob_numbers(args.min_share, "--min-share", float), glob_numbers(args.max_share, "--max-share", float)
    if not (multiple or largest or least or most):
        return None
    return WidthRules(
        multiple_of=dict(multiple) or None, max_widths=dict(largest) or None, min_share=dict(least) or None, max_share=dict(most) or None
    )


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


def _fit(args: argparse.Namespace, batches: Any, evaluate: Any) -> Fit | None:
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

    chosen = recipe(args.recipe) if args.recipe else Recipe(epochs=args.epochs, learning_rate=args.learning_rate or 0.02)
    if args.recipe and args.epochs is not None:
        chosen = chosen.with_epochs(args.epochs)
    given: dict[str, Any] = {
        "learning_rate": args.learning_rate,
        "precision": args.train_precision,
        "channels_last": args.channels_last or None,
        "distillation": Distillation() if args.distill else None,
    }
    chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
    progress = None if args.quiet else ProgressPrinter()
    return fit_with(batches, chosen, stage_epochs=args.stage_epochs, evaluate=evaluate, threads=args.train_threads, progress=progress)
