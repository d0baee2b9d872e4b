"""Optimizers go on after a cut: their parameters are exchanged, and what they remember of each is cut like the parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from latprune.errors import InvalidArgumentError
from latprune.surgery.edits import EditStep, ScaleEdit, TensorEdit
from latprune.surgery.slicing import cut_tensor, scale_tensor
from latprune.surgery.stale import removed_of

__all__ = ["ParameterChange", "carry_over", "check_optimizers", "optimizers_of"]

_DEGREES: Mapping[str, int] = {
    "momentum_buffer": 1,
    "exp_avg": 1,
    "exp_inf": 1,
    "grad_avg": 1,
    "prev": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
    "sum": 2,
    "variance": 2,
    "row_var": 2,
    "col_var": 2,
    "acc_delta": -2,
    "ax": -1,
    "step_size": -1,
}
"""By the names of PyTorch's optimizers, how a remembered value follows the gradient: where a weight is multiplied by ``f``, its gradient is
divided by ``f``, and the value by ``f ** degree``. Values under other names stay."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParameterChange:
    """What a step did to one parameter.

    Attributes:
        name: Its name before.
        old: The parameter before.
        new: What took its place (itself where it was only scaled); None where it went with a block.
        edit: How it was sliced; None where it was not.
        scales: How it was scaled before that.
    """

    name: str
    old: nn.Parameter
    new: nn.Parameter | None
    edit: TensorEdit | None = None
    scales: tuple[ScaleEdit, ...] = ()


def optimizers_of(given: Optimizer | Sequence[Optimizer]) -> tuple[Optimizer, ...]:
    """The optimizers, each once, with those that they hold (wrappers such as Accelerate's, optimizers that drive another)."""
    found: dict[int, Optimizer] = {}
    waiting: list[Any] = [given] if isinstance(given, Optimizer) else list(given)
    while waiting:
        optimizer = waiting.pop(0)
        if not isinstance(optimizer, Optimizer):
            raise InvalidArgumentError(f"optimizers (={type(optimizer).__name__}) must be torch.optim.Optimizer objects")
        if id(optimizer) not in found:
            found[id(optimizer)] = optimizer
            waiting += [inner for inner in vars(optimizer).values() if isinstance(inner, Optimizer)]
    return tuple(found.values())


def check_optimizers(model: nn.Module, optimizers: Iterable[Optimizer], step: EditStep) -> None:
    """Whether everything that the optimizers remember can be cut; asked before anything is changed.

    Raises:
        InvalidArgumentError: An optimizer holds no parameter of the model, or parameters that an earlier cut took out, or remembers
            something of a parameter whose places cannot be told.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    edits = {id(parameters[edit.name]): edit for edit in step.tensors if edit.name in parameters}
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        gone = removed_of(optimizer)
        if gone:
            raise InvalidArgumentError(
                f"optimizers: {kind} holds {len(gone)} parameters that an earlier cut took out of the model (first '{gone[0]}'); hand it "
                "to every cut, or build it anew from the model's parameters"
            )
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if not any(id(p) in names for p in held):
            raise InvalidArgumentError(
                f"optimizers: {kind} holds no parameter of this model (flattened and sharded parameters cannot be cut); build it anew from "
                "the model's parameters after the cut"
            )
        if step == EditStep():
            continue
        for parameter in held:
            name = names.get(id(parameter))
            if name is None:
                continue
            # What is not sliced is looked at too: LBFGS keeps one vector over all parameters beside the first.
            edit = edits.get(id(parameter), TensorEdit(name=name, shape=tuple(parameter.shape), keep={}))
            for key, value in optimizer.state.get(parameter, {}).items():
                if not _can_cut(value, edit):
                    raise InvalidArgumentError(
                        f"optimizers: what {kind} remembers of '{name}' as '{key}' ({_described(value)}) has no places of its own for the "
                        f"parameter's {edit.shape}; build the optimizer anew from the model's parameters after the cut"
                    )


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__} with tensors"


def _can_cut(value: Any, edit: TensorEdit) -> bool:
    if isinstance(value, (list, tuple, dict)):
        items = value.values() if isinstance(value, dict) else value
        return not any(isinstance(item, (Tensor, list, tuple, dict)) for item in items)
    return not isinstance(value, Tensor) or _is_scalar(value, edit) or _fitting(value, edit) is not None


def _is_scalar(value: Tensor, edit: TensorEdit) -> bool:
    return value.numel() == 1 and tuple(value.shape) != edit.shape


def _fitting(value: Tensor, edit: TensorEdit) -> TensorEdit | None:
    """The edit for a remembered tensor: of the parameter's shape, or with size 1 along dimensions that it sums over (Adafactor)."""
    if value.ndim != len(edit.shape) or any(n not in (1, whole) for n, whole in zip(value.shape, edit.shape, strict=True)):
        return None
    if edit.grouped is not None and tuple(value.shape[:2]) != edit.shape[:2]:
        return None
    keep = {dim: kept for dim, kept in edit.keep.items() if value.shape[dim] == edit.shape[dim]}
    return TensorEdit(name=edit.name, shape=edit.shape, keep=keep, grouped=edit.grouped)


def carry_over(optimizer: Optimizer, changes: Iterable[ParameterChange]) -> None:
    """Exchange the parameters of an optimizer, in place.

    Groups keep their order, their options and the schedulers that work on them; a parameter that went with its block leaves its group,
    which may be left empty.
    """
    by_id = {id(change.old): change for change in changes}
    for group in optimizer.param_groups:
        kept = [k for k, p in enumerate(group["params"]) if id(p) not in by_id or by_id[id(p)].new is not None]
        if "param_names" in group:
            group["param_names"][:] = [group["param_names"][k] for k in kept]
        group["params"][:] = [by_id[id(p)].new if id(p) in by_id else p for p in (group["params"][k] for k in kept)]
    remembered = list(optimizer.state.items())
    optimizer.state.clear()
    for parameter, values in remembered:
        change = by_id.get(id(parameter))
        if change is None:
            optimizer.state[parameter] = values
        elif change.new is not None:
            for key, value in values.items():
                values[key] = _cut(key, value, change)
            optimizer.state[change.new] = values


def _cut(key: str, value: Any, change: ParameterChange) -> Any:
    if not isinstance(value, Tensor):
        return value
    degree = _DEGREES.get(key, 0)
    if degree and tuple(value.shape) == tuple(change.old.shape):
        for scale in change.scales:
            scale_tensor(value, scale, -degree)
    if change.edit is None or _is_scalar(value, change.edit):
        return value
    edit = _fitting(value, change.edit)
    assert edit is not None  # check_optimizers has looked
    return cut_tensor(value, edit)
