"""Arguments that several commands share; imports argparse alone."""

from __future__ import annotations

import argparse

__all__ = [
    "add_fold_argument",
    "add_form_argument",
    "add_image_arguments",
    "add_model_arguments",
    "add_recorded_model_arguments",
    "add_target_arguments",
]


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True, file: bool = False) -> None:
    """Add ``--model``, ``--model-arg``, ``--weights`` and ``--input``; with ``file`` an ONNX file may stand in the place of a model."""
    group = parser.add_argument_group("model")
    if file:
        required = False
        group.add_argument("file", nargs="?", metavar="MODEL.onnx", help="an ONNX file in the place of --model: no Python class is needed")
    group.add_argument(
        "--model",
        required=required,
        metavar="MODULE:CALLABLE",
        help="callable that builds the model, as package.module:callable or path/to/file.py:callable",
    )
    group.add_argument(
        "--model-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="keyword argument of the callable; VALUE is read as JSON, or as text where it is not JSON; may be repeated",
    )
    group.add_argument("--weights", metavar="FILE", help="weights to load into the model, a .safetensors file")
    group.add_argument(
        "--input",
        action="append",
        default=[],
        required=required,
        metavar="[NAME=]SHAPE[:DTYPE[:HIGH]]",
        help="an example input, as 1x3x224x224 or ids=1x128:int64:30522 (integers below 30522); repeat for several inputs in order"
        + (" (an ONNX file: only where it leaves sizes open)" if file else ""),
    )


def add_form_argument(parser: argparse._ActionsContainer) -> None:
    """Add ``--form``."""
    parser.add_argument(
        "--form",
        choices=["class", "program"],
        default="class",
        help="what the pruned model is: the model's own class, or a captured program, where every size can shrink (default: %(default)s)",
    )


def add_fold_argument(parser: argparse._ActionsContainer, *, temporary: bool = False) -> None:
    """Add ``--fold``, and ``--fold-temporarily`` where there is a result that could have its weight norms back."""
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--fold",
        action="store_true",
        help="make weights that are computed of others (weight norm, spectral norm, masks) plain ones first, in a copy; changes no output",
    )
    if temporary:
        several.add_argument(
            "--fold-temporarily",
            dest="fold",
            action="store_const",
            const="temporary",
            help="as --fold, and the result has weight norms where the model had them, which compute the weights that were cut",
        )


def add_image_arguments(parser: argparse._ActionsContainer) -> None:
    """Add ``--images`` and what says how they are read."""
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of image files in the place of --data, without labels: scaled and cut to the input's size, for scoring and recovery",
    )
    parser.add_argument(
        "--mean", type=float, nargs="+", metavar="X", help="mean of --images by channel, 0 to 1 (default: ImageNet's 0.485 0.456 0.406)"
    )
    parser.add_argument(
        "--std", type=float, nargs="+", metavar="X", help="deviation of --images by channel (default: ImageNet's 0.229 0.224 0.225)"
    )
    parser.add_argument(
        "--crop", type=float, default=0.875, metavar="X", help="share of the shorter side of --images that is kept (default: %(default)s)"
    )


def add_recorded_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``, ``--model-arg`` and ``--trust-recorded-model`` for commands that rebuild a saved result."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="MODULE:CALLABLE", help="builds the dense model (default: as recorded, for the library's reference models)"
    )
    group.add_argument("--model-arg", action="append", default=[], metavar="KEY=VALUE", help="keyword argument of it; may be repeated")
    group.add_argument("--trust-recorded-model", action="store_true", help="run the constructor that the result records, whatever it is")


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine``, ``--device``, ``--threads``, ``--batch`` and ``--precision``."""
    group = parser.add_argument_group("target")
    group.add_argument("--engine", default="openvino", help="engine that will run the network (default: %(default)s)")
    group.add_argument("--device", default="cpu", help="device in the engine's words (default: %(default)s)")
    group.add_argument("--threads", type=int, default=1, help="threads of one inference (default: %(default)s)")
    group.add_argument("--batch", type=int, help="batch size (default: the first dimension of the first input)")
    group.add_argument("--precision", default="fp32", help="fp32, tf32 (on CUDA), bf16 or fp16 (default: %(default)s)")
