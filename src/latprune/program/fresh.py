"""Fresh values for the parameters of a captured program: as PyTorch's layers draw them, told from the steps that read them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError
from latprune.program.module import ProgramModule
from latprune.program.steps import Held, Step, Value

__all__ = ["Fresh", "fresh_values"]

# Operator -> places of scale, shift, mean, variance and counter among its arguments.
_NORMS: Mapping[str, tuple[int | None, ...]] = {
    "batch_norm": (3, 4, 1, 2, 8),
    "layer_norm": (2, 3),
    "group_norm": (2, 3),
    "rms_norm": (2,),
}
_NORM_VALUES = (1.0, 0.0, 0.0, 1.0, 0.0)
_CONTRACTIONS = frozenset({"linear", *(f"{name}{rank}d" for name in ("conv", "conv_transpose") for rank in (1, 2, 3))})
# Operator -> place of the matrix ``(in, out)``, and of the bias.
_PRODUCTS: Mapping[str, tuple[int, int | None]] = {
    "matmul": (1, None),
    "aten.mm.default": (1, None),
    "aten.addmm.default": (2, 0),
}
# Recurrent operator -> blocks of rows in its hidden weights.
_GATES: Mapping[str, int] = {"lstm": 4, "gru": 3}
_PRELU = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """What a tensor of a program is drawn from.

    Attributes:
        low: Smallest value of a uniform distribution, or the constant.
        high: Largest one; equal to ``low`` for a constant.
        normal: Draw from the standard normal distribution instead.
        padding: Row that is 0 then; None for none.
    """

    low: float = 0.0
    high: float = 0.0
    normal: bool = False
    padding: int | None = None

    @torch.no_grad()
    def draw(self, tensor: Tensor) -> None:
        """Fill a tensor in place, from the generator of its device."""
        if self.normal:
            tensor.normal_()
            if self.padding is not None:
                tensor[self.padding].zero_()
        elif self.low == self.high:
            tensor.fill_(self.low)
        else:
            tensor.uniform_(self.low, self.high)


def fresh_values(program: ProgramModule) -> dict[str, Fresh]:
    """What every parameter that is read, and every statistic of a norm, is drawn from, by name; tied tensors under one of theirs.

    Convolutions, linear layers and products with a matrix: uniform within ``1 / sqrt(fan_in)``, their biases too; recurrent layers within
    ``1 / sqrt(hidden)``; embeddings standard normal, their padding row 0; norms scale 1 and shift 0, with mean 0 and variance 1. These are
    the ``reset_parameters`` of PyTorch's layers. The values that the tensors have now are not looked at. Parameters of one value that none
    of those reads stay, as they do in a class, and so do those that nothing reads.

    Args:
        program: A captured program.

    Raises:
        InvalidArgumentError: Nothing that is known reads a parameter (a position embedding, the scale of a branch): which distribution its
            class began with cannot be told.

    Example:
        >>> found = fresh_values(latprune.capture(torch.nn.Linear(16, 4), torch.zeros(1, 16)))
        >>> found["weight"].high
        0.25
    """
    tensors = program.stored()
    found: dict[str, Fresh] = {}
    for name, fresh in _of_steps(program, tensors):
        alias = program.program.tensors[name].alias_of
        found[name if alias is None else alias] = fresh
    known = {id(tensors[name]) for name in found}
    read = {id(tensors[part.name]) for step in program.program.steps for part in step.reads() if isinstance(part, Held)}
    read |= {id(tensors[part.name]) for part in program.program.outputs["returned"] if isinstance(part, Held)}
    unknown = [name for name, parameter in program.named_parameters() if _drawn(parameter) and id(parameter) in read - known]
    if unknown:
        raise InvalidArgumentError(
            f"{len(unknown)} parameter(s) of the captured program are read by no layer of PyTorch's (first '{unknown[0]}'), so what they "
            "are initialised with cannot be told without their class: choose form='class', or a method that keeps the weights"
        )
    return found


def _drawn(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and parameter.numel() > 1


def _within(fan_in: int) -> Fresh:
    bound = 1.0 / math.sqrt(fan_in) if fan_in > 0 else 0.0
    return Fresh(low=-bound, high=bound)


def _of_steps(program: ProgramModule, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Fresh]]:
    """The tensors that each step reads as a layer does; where several read one, the last counts, as with modules that are reset in turn."""
    steps = program.program.steps
    makers = {number: step for step in steps for number in step.results if number is not None}
    for step in steps:
        given = [argument.name if isinstance(argument, Held) else None for argument in step.arguments]
        if step.operator in _NORMS:
            for place, value in zip(_NORMS[step.operator], _NORM_VALUES, strict=False):
                if place is not None and place < len(given) and (name := given[place]) is not None:
                    yield name, Fresh(low=value, high=value)
        elif step.operator in _CONTRACTIONS and given[1] is not None:
            fresh = _within(math.prod(tensors[given[1]].shape[1:]))
            yield from ((name, fresh) for name in given[1:3] if name is not None)
        elif step.operator in _GATES:
            held = [argument.name for argument in step.arguments[2] if isinstance(argument, Held)]
            hidden = tensors[held[1]].shape[0] // _GATES[step.operator]
            yield from ((name, _within(hidden)) for name in held)
        elif step.operator == "aten.embedding.default" and given[0] is not None:
            padding = step.arguments[2] if len(step.arguments) > 2 else -1
            yield given[0], Fresh(normal=True, padding=padding if isinstance(padding, int) and padding >= 0 else None)
        elif step.operator == "prelu" and given[1] is not None:
            yield given[1], Fresh(low=_PRELU, high=_PRELU)
        elif step.operator == "aten.mul.Tensor" and program.program.kinds.get(step.module) == "RMSNorm":
            yield from ((name, Fresh(low=1.0, high=1.0)) for name in given if name is not None)
        else:
            yield from _of_product(step, given, makers, tensors)


def _of_product(
    step: Step, given: list[str | None], makers: Mapping[int, Step], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Fresh]]:
    """A product with a matrix that is held, and the vector that is added to one."""
    if step.operator in _PRODUCTS:
        matrix, bias = _PRODUCTS[step.operator]
        name = given[matrix]
        if name is not None and tensors[name].dim() > 1:
            fresh = _within(tensors[name].shape[-2])
            yield name, fresh
            if bias is not None and (shift := given[bias]) is not None:
                yield shift, fresh
    elif step.operator == "aten.add.Tensor":
        made = [makers.get(argument.number) for argument in step.arguments if isinstance(argument, Value)]
        if len(made) == 1 and made[0] is not None and made[0].operator in _PRODUCTS:
            matrix, _ = _PRODUCTS[made[0].operator]
            weight = made[0].arguments[matrix]
            if isinstance(weight, Held) and tensors[weight.name].dim() > 1:
                yield from (
                    (name, _within(tensors[weight.name].shape[-2])) for name in given if name is not None and tensors[name].dim() == 1
                )
