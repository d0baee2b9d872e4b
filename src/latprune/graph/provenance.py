"""Integers that carry where they came from: which module attribute, which tensor shape, and what was computed of them.

During a recorded run every plain ``int`` attribute of a module is replaced by a :class:`TracedInt`; arithmetic keeps an expression. A function
mode sees the arguments of calls such as ``view`` or ``pad`` before they reach the dispatcher (where they are plain integers again).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["CallWatcher", "Expression", "TracedInt", "evaluate", "planted"]

Expression = tuple[Any, ...]
"""``("const", value)``, ``("attr", module path, name)``, ``("size", node, output, dim)`` or ``(operator, left, right)``."""


def _binary(name: str, plain: Any, swap: bool = False) -> Any:
    def method(self: TracedInt, other: Any) -> Any:
        left, right = (other, self) if swap else (self, other)
        value = plain(int(left), int(right)) if isinstance(other, int) else NotImplemented
        if value is NotImplemented:
            other_plain = int(self)
            return plain(other, other_plain) if swap else plain(other_plain, other)
        return TracedInt(value, (name, expression(left), expression(right)))

    return method


class TracedInt(int):
    """An ``int`` with the expression that made it."""

    expr: Expression

    def __new__(cls, value: int, expr: Expression) -> TracedInt:
        made = super().__new__(cls, value)
        made.expr = expr
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

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)


def expression(value: Any) -> Expression:
    """The expression of an integer; a plain one is a constant of the code."""
    return value.expr if isinstance(value, TracedInt) else ("const", int(value))


_OPERATORS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
}


def evaluate(expr: Expression, leaf: Any) -> Any:
    """Value of an expression; ``leaf(expression)`` gives the value of ``attr`` and ``size`` leaves."""
    if expr[0] == "const":
        return expr[1]
    if expr[0] in _OPERATORS:
        return _OPERATORS[expr[0]](evaluate(expr[1], leaf), evaluate(expr[2], leaf))
    return leaf(expr)


@contextmanager
def planted(model: nn.Module) -> Iterator[None]:
    """Replace the plain ``int`` attributes of all modules by traced ones, and put them back afterwards."""
    before: list[tuple[dict[str, Any], str, int]] = []
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.jit"):
            continue
        values = module.__dict__
        for name, value in list(values.items()):
            if type(value) is int and not name.startswith("_"):
                before.append((values, name, value))
                values[name] = TracedInt(value, ("attr", path, name))
    try:
        yield
    finally:
        for values, name, value in before:
            if isinstance(values.get(name), TracedInt):
                values[name] = value


class CallWatcher(TorchFunctionMode):
    """Remembers the arguments of the call that is being dispatched, traced integers included."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        self.stack.append((func, args, kwargs))
        try:
            return func(*args, **kwargs)
        finally:
            self.stack.pop()

    def arguments(self, *names: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments of the innermost running call whose function has one of ``names``."""
        for func, args, kwargs in reversed(self.stack):
            if getattr(func, "__name__", "") in names:
                return args, kwargs
        return None
