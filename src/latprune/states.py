"""A model's state as tensors for safetensors: what ``get_extra_state`` gives beside them, and int8 weights, with JSON, never pickled."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latprune.errors import CheckpointError, InvalidArgumentError
from latprune.quantised_state import apart, together

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "is_carried",
    "load_stored",
    "state_shapes",
    "state_tensors",
    "stored_shapes",
    "stored_state",
    "take_types",
    "without_extra_states",
]

_JSON = ":json"
"""Behind the name of an entry whose tensor is a text: the bytes of a JSON value."""
_INT8 = ":int8"
"""Behind the name of an entry whose tensor is a text: JSON that describes an int8 module's value; its tensors are NAME:int8.0 and so on."""
_EXTRA = "_extra_state"
"""The last part of an extra state's name in a state dict."""


def is_carried(value: Any) -> bool:
    """Whether an extra state can be stored: a tensor, or a value that comes back from JSON as it was."""
    import torch

    if isinstance(value, torch.Tensor):
        return True
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


def state_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of ``model.state_dict()``."""
    import torch

    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def stored_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """All of ``model.state_dict()`` as tensors; extra states that are none as the bytes of their JSON, under the name with ``:json``.

    What int8 modules hold (:mod:`latprune.quantised_state`) is stored as JSON under the name with ``:int8``, and its tensors behind that.

    Raises:
        InvalidArgumentError: An extra state is neither a tensor nor a JSON value.
    """
    import torch

    stored: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor) and not value.is_quantized:
            stored[name] = value
        elif not isinstance(value, torch.Tensor) and is_carried(value):
            stored[name + _JSON] = _text(value)
        elif (found := apart(value)) is not None:
            stored[name + _INT8] = _text(found[0])
            stored |= {f"{name}{_INT8}.{index}": tensor for index, tensor in enumerate(found[1])}
        else:
            raise InvalidArgumentError(
                f"'{name}' is a {type(value).__name__} that is neither a tensor nor a JSON value; only these can be stored without pickle"
            )
    return stored


def _text(value: Any) -> torch.Tensor:
    """A JSON value as the bytes of its text."""
    import torch

    return torch.frombuffer(bytearray(json.dumps(value, allow_nan=False).encode("utf-8")), dtype=torch.uint8)


def state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's state. An extra state has the shape ``()``: what it holds says nothing of the architecture."""
    return stored_shapes(stored_state(model))


def stored_shapes(stored: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """As :func:`state_shapes`, of what :func:`stored_state` gave."""
    names = {name: name.removesuffix(_JSON) for name in stored}
    return {names[name]: () if names[name].endswith((_EXTRA, _INT8)) else tuple(value.shape) for name, value in stored.items()}


def without_extra_states(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What :func:`stored_state` gave, parameters, buffers and int8 modules alone."""
    return {name: value for name, value in stored.items() if not name.removesuffix(_JSON).endswith(_EXTRA)}


def load_stored(model: nn.Module, stored: Mapping[str, torch.Tensor]) -> None:
    """Load what :func:`stored_state` gave; every name must be there, and no other.

    Raises:
        CheckpointError: A text is no JSON.
    """
    state: OrderedDict[str, Any] = OrderedDict()
    for name, value in stored.items():
        if name.endswith(_JSON):
            state[name.removesuffix(_JSON)] = _value(name, value)
        elif name.endswith(_INT8):
            count = sum(other.startswith(f"{name}.") for other in stored)
            try:
                state[name.removesuffix(_INT8)] = together(_value(name, value), [stored[f"{name}.{index}"] for index in range(count)])
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise CheckpointError(f"'{name}' describes no int8 value: {type(error).__name__}: {error}") from error
        elif f"{_INT8}." not in name:
            state[name] = value
    # Some modules (MNASNet) read the version of their state; without it they take the weights for those of an old release.
    state._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=True)


def take_types(model: nn.Module, stored: Mapping[str, torch.Tensor]) -> None:
    """Bring floating-point and complex parameters and buffers of ``model`` to the types of what is stored under their names.

    A network that was cast (``half()``) was cast with all that it holds. So a buffer that is not stored follows, where all stored tensors
    of its type became one other type.
    """
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    held = {name: tensor for name, tensor in held.items() if tensor.is_floating_point() or tensor.is_complex()}
    types: dict[torch.dtype, set[torch.dtype]] = {}
    for name, tensor in held.items():
        if name in stored:
            types.setdefault(tensor.dtype, set()).add(stored[name].dtype)
    # Taken before anything is cast: tied tensors have several names.
    wanted = {name: {stored[name].dtype} if name in stored else types.get(tensor.dtype, set()) for name, tensor in held.items()}
    for name, tensor in held.items():
        if len(wanted[name]) == 1:
            tensor.data = tensor.data.to(next(iter(wanted[name])))


def _value(name: str, text: torch.Tensor) -> Any:
    """The JSON value of a text."""
    try:
        return json.loads(text.cpu().numpy().tobytes())
    except ValueError as error:
        raise CheckpointError(f"'{name}' is no JSON: {error}") from error
