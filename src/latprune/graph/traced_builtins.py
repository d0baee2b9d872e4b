"""``range`` and ``len`` in the code of the model's classes, for the time of a recorded run: what they do with a size is seen.

Both take integers to plain ones inside of the interpreter, where a traced integer cannot tell. A loop that runs over channels takes another
course when they are fewer.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from latprune.graph.provenance import TracedInt, Uses

__all__ = ["traced_builtins"]


@contextmanager
def traced_builtins(
    modules: Iterable[tuple[str, nn.Module]], used: Uses, sizes: Callable[[torch.Tensor], tuple[int, ...] | None]
) -> Iterator[None]:
    """Put ``range`` and ``len`` that see traced integers into the global names of the files that define the classes of ``modules``.

    Args:
        modules: Modules by path.
        used: Gets what loops run over, with the module whose forward they are in.
        sizes: The shape of a tensor with traced integers, or None.
    """

    def traced_range(*bounds: Any) -> range:
        place = used.place()
        for bound in bounds:
            if isinstance(bound, TracedInt) and place is not None:
                used.loops.setdefault(bound.expr, place)
        return builtins.range(*bounds)

    def traced_len(value: Any) -> int:
        shape = sizes(value) if isinstance(value, torch.Tensor) and value.dim() else None
        return builtins.len(value) if shape is None else shape[0]

    names: dict[str, Any] = {"range": traced_range, "len": traced_len}
    put: list[tuple[dict[str, Any], str]] = []
    try:
        for space in _spaces(modules):
            for name, function in names.items():
                if name not in space:
                    space[name] = function
                    put.append((space, name))
        yield
    finally:
        for space, name in put:
            if space.get(name) is names[name]:
                del space[name]


def _spaces(modules: Iterable[tuple[str, nn.Module]]) -> list[dict[str, Any]]:
    """The global names of the files that define the classes, PyTorch's own left out."""
    kinds = {base for _, module in modules for base in type(module).__mro__}
    files = {kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "builtins", "abc", "typing")}
    return [vars(sys.modules[name]) for name in sorted(files) if name in sys.modules]
