"""``latprune prune``: prune a model to a budget and save the result."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from latprune.cli.arguments import add_image_arguments, add_model_arguments, add_target_arguments
from latprune.cli.option_rules import note_given
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
    from pathlib import Path

    from latprune.export import OnnxExport
    from latprune.pruning.options import SharedOptions
    from latprune.pruning.result import Result
    from latprune.pruning.run import Fit
    from latprune.train import Recipe

_TRAINING = ("learning_rate", "train_precision", "recipe_arg", "log", "channels_last", "distill", "stage_epochs")
"""Options of a training by a recipe, beside those that ask for one."""

__all__ = ["Outcome", "add_arguments", "add_parser", "check_training", "prune_as_told", "recipe_of", "run"]

_EPILOG = """\
examples:
  latprune prune --model torchvision.models:resnet50 --input 1x3x224x224 --budget 50% --criterion magnitude -o pruned
  latprune prune --model nets.py:net --weights net.safetensors --input 1x3x32x32 --budget 8.5ms --engine onnxruntime \\
      --data nets.py:train_batches --test-data nets.py:test_batches --epochs 3 -o pruned
  latprune prune --model nets.py:net --input 1x3x32x32 --budget params=467K --budget flops=13.36M \\
      --method sp_lamp --method-arg stages=10 --method-arg between=mask -o pruned
  latprune prune --model nets.py:net --input 1x3x32x32 --data nets.py:train_batches --explore explorer.json --pick 63% -o pruned
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
    note_given(parser)
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all that says what is pruned to what, and where it goes."""
    add_model_arguments(parser, file=True)
    add_target_arguments(parser)
    job = parser.add_argument_group("job")
    job.add_argument(
        "--budget",
        action="append",
        help="50%% (of the dense latency), 8.5ms, 2000/s, flops=45%%, params=1.2M; may be repeated: all are met; left out: --pick",
    )
    job.add_argument("--explore", metavar="FILE", help="explorer.json of `latprune explore`, to take the network of --pick from")
    job.add_argument("--pick", metavar="BUDGET", help="cut the best network shown under this budget exactly as it was shown, such as 63%%")
    add_method_arguments(job)
    job.add_argument("--time-limit", type=float, default=60.0, help="seconds that one solve may take (default: %(default)s)")
    job.add_argument("--slack", type=float, default=0.03, help="how far below the budget the result may lie (default: %(default)s)")
    job.add_argument("--narrow", action="store_true", help="if the end is measured over the budget, narrow once more")
    data = parser.add_argument_group("data and training")
    add_data_arguments(data)
    add_image_arguments(data)
    data.add_argument("--candidates", type=int, default=1, help="pick by accuracy among N near-optimal answers (default: %(default)s)")
    data.add_argument(
        "--units", choices=["score", "reconstruction"], default="score", help="which channels stay, given how many (default: %(default)s)"
    )
    data.add_argument("--recovery-images", type=int, default=2048, help="inputs to recover with, without labels (default: %(default)s)")
    data.add_argument("--recipe", help="fine-tuning recipe by name, for instance sp-lamp-cifar10")
    data.add_argument("--epochs", type=int, help="epochs of fine-tuning after each stage (needs --data); none by default")
    data.add_argument("--stage-epochs", type=int, help="epochs after every stage but the last (default: as after the last)")
    data.add_argument("--learning-rate", type=float, help="peak learning rate (default: the recipe's, else 0.02)")
    data.add_argument("--train-precision", choices=["fp32", "bf16", "fp16"], help="mixed precision (default: the recipe's, else fp32)")
    data.add_argument(
        "--recipe-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a value of the recipe, such as ema=0.999, mixup=0.2, accumulate=4, label_smoothing=0.1; may be repeated",
    )
    data.add_argument(
        "--log",
        action="append",
        metavar="NAME",
        help="write the training's curves: tensorboard (FOLDER/logs; the default where installed), wandb, mlflow or none; may be repeated",
    )
    data.add_argument("--channels-last", action="store_true", help="train with channels-last weights (default: the recipe's)")
    data.add_argument("--distill", action="store_true", help="let the dense network teach while fine-tuning")
    data.add_argument("--fit", metavar="MODULE:CALLABLE", help="fit(model, context) of your own instead of --epochs")
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER|FILE.onnx",
        help="folder for progress and result; with FILE.onnx the pruned network is written there, too, and the folder is called FILE",
    )
    add_table_arguments(out)
    out.add_argument("--onnx", action="store_true", help="also export FOLDER/result/model.onnx")
    out.add_argument(
        "--float32", action="store_true", help="write the ONNX file of a model of another type (bf16, fp16) in float32; the result keeps it"
    )
    add_progress_arguments(parser)


class Outcome(NamedTuple):
    """What came of one run: the result, its folder, and the ONNX file where one was asked for."""

    result: Result
    folder: Path
    exported: OnnxExport | None


def prune_as_told(args: argparse.Namespace) -> Outcome:
    """Prune, report and export by the arguments of :func:`add_arguments`."""
    from pathlib import Path

    from latprune.cli.export import in_float32
    from latprune.cli.loading import parse_arguments
    from latprune.cli.model_files import model_and_batches, recorded_as, settle_inputs
    from latprune.cli.option_rules import output_file, refuse_losing
    from latprune.errors import InvalidArgumentError
    from latprune.export import export_onnx
    from latprune.export.onnx import require_onnx, require_onnx_type
    from latprune.pruning.exploration import Exploration
    from latprune.pruning.run import prune

    if args.budget is None and args.pick is None:
        raise InvalidArgumentError("--budget is missing: give one, for instance 50%, or --explore FILE and --pick BUDGET")
    if (args.explore is None) != (args.pick is None):
        raise InvalidArgumentError("--explore FILE and --pick BUDGET go together: the file holds the networks, the budget says which one")
    if not args.output:
        raise InvalidArgumentError("--output (='') must name a folder, or a file that ends in .onnx")
    output = Path(args.output)
    if output.suffix == ".onnx" or args.onnx:
        file = output if output.suffix == ".onnx" else output / "result" / "model.onnx"
        refuse_losing(args, file, argument="--output")
    pick = Exploration.load(args.explore).pick(args.pick) if args.explore else None
    settle_inputs(args)
    check_training(args)
    options = options_of(args)
    _check_data(args)
    _check_stages(args, options)
    written = output_file(args.output, argument="--output") if output.suffix == ".onnx" else None
    exports = args.onnx or written is not None
    if args.float32 and not exports:
        raise InvalidArgumentError("--float32 is about the ONNX file, and none is written: add --onnx, or give -o FILE.onnx")
    if exports:
        require_onnx()  # told now rather than after the run
    output = output.with_suffix("") if written is not None else output
    model, inputs, batches = model_and_batches(args)
    if exports and not args.float32:
        require_onnx_type(model)
    if type(batches).__module__.startswith("latprune.") and not args.quiet:
        print(f"{'images' if args.images else 'data'}: {batches}")
    evaluate = evaluation_of(args, parse_arguments(args.data_arg, argument="--data-arg"))
    constructor, arguments = recorded_as(args, parse_arguments(args.model_arg))
    result = prune(
        model,
        inputs,
        budget=args.budget,
        pick=pick,
        data=batches,
        recovery_images=args.recovery_images,
        fit=_fit(args, batches, evaluate),
        evaluate=evaluate,
        candidates=args.candidates,
        units=args.units,
        importance_batches=args.importance_batches or None,
        time_limit=args.time_limit,
        slack=args.slack,
        narrow=args.narrow,
        folder=output,
        name=Path(args.file).stem if args.file else None,
        constructor=constructor,
        arguments=arguments,
        **options,
    )
    result.report(output / "result" / "report.html")
    exported = None
    if exports:
        path = written or output / "result" / "model.onnx"
        delivered, example = in_float32(result.model, inputs) if args.float32 else (result.model, inputs)
        exported = export_onnx(delivered, example, path, dynamic_batch=args.open_batch)
    return Outcome(result=result, folder=output, exported=exported)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import shlex

    from latprune.cli.export import described
    from latprune.cli.model_files import shown_model
    from latprune.errors import OverBudgetError

    if "engine" not in args.given:
        args.engine = _engine_of_budgets(args)
    outcome = prune_as_told(args)
    result, output = outcome.result, outcome.folder
    print(result)
    if outcome.exported is not None:
        print(f"wrote {outcome.exported.path}: {described(outcome.exported)}")
    print(f"saved in {output / 'result'}; verify with: {shlex.join(['latprune', 'verify', str(output), *shown_model(args)])}")
    if result.verdict == "over":
        record = result.record
        missed = " and ".join(repr(text) for text, found in record.verdicts.items() if found == "over")
        raise OverBudgetError(
            f"the delivered network lies over the budget {missed} (at {record.budget_share or 0.0:.2%} of {record.budget.text!r}); the "
            "result, its report and exports are written. Run again with --narrow, or with a smaller budget",
            budget_ms=record.budget.limit or 0.0,
            measured_ms=(record.budget_share or 0.0) * (record.budget.limit or 0.0),
        )
    return 0


def _engine_of_budgets(args: argparse.Namespace) -> str:
    """The engine without ``--engine``: the one that a budget names, where none is on the target's own latency, else the default."""
    from latprune.progress import say
    from latprune.pruning.budget import Budget
    from latprune.pruning.placing import placed

    if args.budget is None or args.tables:  # tables have an engine of their own
        return str(args.engine)
    found = placed(Budget.parse_all(args.budget), target=None)
    if found.said:
        say(f"engine: {found.target.engine}, which a budget names; --engine was not given")
    return found.target.engine


