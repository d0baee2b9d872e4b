"""Copies of the user's model that stand on their own: functions that close over parts of the model close over the copy's parts."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from latprune.errors import CaptureError, LatpruneError

__all__ = ["copied", "laid_out_otherwise"]

ModelT = TypeVar("ModelT", bound=nn.Module)


def copied(model: ModelT) -> ModelT:
    """A deep copy of ``model``.

    ``copy.deepcopy`` takes functions as they are, so a hook that writes into a dictionary of the model would go on to write into the
    original's; and it refuses tensors that were computed (a weight that a hook derives, features that were kept). Here such functions, as
    hooks and as attributes, are made anew over the copy's parts, and computed tensors are copied by value.

    Args:
        model: Any module.

    Raises:
        CaptureError: The model holds something that cannot be copied (a lock, an open file); the message has its words.
    """
    memo: dict[int, Any] = {}
    held = [tensor for module in model.modules() for value in vars(module).values() for tensor in _computed(value, 2)]
    for tensor in held:
        memo[id(tensor)] = tensor.detach().clone()
    try:
        result = copy.deepcopy(model, memo)
    except LatpruneError:
        raise
    except Exception as error:
        raise CaptureError(
            f"the model ({type(model).__name__}) cannot be copied, and latprune works on copies of it: {type(error).__name__}: {error}; "
            "take what cannot be copied (a lock, a file, a process) out of its attributes, or give its class a __deepcopy__"
        ) from error
    for module in result.modules():
        _rebind(vars(module), memo, 2)
    return result


def laid_out_otherwise(model: ModelT) -> ModelT:
    """A copy whose four-dimensional parameters lie contiguous where some of ``model``'s do not, and channels last where all of them do."""
    result = copied(model)
    images = [parameter for parameter in result.parameters() if parameter.ndim == 4]
    plain = [torch.empty(parameter.shape, device="meta").stride() for parameter in images]
    contiguous = all(parameter.stride() == strides for parameter, strides in zip(images, plain, strict=True))
    memory_format = torch.channels_last if contiguous else torch.contiguous_format
    for parameter in images:
        # Made anew: with one channel a layout counts as the other, but its strides still decide what runs.
        parameter.data = torch.empty_like(parameter.data, memory_format=memory_format).copy_(parameter.data)
    return result


def _computed(value: Any, depth: int) -> Iterator[torch.Tensor]:
    """Tensors that were computed with gradients, in an attribute or in containers in it."""
    if isinstance(value, torch.Tensor):
        if value.grad_fn is not None:
            yield value
    elif depth and isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _computed(item, depth - 1)


def _rebind(values: dict[Any, Any], memo: dict[int, Any], depth: int) -> None:
    """Exchange functions in a module's attributes, and in the dictionaries among them (its hooks), for ones over the copy's parts."""
    for name, value in list(values.items()):
        if isinstance(value, types.FunctionType):
            rebound = _rebound(value, memo)
            if rebound is not value:
                values[name] = rebound
        elif depth and isinstance(value, dict) and name not in ("_modules", "_parameters", "_buffers"):
            _rebind(value, memo, depth - 1)


def _rebound(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """The function over the copies of what it closes over; itself where it closes over nothing of the model."""
    if function.__closure__ is None:
        return function
    if id(function) in memo:
        return memo[id(function)]  # type: ignore[no-any-return]
    cells, changed = [], False
    for cell in function.__closure__:
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            cells.append(cell)
            continue
        if isinstance(content, types.FunctionType) and content is not function:
            mine: Any = _rebound(content, memo)
        elif isinstance(content, types.MethodType):
            owner = memo.get(id(content.__self__), content.__self__)
            mine = content if owner is content.__self__ else types.MethodType(content.__func__, owner)
        else:
            mine = memo.get(id(content), content)
        changed |= mine is not content
        cells.append(types.CellType(mine) if mine is not content else cell)
    if not changed:
        return function
    result = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells))
    result.__kwdefaults__ = function.__kwdefaults__
    result.__qualname__, result.__doc__, result.__module__ = function.__qualname__, function.__doc__, function.__module__
    result.__dict__.update(function.__dict__)
    memo[id(function)] = result
    return result
