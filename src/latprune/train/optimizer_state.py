"""An optimizer's state in two parts, tensors and JSON, and back into an optimizer over the same parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import CheckpointError, FileFormatError

__all__ = ["OptimizerParts", "joined", "require_same_parameters", "split", "trained_names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerParts:
    """An optimizer's state split into tensors (by parameter index and key) and the rest."""

    tensors: dict[str, Tensor]
    rest: dict[str, Any]


def trained_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names in ``model`` of the parameters that ``optimizer`` trains, in its order, by which its state is numbered."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names.get(id(parameter), "") for group in optimizer.param_groups for parameter in group["params"]]


def require_same_parameters(then: Sequence[str], now: Sequence[str], *, folder: object) -> None:
    """Refuse to go on with a training of other parameters: the state of one would become that of another.

    Args:
        then: :func:`trained_names` of the training in ``folder``.
        now: Those of this one.
        folder: The checkpoint's folder, for the message.

    Raises:
        CheckpointError: Says which parameter was trained then and is not now, or the other way round.
    """
    if list(then) == list(now):
        return
    ends = "set requires_grad as it was, give another checkpoint_dir, or resume=False to start again"
    for name in then:
        if name not in now:
            raise CheckpointError(f"{folder} holds a training of parameter '{name}', which is not trained here; {ends}")
    for name in now:
        if name not in then:
            raise CheckpointError(f"{folder} holds a training in which parameter '{name}' was not trained, and here it is; {ends}")
    raise CheckpointError(f"{folder} holds a training of the same parameters in another order; {ends}")


def split(state: Mapping[str, Any]) -> OptimizerParts:
    """The two parts of an optimizer's state dict."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    return OptimizerParts(tensors=tensors, rest={"param_groups": state["param_groups"], "state": scalars})


def joined(tensors: Mapping[str, Tensor], rest: Mapping[str, Any], *, own: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of the two parts.

    Args:
        tensors: The tensors of :func:`split`, by ``index.key``.
        rest: The rest of it, as it was read.
        own: State dict of the optimizer that is to have it, whose groups say what theirs must be like.

    Raises:
        FileFormatError: Names the place in the rest that is not as an optimizer over these parameters has it.
    """
    count = sum(len(group["params"]) for group in own["param_groups"])
    state: dict[int, dict[str, Any]] = {}
    found = rest.get("state")
    if not isinstance(found, dict):
        raise FileFormatError(f"(={found!r}) must be an object of objects", path="optimizer.state")
    for index, values in found.items():
        place = f"optimizer.state.{index}"
        if index not in map(str, range(count)):
            raise FileFormatError(f"must be the number of one of {count} trained parameters", path=place)
        if not isinstance(values, dict) or any(value is not None and not _number(value) for value in values.values()):
            raise FileFormatError(f"(={values!r}) must be an object of numbers", path=place)
        state[int(index)] = dict(values)
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": _groups(rest.get("param_groups"), own["param_groups"])}


def _groups(found: Any, own: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups that are like ``own``; what an earlier PyTorch did not know of stands as it is there."""
    place = "optimizer.param_groups"
    if not isinstance(found, list) or len(found) != len(own):
        raise FileFormatError(f"must be {len(own)} groups of parameters", path=place)
    groups = []
    for index, (entry, wanted) in enumerate(zip(found, own, strict=True)):
        if not isinstance(entry, dict):
            raise FileFormatError(f"(={entry!r}) must be an object", path=f"{place}[{index}]")
        for name, value in wanted.items():
            if name in entry and not (_alike(entry[name], value) if name != "params" else entry[name] == list(value)):
                raise FileFormatError(f"(={entry[name]!r}) must be of the kind of {value!r}", path=f"{place}[{index}].{name}")
        groups.append({**wanted, **{name: entry[name] for name in wanted if name in entry}})
    return groups


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _alike(value: Any, wanted: Any) -> bool:
    """Whether a value of a file can stand where an optimizer has ``wanted``."""
    if isinstance(wanted, bool) or wanted is None:
        return type(value) is type(wanted)
    if isinstance(wanted, (tuple, list)):
        return isinstance(value, list) and len(value) == len(wanted) and all(map(_alike, value, wanted))
    return not isinstance(value, bool) and _number(value) if isinstance(wanted, (int, float)) else type(value) is type(wanted)