def check_training(args: argparse.Namespace) -> None:
    """Refuse options of a training that there is not, or that a ``--fit`` of the user's own does in its own way."""
    from latprune.cli.option_rules import refuse_alone, refuse_ignored

    if args.fit:
        refuse_ignored(args, ("epochs", "recipe", *_TRAINING), beside="--fit, which trains in its own way")
    elif args.epochs is None and args.recipe is None:
        refuse_alone(args, _TRAINING, needed="--epochs or --recipe, which train")


def _check_stages(args: argparse.Namespace, options: SharedOptions) -> None:
    """Refuse epochs of stages between which no recipe trains."""
    from latprune.errors import InvalidArgumentError
    from latprune.methods import get_method, get_schedule

    method, given = get_method(options["method"]), options["schedule"]
    schedule = get_schedule(given) if given is not None else method.schedule
    if args.stage_epochs is None or (schedule.count > 1 and schedule.batches is None):
        return
    why = "has one stage" if schedule.count == 1 else f"trains {schedule.batches} batches between its stages"
    raise InvalidArgumentError(
        f"--stage-epochs (={args.stage_epochs}) is for the stages before the last, and {method.name} {why}: leave it out, or ask for "
        "stages (--schedule stages --schedule-arg stages=3)"
    )


def _check_data(args: argparse.Namespace) -> None:
    """Refuse options about images without images, what would do nothing, and training that reads labels on images that have none."""
    from latprune.cli.option_rules import refuse_ignored
    from latprune.errors import InvalidArgumentError

    check_data(args)
    if args.recover == "none":
        refuse_ignored(args, ("recovery_images",), beside="--recover none")
    chosen = recipe_of(args) if args.images is not None else None
    if chosen is not None and (chosen.distillation is None or chosen.distillation.needs_labels):
        raise InvalidArgumentError(
            "--epochs and --recipe train on labels, which --images have none of; give --data, a --fit of your own, or --recipe "
            "match-dense, which learns from the dense network alone"
        )


