"""Example inputs as every engine takes them: brought to the target's batch and precision, flattened in a fixed order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from latprune.copying import copied
from latprune.errors import InvalidArgumentError
from latprune.latency.target import Target

__all__ = ["DTYPES", "ModelInputs", "evaluation_copy", "prepare_inputs"]

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
    example_inputs: Any, target: Target, *, cast: bool, device: torch.device = _CPU, keep_format: bool = False
) -> ModelInputs:
    """Split ``example_inputs`` into arguments, bring each tensor's first dimension to ``target.batch``, and cast floats if ``cast``.

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
        if cast and tensor.is_floating_point():
            tensor = tensor.to(DTYPES[target.precision])
        last = keep_format and leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last) and not leaf.is_contiguous()
        return tensor.to(device).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    args, kwargs = pytree.tree_map(bring, (args, kwargs))
    return ModelInputs(args=args, kwargs=kwargs)


def evaluation_copy(model: nn.Module, target: Target, *, cast: bool, device: torch.device = _CPU) -> nn.Module:
    """The model in eval mode on ``device`` for an adapter to read: itself where nothing has to change, else a copy."""
    needs_cast = cast and DTYPES[target.precision] != torch.float32
    elsewhere = any(tensor.device != device for tensor in (*model.parameters(), *model.buffers()))
    if not needs_cast and not elsewhere and not any(module.training for module in model.modules()):
        return model
    duplicate = copied(model).eval().to(device)
    return duplicate.to(DTYPES[target.precision]) if needs_cast else duplicate
