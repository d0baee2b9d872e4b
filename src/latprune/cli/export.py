"""``latprune export``: a saved result as ONNX or as a ``torch.export`` program."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from latprune.cli.arguments import add_recorded_model_arguments
from latprune.cli.progress import add_progress_arguments

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from latprune.export import OnnxExport, ResultRecord

__all__ = ["add_parser", "described", "in_float32", "run"]

_EPILOG = """\
examples:
  latprune export pruned/result --model nets.py:net -o net.onnx
  latprune export pruned/result --model nets.py:net --dynamic-batch -o net.onnx
  latprune export pruned/result --model nets.py:net --overlay -o net.onnx
  latprune export pruned/result --model nets.py:net -o net.pt2
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "export",
        help="write a saved result as ONNX or as a torch.export program",
        description="Reload a saved result and write it as ONNX (.onnx) or as a torch.export program (.pt2), checked against PyTorch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("result", metavar="RESULT", help="folder or .zip of a saved result")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write; its ending chooses the format: .onnx or .pt2")
    add_recorded_model_arguments(parser)
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME=]SHAPE[:DTYPE[:HIGH]]",
        help="example input (default: as recorded in the result); may be repeated",
    )
    parser.add_argument("--opset", type=int, help="with .onnx: opset of the file (default: 18)")
    parser.add_argument("--dynamic-batch", action="store_true", help="leave the batch size open")
    parser.add_argument("--dynamic-size", action="store_true", help="leave height and width of images open, where the model does")
    parser.add_argument(
        "--float32", action="store_true", help="bring a model of another type (bf16, fp16) to float32 first, which every ONNX runtime takes"
    )
    parser.add_argument(
        "--overlay",
        action="store_true",
        help="with .onnx: measure each kernel on the result's target, and write the times and the outputs kept for Model Explorer "
        "(FILE.time.json, FILE.kept.json) and Netron (FILE.overlay.onnx)",
    )
    add_progress_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from latprune.cli.loading import recorded_constructor, recorded_inputs
    from latprune.cli.model_files import READER
    from latprune.cli.option_rules import refuse_overwriting
    from latprune.errors import InvalidArgumentError
    from latprune.export import export_onnx, export_program, load_result
    from latprune.export.onnx import OPSET

    output = Path(args.output)
    if output.suffix not in (".onnx", ".pt2"):
        raise InvalidArgumentError(f"--output (={args.output!r}) must end in .onnx or .pt2")
    if args.overlay and output.suffix != ".onnx":
        raise InvalidArgumentError(f"--overlay writes figures for the nodes of an ONNX file, and --output (={args.output!r}) is none")
    if args.opset is not None and output.suffix != ".onnx":
        raise InvalidArgumentError(f"--opset (={args.opset}) is of ONNX files, and --output (={args.output!r}) is none; leave it out")
    saved = load_result(args.result)
    if saved.record.model.constructor == READER:
        refuse_overwriting(output, saved.record.model.arguments.get("path"), argument="--output")
    if saved.record.program is not None:
        model = saved.restore()  # a captured program needs no class
    else:
        model = saved.restore(recorded_constructor(saved.record, args.model, args.model_arg, trust=args.trust_recorded_model))
    inputs = recorded_inputs(saved.record, args.input, model=model)
    if args.float32:
        model, inputs = in_float32(model, inputs)
    if output.suffix == ".pt2":
        print(f"wrote {export_program(model, inputs, output, dynamic_batch=args.dynamic_batch, dynamic_size=args.dynamic_size)}")
        return 0
    opset = OPSET if args.opset is None else args.opset
    written = export_onnx(model, inputs, output, opset=opset, dynamic_batch=args.dynamic_batch, dynamic_size=args.dynamic_size)
    print(f"wrote {written.path}: {described(written)}")
    if args.overlay:
        _overlay(model, inputs, output, saved.record)
    return 0


def _overlay(model: nn.Module, inputs: Any, output: Path, record: ResultRecord) -> None:
    from latprune.latency import Target
    from latprune.pruning.overlay import write_overlay

    found = write_overlay(model.eval(), inputs, output, target=Target(**record.target.model_dump()), record=record)
    print(f"wrote {found.time} and {found.kept} (Model Explorer) and {found.annotated} (Netron)")
    missing = f"; {found.unplaced_ms:.3g} ms more are of kernels that no node stands for" if found.unplaced_ms else ""
    print(f"{found.ms:.4g} ms on {found.nodes} nodes{missing}")


def in_float32(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """A model and its example inputs in float32: themselves where they are held in it."""
    import torch

    from latprune.graph.containers import rebuilt
    from latprune.latency.engines.inputs import evaluation_copy

    model = evaluation_copy(model, dtype=torch.float32)
    return model, rebuilt(inputs, lambda leaf: leaf.float() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf)


def described(written: OnnxExport) -> str:
    """What was written, and how it was checked."""
    checks = ", ".join(f"{name} within {error:.1e}" for name, error in written.errors.items()) or "no runtime installed to check it with"
    return f"opset {written.opset}, {written.exporter} exporter; {checks}"
