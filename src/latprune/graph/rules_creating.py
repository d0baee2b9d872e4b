"""Rules for tensors that are made of sizes alone: one value everywhere carries the channels that a size was read of, a count does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from latprune.graph.fields import varying
from latprune.graph.provenance import TracedInt
from latprune.graph.recording import Equation, Fields
from latprune.graph.rules import Step, register_rule

__all__ = ["FROM_NOTHING", "FROM_SHAPES", "pass_sizes", "settle_sizes"]

_ONE_VALUE = ("zeros", "ones", "empty", "full", "rand", "randn")
_SAME = frozenset({"alias", "detach", "clone", "contiguous", "_to_copy", "lift_fresh", "zero_", "zeros_like", "ones_like", "empty_like"})
_COUNTS = ("arange", "linspace", "logspace", "eye", "randperm", "tril_indices", "triu_indices", "hann_window", "hamming_window")

FROM_NOTHING = frozenset(f"aten::{name}" for name in (*_ONE_VALUE, *_COUNTS))
"""Operations that make a tensor without reading one."""

FROM_SHAPES = frozenset(
    f"aten::{name}"
    for name in (
        "new_zeros new_ones new_empty new_full new_empty_strided zeros_like ones_like full_like empty_like rand_like randn_like"
    ).split()
)
"""Operations that read nothing but the shape and type of their argument."""


@register_rule(*(f"aten::{name}" for name in _ONE_VALUE), "aten::new_zeros", "aten::new_ones", "aten::new_empty", "aten::new_full")
def one_value(step: Step) -> Fields:
    """A tensor of a stated shape. A dimension whose size was read of channels carries them; one of another size that can follow (an
    attribute) carries those that it meets.
    """
    around = step.recorder.watcher.arguments("pad")
    if around is not None:
        return _padded(step, *around)
    sizes = _stated_shape(step)
    if len(sizes) != step.out.dim():
        return ()
    fields = []
    for dim, size in enumerate(sizes):
        if not isinstance(size, TracedInt) or step.out.shape[dim] == 1:
            continue
        labels = step.recorder.sizes[int(size.expr[1])].labels if size.expr[0] == "size" else None
        if labels is not None and labels.shape[0] == labels.shape[2] == 1:
            fields.append(labels.reshape([-1 if d == dim else 1 for d in range(len(sizes))]))
        else:
            step.sized += ((dim, size.expr),)
    return tuple(fields)


def settle_sizes(step: Step, operands: Iterable[Any]) -> None:
    """Sizes of ``operands`` that are known by an expression alone, where an operation does not let them pass: they stay as they are."""
    for tensor in _tensors(operands):
        info = step.info(tensor)
        for dim, expr in info.sized:
            step.recorder.equations.append(Equation(left=expr, right=("const", info.shape[dim]), place=step.place))
        info.sized = ()


def pass_sizes(step: Step) -> bool:
    """Let the sizes of a tensor of one value pass an operation that looks at a part of it, or copies it; False for all others."""
    name = step.func._schema.name.split("::")[1]
    source: Any = step.args[0] if step.args else None
    if name in _SAME:
        step.sized = step.info(source).sized
    elif name in ("slice", "select"):
        dim = (step.argument(1, "dim", 0) or 0) % source.dim()
        info = step.info(source)
        whole = name == "slice" and source.shape[dim] == step.out.shape[dim]
        for at, expr in info.sized:
            if at == dim and not whole:
                step.recorder.equations.append(Equation(left=expr, right=("const", info.shape[at]), place=step.place))
            else:
                step.sized += ((at - (name == "select" and at > dim), expr),)
        info.sized = tuple(entry for entry in info.sized if entry[0] != dim or whole)
    else:
        return False
    return True


def _tensors(args: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in args:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _padded(step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Fields:
    """What circular padding writes its parts into: along the dimensions that are not padded it is as large as what it pads."""
    source = args[0] if args else kwargs["input"]
    amounts = args[1] if len(args) > 1 else kwargs["pad"]
    if step.out.dim() != source.dim():
        return ()
    padded = set(range(source.dim() - len(amounts) // 2, source.dim()))
    return tuple(f for f in step.fields(source) if not set(varying(f)) & padded)


def _stated_shape(step: Step) -> list[Any]:
    """The shape as the forward gave it; empty where it is not known."""
    call = step.recorder.watcher.arguments(step.func._schema.name.split("::")[1])
    if call is None:
        return []
    args, kwargs = call
    rest = list(args[1:]) if "new_" in step.func._schema.name else list(args)
    sizes = rest[0] if rest else kwargs.get("size")
    return list(sizes) if isinstance(sizes, (list, tuple)) else [n for n in rest if isinstance(n, int)]


@register_rule(*(f"aten::{name}" for name in _COUNTS))
def counted(step: Step) -> Fields:
    """Values that count places: what they count must not change."""
    call = step.recorder.watcher.arguments(step.func._schema.name.split("::")[1])
    for size in _integers(call[0], call[1]) if call is not None else ():
        step.recorder.state_size(size, None, int(size), step.place)
    return ()


def _integers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[TracedInt]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, TracedInt):
            yield value


@register_rule("aten::new_empty_strided", "aten::is_same_size")
def created(step: Step) -> Fields:
    """A new tensor takes nothing but type and device from its argument: it does not depend on the inputs."""
    return ()
