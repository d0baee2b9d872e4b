"""Model and example inputs as every engine takes them: in the target's batch and precision, on its device, flattened in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from latprune.copying import copied
from latprune.errors import EngineError, InvalidArgumentError
from latprune.graph.conditions import check_runs
from latprune.graph.tensors import tensors_in
from latprune.latency.target import Target

__all__ = ["DTYPES", "ModelInputs", "check_network", "evaluation_copy", "held_type", "prepare", "prepare_inputs", "type_to_run"]

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """Positional and keyword arguments of one forward call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors among the arguments, positional ones first, in the order of the call."""
        leaves, _ = pytree.tree_flatten((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


_CPU = torch.device("cpu")


def prepare_inputs(
    example_inputs: Any,
    target: Target,
    *,
    dtype: torch.dtype | None,
    device: torch.device = _CPU,
    keep_format: bool = False,
) -> ModelInputs:
    """Split ``example_inputs`` into arguments, bring each tensor's first dimension to ``target.batch``, and floats to ``dtype``.

    The first dimension of the first tensor is taken to be the batch; every tensor whose first dimension is equal to it follows. Rows are
    repeated or dropped. Wherever the tensors were, they are on ``device`` then, and contiguous; with ``keep_format`` those that came in the
    ``channels_last`` format stay in it.
    """
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    if isinstance(example_inputs, torch.Tensor):
        args, kwargs = (example_inputs,), dict[str, Any]()
    elif isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, tuple | list):
        args, kwargs = tuple(example_inputs), {}
    else:
        raise InvalidArgumentError(
            f"example_inputs (of type {type(example_inputs).__name__}) must be a tensor, a tuple of arguments or a mapping of keywords"
        )
    tensors = [leaf for leaf in pytree.tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise InvalidArgumentError("example_inputs must hold at least one tensor")
    batch = tensors[0].shape[0] if tensors[0].dim() else None

    def bring(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        tensor = leaf.detach()
        if tensor.dim() and batch is not None and tensor.shape[0] == batch and batch != target.batch:
            repeats = -(-target.batch // batch)
            tensor = tensor.repeat(repeats, *([1] * (tensor.dim() - 1)))[: target.batch]
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        last = keep_format and leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last) and not leaf.is_contiguous()
        return tensor.to(device).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    args, kwargs = pytree.tree_map(bring, (args, kwargs))
    return ModelInputs(args=args, kwargs=kwargs)


def check_network(model: nn.Module, example_inputs: Any, target: Target) -> None:
    """Run a network once where it lies, on inputs of ``target.batch`` and of its own type, before an engine gets it; it is left as it is.

    Raises:
        CaptureError: It does not run on the inputs, or returns no tensor: engines tell that in words of their own, or not at all.
    """
    if not tensors_in(example_inputs):
        return  # engines say what inputs are
    place = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), _CPU)
    inputs = prepare_inputs(example_inputs, target, dtype=held_type(model), device=place, keep_format=True)
    check_runs(model, inputs.kwargs or inputs.args)


def held_type(model: nn.Module) -> torch.dtype | None:
    """The one floating-point type that all parameters (or, where there are none, buffers) have; None where there are several or none."""
    kinds = _held_types(model)
    return kinds.pop() if len(kinds) == 1 else None


def _held_types(model: nn.Module) -> set[torch.dtype]:
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return kinds or {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()}


def type_to_run(model: nn.Module, target: Target, *, cast: bool) -> torch.dtype | None:
    """The type that a model and its inputs are brought to for ``target``; None leaves both as they are.

    Args:
        model: As it is handed over.
        target: Its precision is what the engine computes in.
        cast: The engine takes the network in the type that it computes in; else in float32 whatever that is. Networks of several types
            (parts that compute in float32) are left alone at fp32: which part computes in which type is their own affair.
    """
    kinds = _held_types(model)
    wanted = DTYPES[target.precision] if cast else torch.float32
    as_it_is = len(kinds) > 1 or (not cast and kinds <= {torch.float32})
    return None if wanted == torch.float32 and as_it_is else wanted


def evaluation_copy(model: nn.Module, *, dtype: torch.dtype | None, device: torch.device = _CPU) -> nn.Module:
    """The model in eval mode on ``device``, in ``dtype``, for an adapter to read: itself where nothing has to change, else a copy."""
    needs_cast = dtype is not None and bool(_held_types(model) - {dtype})
    elsewhere = any(tensor.device != device for tensor in (*model.parameters(), *model.buffers()))
    if not needs_cast and not elsewhere and not any(module.training for module in model.modules()):
        return model
    duplicate = copied(model).eval().to(device)
    if needs_cast:
        duplicate._apply(lambda tensor: tensor.to(_in_kind(tensor, dtype)))  # type: ignore[no-untyped-call]
    return duplicate


def _in_kind(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The type of a parameter or buffer in a model of ``dtype``: complex ones are halved where float64 is, others stay."""
    if tensor.is_floating_point() and dtype is not None:
        return dtype
    return torch.complex64 if tensor.dtype == torch.complex128 and dtype == torch.float32 else tensor.dtype


def prepare(
    model: nn.Module, example_inputs: Any, target: Target, *, cast: bool, device: torch.device = _CPU, keep_format: bool = False
) -> tuple[nn.Module, ModelInputs]:
    """Model and inputs for an adapter to read; see :func:`evaluation_copy`, :func:`prepare_inputs` and :func:`type_to_run`.

    Raises:
        EngineError: The model was brought to another type than it is held in, and does not run in it: its own code names a type.
    """
    dtype = type_to_run(model, target, cast=cast)
    inputs = prepare_inputs(example_inputs, target, dtype=dtype, device=device, keep_format=keep_format)
    held = evaluation_copy(model, dtype=dtype, device=device)
    if dtype is not None and _held_types(model) - {dtype}:
        try:
            with torch.inference_mode():
                held(*inputs.args, **inputs.kwargs)
        except Exception as error:  # whatever the model's code raises
            name = str(dtype).removeprefix("torch.")
            kinds = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in _held_types(model)))
            said = (str(error).strip().splitlines() or [""])[0]
            raise EngineError(
                f"{type(model).__name__} is held in {kinds} and does not run in {name}, which precision (={target.precision!r}) asks for "
                f"on {target.engine}: {type(error).__name__}: {said}; its own code seems to name a type: take that out, choose the "
                "precision it is made for (--precision), or an engine that runs it as it is (torch)"
            ) from error
    return held, inputs