def recipe_of(args: argparse.Namespace) -> Recipe | None:
    """The recipe that the arguments come to; None where none trains."""
    from dataclasses import replace

    from latprune.cli.loading import parse_arguments
    from latprune.cli.option_rules import refuse_twice
    from latprune.train import Distillation, Recipe, recipe

    if args.fit or (args.epochs is None and args.recipe is None):
        return None
    chosen = recipe(args.recipe) if args.recipe else Recipe(epochs=args.epochs, learning_rate=args.learning_rate or 0.02)
    if args.recipe and args.epochs is not None:
        chosen = chosen.with_epochs(args.epochs)
    given: dict[str, tuple[str, Any]] = {
        "epochs": ("--epochs", args.epochs),
        "learning_rate": ("--learning-rate", args.learning_rate),
        "precision": ("--train-precision", args.train_precision),
        "channels_last": ("--channels-last", args.channels_last or None),
        "distillation": ("--distill", Distillation() if args.distill else None),
    }
    given = {name: (option, value) for name, (option, value) in given.items() if value is not None}
    told = parse_arguments(args.recipe_arg, argument="--recipe-arg")
    for name, (option, _) in given.items():
        refuse_twice(told, name, argument="--recipe-arg", beside=option)
    chosen = Recipe.from_dict({**chosen.to_dict(), **told})
    return replace(chosen, **{name: value for name, (_, value) in given.items() if name != "epochs"})


def _fit(args: argparse.Namespace, batches: Any, evaluate: Any) -> Fit | None:
    from latprune.cli.loading import load_callable
    from latprune.errors import InvalidArgumentError
    from latprune.pruning.finetuning import fit_with

    if args.fit:
        return load_callable(args.fit, argument="--fit")
    chosen = recipe_of(args)
    if chosen is None:
        return None
    if batches is None:
        raise InvalidArgumentError("--epochs and --recipe need --data to train on")
    return fit_with(
        batches,
        chosen,
        stage_epochs=args.stage_epochs,
        evaluate=evaluate,
        threads=args.train_threads,
        logs=_logs(args.log),
    )


def _logs(named: list[str] | None) -> list[str]:
    """The logs that were asked for; by default TensorBoard's, where it is installed."""
    from importlib.util import find_spec

    if named is None:
        return ["tensorboard"] if find_spec("tensorboard") is not None else []
    return [name for name in named if name != "none"]
