"""Integers that carry where they came from: which module attribute, which tensor shape, and what was computed of them.

During a recorded run every plain ``int`` attribute of a module is replaced by a :class:`TracedInt`, and the sizes that a forward reads of
labelled dimensions are traced too; arithmetic keeps an expression. A function mode sees the arguments of calls such as ``view`` or ``split``
before they reach the dispatcher (where they are plain integers again). So the run itself tells which attributes feed which sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["CallWatcher", "Expression", "TracedInt", "expression", "leaves", "planted"]

Expression = tuple[Any, ...]
"""``("const", value)``, ``("attr", module path, name)``, ``("size", number of a size leaf)`` or ``(operator, left, right)``."""

_VALUE_CALLS = frozenset(
    "mul __mul__ __rmul__ mul_ __imul__ div __truediv__ __rtruediv__ div_ true_divide add __add__ __radd__ add_ __iadd__ sub __sub__ __rsub__ sub_ "
    "pow __pow__ __rpow__ full full_like fill_ softmax".split()
)


def _binary(name: str, plain: Callable[[Any, Any], Any], *, swap: bool = False) -> Any:
    def method(self: TracedInt, other: Any) -> Any:
        left, right = (other, self) if swap else (self, other)
        if isinstance(other, int):
            value = plain(int(left), int(right))
            return TracedInt(value, (name, expression(left), expression(right)), self.used)
        self.used.add(self.expr)
        return NotImplemented if not isinstance(other, float) else plain(*((other, int(self)) if swap else (int(self), other)))

    return method


def _number(name: str) -> Any:
    """Arithmetic whose result is no size: the integer's value is used as a number."""

    def method(self: TracedInt, *others: Any) -> Any:
        self.used.add(self.expr)
        return getattr(int, name)(int(self), *others)

    return method


class TracedInt(int):
    """An ``int`` with the expression that made it; ``used`` collects the expressions whose value entered a computation as a number."""

    expr: Expression
    used: set[Expression]

    def __new__(cls, value: int, expr: Expression, used: set[Expression]) -> TracedInt:
        """An integer of ``value`` that came from ``expr``."""
        made = super().__new__(cls, value)
        made.expr = expr
        made.used = used
        return made

    __add__ = _binary("add", lambda a, b: a + b)
    __radd__ = _binary("add", lambda a, b: a + b, swap=True)
    __sub__ = _binary("sub", lambda a, b: a - b)
    __rsub__ = _binary("sub", lambda a, b: a - b, swap=True)
    __mul__ = _binary("mul", lambda a, b: a * b)
    __rmul__ = _binary("mul", lambda a, b: a * b, swap=True)
    __floordiv__ = _binary("floordiv", lambda a, b: a // b)
    __rfloordiv__ = _binary("floordiv", lambda a, b: a // b, swap=True)
    __mod__ = _binary("mod", lambda a, b: a % b)
    __pow__ = _number("__pow__")
    __rpow__ = _number("__rpow__")
    __float__ = _number("__float__")
    __truediv__ = _number("__truediv__")
    __rtruediv__ = _number("__rtruediv__")

    def __reduce__(self) -> Any:
        """A plain integer when copied or pickled."""
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> int:
        """A plain integer when copied."""
        return int(self)


def expression(value: Any) -> Expression:
    """The expression of an integer; a plain one is a constant of the code."""
    return value.expr if isinstance(value, TracedInt) else ("const", int(value))


def leaves(expr: Expression) -> Iterator[Expression]:
    """The ``attr`` and ``size`` leaves of an expression."""
    if expr[0] in ("attr", "size"):
        yield expr
    elif expr[0] != "const":
        yield from leaves(expr[1])
        yield from leaves(expr[2])


@contextmanager
def planted(model: nn.Module, used: set[Expression]) -> Iterator[None]:
    """Replace the plain ``int`` attributes of all modules by traced ones, and put them back afterwards."""
    before: list[tuple[dict[str, Any], str, int]] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        values = module.__dict__
        for name, value in list(values.items()):
            if type(value) is int and not name.startswith("_"):
                before.append((values, name, value))
                values[name] = TracedInt(value, ("attr", path, name), used)
    try:
        yield
    finally:
        for values, name, value in before:
            if isinstance(values.get(name), TracedInt):
                values[name] = value


class CallWatcher(TorchFunctionMode):
    """Remembers the call that is being dispatched, traced integers included, and traces the sizes that a forward reads.

    Attributes:
        used: Expressions whose value entered a computation as a number.
        trace_sizes: Given a tensor, a traced integer (or a plain one) for each dimension; set by the recorder.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.used: set[Expression] = set()
        self.trace_sizes: Callable[[torch.Tensor], tuple[int, ...] | None] = lambda tensor: None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run a call with its arguments remembered."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            out = func(*args, **kwargs)
            if type(out) is torch.Size:
                sizes = self.trace_sizes(args[0])
                return out if sizes is None else torch.Size(sizes)
            return out
        if name == "size":
            sizes = self.trace_sizes(args[0])
            if sizes is None:
                return func(*args, **kwargs)
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return torch.Size(sizes) if dim is None else sizes[dim]
        if name in _VALUE_CALLS:
            for value in args:
                if isinstance(value, TracedInt):
                    self.used.add(value.expr)
        self.stack.append((name, args, kwargs))
        try:
            return func(*args, **kwargs)
        finally:
            self.stack.pop()

    def arguments(self, *names: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments of the innermost running call if its function has one of ``names``."""
        if self.stack and self.stack[-1][0] in names:
            return self.stack[-1][1], self.stack[-1][2]
        return None

    @property
    def running(self) -> str:
        """Name of the innermost running function."""
        return self.stack[-1][0] if self.stack else ""
