"""The model of a command: what ``--model`` builds, or an ONNX file, whose inputs take the place of ``--input``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latprune.cli.loading import example_inputs, load_batches, load_model, parse_arguments, parse_input
from latprune.errors import InvalidArgumentError

if TYPE_CHECKING:
    from torch import nn

    from latprune.zoo import ImageFolder

__all__ = ["READER", "build_model", "image_batches", "model_and_batches", "recorded_as", "settle_inputs", "shown_model"]

READER = "latprune:load_onnx"
"""How a result records a model that was a file."""


def settle_inputs(args: argparse.Namespace) -> None:
    """Bring ``args.input`` to the inputs of the ONNX file, where there is one; refuse a file beside ``--model``, and neither.

    Raises:
        InvalidArgumentError: There is a file and ``--model`` (or its options), or neither, or the file needs sizes that are not given.
    """
    args.shapes, args.open_batch = {}, False
    if args.file is None:
        if args.model is None:
            raise InvalidArgumentError("there is no model: give an ONNX file, or --model MODULE:CALLABLE with --input SHAPE")
        if not args.input:
            raise InvalidArgumentError("--input is missing; give the shape of an example input, for instance --input 1x3x224x224")
        return
    for name in ("model", "model_arg", "weights"):
        if getattr(args, name):
            raise InvalidArgumentError(f"--{name.replace('_', '-')} does nothing beside the file {args.file}; leave one of them out")
    if Path(args.file).suffix != ".onnx":
        raise InvalidArgumentError(
            f"{args.file!r} must be an ONNX file (its name ends in .onnx); a model in Python is --model MODULE:CALLABLE"
        )
    from latprune.onnx_reader import onnx_inputs

    specs = [parse_input(text) for text in args.input]
    if any(spec.name is None for spec in specs):
        names = _names(args.file)
        if len(specs) != len(names):
            raise InvalidArgumentError(f"--input was given {len(specs)} times; the inputs of {args.file} are {', '.join(names)}")
        args.shapes = {spec.name or name: spec.shape for spec, name in zip(specs, names, strict=True)}
    else:
        args.shapes = {str(spec.name): spec.shape for spec in specs}
    found = onnx_inputs(args.file, shapes=args.shapes)
    args.open_batch = all(entry.open_batch for entry in found)
    args.input = [
        "x".join(str(n) for n in entry.shape) + f":{entry.dtype}" + (f":{entry.high}" if entry.dtype.startswith("int") else "")
        for entry in found
    ]


def _names(path: str) -> list[str]:
    """Names of a file's inputs, in order."""
    from latprune.onnx_reader.model_file import read_graph, read_model

    return [entry.name for entry in read_graph(read_model(path)).inputs]


def build_model(args: argparse.Namespace) -> nn.Module:
    """The model, after :func:`settle_inputs`."""
    if args.file is None:
        return load_model(args.model, args.model_arg, args.weights)
    from latprune.onnx_reader import load_onnx

    return load_onnx(args.file, shapes=args.shapes)


def model_and_batches(args: argparse.Namespace) -> tuple[nn.Module, Any, Any]:
    """The model, example inputs, and the batches of ``--data`` or ``--images`` (None without either), after :func:`settle_inputs`."""
    model = build_model(args)
    inputs = example_inputs(args.input, batch=args.batch, seed=args.seed, model=model)
    if args.images:
        return model, inputs, image_batches(args, model, inputs)
    keywords = parse_arguments(args.data_arg, argument="--data-arg")
    return model, inputs, load_batches(args.data, keywords, argument="--data") if args.data else None


def recorded_as(args: argparse.Namespace, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The constructor and its arguments that a result records; ``arguments`` are those of ``--model-arg``."""
    if args.file is None:
        return args.model, arguments
    shapes = {"shapes": {name: list(sizes) for name, sizes in args.shapes.items()}} if args.shapes else {}
    return READER, {"path": str(args.file), **shapes}


def shown_model(args: argparse.Namespace) -> list[str]:
    """The options that name the model to a command that rebuilds it; none where the result does."""
    if args.file is not None:
        return []
    model = [] if args.model.startswith("latprune.zoo:") else ["--model", args.model]
    return model + [word for argument in args.model_arg for word in ("--model-arg", argument)]


def image_batches(args: argparse.Namespace, model: nn.Module, inputs: Any) -> ImageFolder:
    """The batches of ``--images``, in the size and type of the model's input; at the model's batch size where it runs at no other.

    Raises:
        InvalidArgumentError: The model takes something other than one image.
    """
    import torch

    from latprune.program import ProgramModule
    from latprune.zoo import ImageFolder

    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 4 or inputs.shape[1] not in (1, 3) or not inputs.is_floating_point():
        shapes = [tuple(t.shape) for t in ([inputs] if isinstance(inputs, torch.Tensor) else inputs)]
        raise InvalidArgumentError(
            f"--images (={args.images!r}) are for a model of one input (batch, 1 or 3 channels, height, width); this one takes {shapes}"
        )
    fixed = isinstance(model, ProgramModule) and not model.program.inputs[0].batched
    return ImageFolder(
        args.images,
        inputs.shape[1:],
        mean=args.mean,
        std=args.std,
        batch=int(inputs.shape[0]) if fixed else 32,
        crop=args.crop,
        whole=fixed,
        seed=args.seed,
        dtype=inputs.dtype,
    )
