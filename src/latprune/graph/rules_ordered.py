"""Rules for operations that order, pick or add up the places of a dimension: extremes, sorting, running sums.

Along a dimension without labels each channel is treated by itself. Along labelled ones the largest of the kept values is all the same a
value; where it stands among them is a number that changes with the channels that are left.
"""

from __future__ import annotations

from typing import Any

import torch

from latprune.graph.combine import reduce
from latprune.graph.fields import varying
from latprune.graph.recording import Fields
from latprune.graph.rules import Step, register_rule
from latprune.graph.rules_compute import elementwise

__all__: list[str] = []


def _dim(step: Step) -> int | None:
    """The dimension that an operation is told, by its schema."""
    for position, argument in enumerate(step.func._schema.arguments):
        if argument.name == "dim":
            found = step.argument(position, "dim", argument.default_value if argument.has_default_value() else None)
            return None if found is None else int(found)
    return None


@register_rule("aten::max", "aten::min")
def extremum(step: Step) -> Any:
    """``max(x)``, ``max(x, dim)`` and ``max(x, y)``; the places of the largest among channels keep those, once they are read."""
    if len(step.args) > 1 and isinstance(step.args[1], torch.Tensor):
        return elementwise(step)
    source: torch.Tensor = step.args[0]
    dim = _dim(step)
    dims = list(range(source.dim())) if dim is None else [dim % source.dim()]
    values = step.out if isinstance(step.out, torch.Tensor) else step.out[0]
    result = reduce(step.space, step.fields(source), dims, source.dim(), values.dim() == source.dim(), step.place)
    if isinstance(step.out, torch.Tensor):
        return result
    step.places[1] = tuple(f for f in step.fields(source) if set(varying(f)) & set(dims))
    return [result, result]


@register_rule("aten::argmax", "aten::argmin")
def place_of_extremum(step: Step) -> Fields:
    """Places as numbers: along a dimension without labels those of each channel."""
    source: torch.Tensor = step.args[0]
    dim = _dim(step)
    dims = list(range(source.dim())) if dim is None else [dim % source.dim()]
    step.places[0] = tuple(f for f in step.fields(source) if set(varying(f)) & set(dims))
    kept = tuple(f for f in step.fields(source) if not set(varying(f)) & set(dims))
    return reduce(step.space, kept, dims, source.dim(), step.out.dim() == source.dim(), step.place)


@register_rule(
    "aten::cumsum", "aten::cumprod", "aten::logcumsumexp", "aten::cummax", "aten::cummin", "aten::sort", "aten::argsort", "aten::topk",
)  # fmt: skip
def along_one_dimension(step: Step) -> Any:
    """Running sums and orders along one dimension, which must carry no labels; the results keep the dimension."""
    fields = _apart(step)
    return [fields] * len(step.out) if isinstance(step.out, tuple) else fields


@register_rule("aten::kthvalue", "aten::median", "aten::nanmedian", "aten::mode")
def picked_along_one_dimension(step: Step) -> Any:
    """One value of each row along a dimension, which must carry no labels."""
    source: torch.Tensor = step.args[0]
    dim = _dim(step)
    dims = list(range(source.dim())) if dim is None else [dim % source.dim()]
    values = step.out if isinstance(step.out, torch.Tensor) else step.out[0]
    result = reduce(step.space, _apart(step), dims, source.dim(), values.dim() == source.dim(), step.place)
    return result if isinstance(step.out, torch.Tensor) else [result] * len(step.out)


def _apart(step: Step) -> Fields:
    """The fields of the argument that do not vary along the operation's dimension; the others stay."""
    source: torch.Tensor = step.args[0]
    dim = _dim(step)
    dims = set(range(source.dim())) if dim is None else {dim % source.dim()} if source.dim() else set()
    step.freeze((f for f in step.fields(source) if set(varying(f)) & dims), f"the order or the sum of channels is taken by {step.place}")
    return tuple(f for f in step.fields(source) if not set(varying(f)) & dims)


@register_rule("aten::triu", "aten::tril")
def triangle(step: Step) -> Fields:
    """Places of the last two dimensions at 0; their labels stay."""
    last = {step.out.dim() - 1, step.out.dim() - 2}
    step.freeze((f for f in step.fields(step.args[0]) if set(varying(f)) & last), f"channels are picked by their places by {step.place}")
    return tuple(f for f in step.fields(step.args[0]) if not set(varying(f)) & last)
