"""Integers that carry where they came from: which module attribute, which tensor shape, and what was computed of them.

During a recorded run every plain ``int`` attribute of a module is replaced by a :class:`TracedInt`, and the sizes that a forward reads of
labelled dimensions are traced too; arithmetic keeps an expression. A function mode sees the arguments of calls such as ``view`` or
``split`` before they reach the dispatcher (where they are plain integers again). So the run itself tells which attributes feed which sizes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from latprune.graph.attribute_paths import configurations, integer_entries
from latprune.graph.uncomputed import READING_METHODS

__all__ = [
    "CallWatcher",
    "Comparison",
    "Expression",
    "TracedFloat",
    "TracedInt",
    "Uses",
    "expression",
    "leaves",
    "planted",
]

Expression = tuple[Any, ...]
"""``("const", value)``, ``("attr", module path, name)``, ``("size", number of a size leaf)`` or ``(operator, left, right)``.

An entry of a list or tuple attribute has the name ``name[index]``, one of a configuration ``config.name``; a configuration that several
modules share has the path of the first of them.
"""

_VALUE_CALLS = frozenset(
    "mul __mul__ __rmul__ mul_ __imul__ div __truediv__ __rtruediv__ div_ true_divide add __add__ __radd__ add_ __iadd__ sub __sub__ "
    "__rsub__ sub_ "
    "pow __pow__ __rpow__ full full_like fill_ softmax".split()
)

_LIKE_ANOTHER = {"view_as": "view", "reshape_as": "reshape", "expand_as": "expand"}
"""Methods that take their sizes from another tensor -> those that are told them."""
_NORM_CALLS = frozenset({"layer_norm", "rms_norm"})
_ATTENTION_CALLS = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})


Comparison = tuple[str, Expression, Expression, str]
"""Operator (``eq``, ``ne``, ``lt``, ``le``, ``gt``, ``ge``), left, right, and the module whose forward compared."""


class Uses(set[Expression]):
    """Expressions whose value entered a computation as a number.

    Attributes:
        compared: Comparisons that the forward made, and their outcomes: they decide its course, so they must come out alike.
        loops: What loops ran over, and the module whose forward they are in.
        place: Path of the running module; None while the recorder or a function of PyTorch is at work, whose comparisons do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.compared: dict[Comparison, bool] = {}
        self.loops: dict[Expression, str] = {}
        self.place: Callable[[], str | None] = lambda: None


def _binary(name: str, plain: Callable[[Any, Any], Any], *, swap: bool = False) -> Any:
    def method(self: TracedInt, other: Any) -> Any:
        left, right = (other, self) if swap else (self, other)
        if isinstance(other, TracedFloat):
            self.used.update((self.expr, other.base))
            return NotImplemented
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


def _comparison(name: str, plain: Callable[[int, int], bool]) -> Any:
    def method(self: TracedInt, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        outcome = plain(int(self), int(other))
        place = self.used.place()
        if place is not None:
            self.used.compared[name, self.expr, expression(other), place] = outcome
        return outcome

    return method


class TracedInt(int):
    """An ``int`` with the expression that made it; ``used`` collects the expressions whose value entered a computation as a number."""

    expr: Expression
    used: Uses

    def __new__(cls, value: int, expr: Expression, used: Uses) -> TracedInt:
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

    __eq__ = _comparison("eq", operator.eq)
    __ne__ = _comparison("ne", operator.ne)
    __lt__ = _comparison("lt", operator.lt)
    __le__ = _comparison("le", operator.le)
    __gt__ = _comparison("gt", operator.gt)
    __ge__ = _comparison("ge", operator.ge)
    __hash__ = int.__hash__

    def __pow__(self, exponent: Any, modulus: Any = None) -> Any:
        """A power keeps its base, so that a scale such as ``head_dim ** -0.5`` can be kept as it was."""
        if isinstance(exponent, (int, float)) and modulus is None:
            return TracedFloat(float(int(self) ** exponent), self.expr, float(exponent), self.used)
        self.used.add(self.expr)
        return NotImplemented

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


class TracedFloat(float):
    """A multiple of ``base ** exponent``, where ``base`` is the expression of a traced integer."""

    base: Expression
    exponent: float
    used: Uses

    def __new__(cls, value: float, base: Expression, exponent: float, used: Uses) -> TracedFloat:
        """A number of ``value`` that is proportional to ``base ** exponent``."""
        made = super().__new__(cls, value)
        made.base, made.exponent, made.used = base, exponent, used
        return made

    def __mul__(self, other: Any) -> Any:
        if type(other) in (int, float):
            return TracedFloat(float(self) * other, self.base, self.exponent, self.used)
        return self._number(other) if isinstance(other, (int, float)) else NotImplemented

    def _number(self, other: Any) -> Any:
        self.used.add(self.base)
        return float(self) * float(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if type(other) in (int, float):
            return TracedFloat(float(self) / other, self.base, self.exponent, self.used)
        return NotImplemented

    def __rtruediv__(self, other: Any) -> Any:
        if type(other) in (int, float):
            return TracedFloat(other / float(self), self.base, -self.exponent, self.used)
        return NotImplemented

    def __pow__(self, exponent: Any, modulus: Any = None) -> Any:
        if type(exponent) in (int, float) and modulus is None:
            return TracedFloat(float(self) ** exponent, self.base, self.exponent * exponent, self.used)
        return NotImplemented

    def __add__(self, other: Any) -> Any:
        self.used.add(self.base)
        return float(self) + other if isinstance(other, (int, float)) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        self.used.add(self.base)
        return float(self) - other if isinstance(other, (int, float)) else NotImplemented

    def __float__(self) -> float:
        self.used.add(self.base)
        return float.__mul__(self, 1.0)

    def __reduce__(self) -> Any:
        """A plain number when copied or pickled."""
        return float, (float.__mul__(self, 1.0),)


def _traced_sqrt(plain: Callable[[Any], float]) -> Callable[[Any], float]:
    def sqrt(value: Any) -> float:
        if isinstance(value, TracedInt):
            return TracedFloat(plain(int(value)), value.expr, 0.5, value.used)
        return plain(value)

    return sqrt


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
def planted(modules: Iterable[tuple[str, nn.Module]], used: Uses) -> Iterator[dict[tuple[str, str], int]]:
    """Replace the plain ``int`` attributes of ``modules`` and of their configurations (those in lists and tuples too) by traced ones, and
    put them back afterwards.

    Yields:
        The value of each attribute, by module path and name.
    """
    before: list[tuple[dict[str, Any], str, Any, Any]] = []
    plain_values: dict[tuple[str, str], int] = {}
    shared: set[int] = set()

    def plant(path: str, prefix: str, values: dict[str, Any], *, put: bool) -> None:
        for entry, value in list(integer_entries(values)):
            name = f"{prefix}{entry}"
            traced: Any
            if isinstance(value, int):
                plain_values[path, name] = value
                traced = TracedInt(value, ("attr", path, name), used)
            else:
                plain_values.update({(path, f"{name}[{k}]"): v for k, v in enumerate(value)})
                traced = type(value)(TracedInt(v, ("attr", path, f"{name}[{k}]"), used) for k, v in enumerate(value))
            if put:
                before.append((values, entry, value, traced))
                values[entry] = traced

    for path, module in modules:
        scripted = isinstance(module, torch.jit.ScriptModule)
        plant(path, "", module.__dict__, put=not scripted)
        for name, holder, values in configurations(module):
            if id(holder) not in shared and not scripted:
                shared.add(id(holder))
                plant(path, f"{name}.", values, put=True)
    plain_sqrt = math.sqrt
    math.sqrt = _traced_sqrt(plain_sqrt)
    try:
        yield plain_values
    finally:
        math.sqrt = plain_sqrt
        for values, name, value, traced in before:
            if values.get(name) is traced:
                values[name] = value


class CallWatcher(TorchFunctionMode):
    """Remembers the call that is being dispatched, traced integers included, and traces the sizes that a forward reads.

    Attributes:
        used: Expressions whose value entered a computation as a number.
        trace_sizes: Given a tensor, a traced integer (or a plain one) for each dimension; set by the recorder.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.used = Uses()
        self.on_scale: Callable[[list[torch.Tensor], Expression, float], None] = lambda tensors, base, exponent: None
        self.on_attention: Callable[[str, tuple[Any, ...], dict[str, Any]], None] = lambda name, args, kwargs: None
        self.on_normalise: Callable[[str, tuple[Any, ...], dict[str, Any]], None] = lambda name, args, kwargs: None
        self.trace_sizes: Callable[[torch.Tensor], tuple[int, ...] | None] = lambda tensor: None
        self.on_values: Callable[[torch.Tensor], None] = lambda tensor: None
        self.is_aside = False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What the recorder reads of tensors is no part of the forward.

        PyTorch keeps it from this mode inside of the model's own calls; the operations of a TorchScript function have none around them.
        """
        before, self.is_aside = self.is_aside, True
        try:
            yield
        finally:
            self.is_aside = before

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run a call with its arguments remembered."""
        kwargs = kwargs or {}
        if self.is_aside:
            return func(*args, **kwargs)
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
        if name in ("numel", "nelement"):
            sizes = self.trace_sizes(args[0])
            return func(*args, **kwargs) if sizes is None else math.prod(sizes)
        if name == "stride":
            strides = self._strides(args[0])
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return func(*args, **kwargs) if strides is None else strides if dim is None else strides[dim]
        if name in _LIKE_ANOTHER:
            other = args[1] if len(args) > 1 else kwargs["other"]
            # A parameter is cut itself, so what takes its shape has the right one; stating its sizes would tie those of a grouped weight.
            sizes = None if isinstance(other, nn.Parameter) else self.trace_sizes(other)
            if sizes is not None:
                return self.__torch_function__(getattr(torch.Tensor, _LIKE_ANOTHER[name]), types, (args[0], torch.Size(sizes)))
        if name == "as_strided":
            for value in (*args[1:], *kwargs.values()):
                for number in value if isinstance(value, Iterable) else (value,):
                    if isinstance(number, TracedInt):
                        self.used.add(number.expr)
        if name in READING_METHODS:
            self.on_values(args[0])
        if name in _VALUE_CALLS:
            for value in args:
                if isinstance(value, TracedInt):
                    self.used.add(value.expr)
                elif isinstance(value, TracedFloat):
                    self._scaled(name, args, value)
        elif name in _NORM_CALLS:
            self.on_normalise(name, args, kwargs)
        elif name in _ATTENTION_CALLS:
            self.on_attention(name, args, kwargs)
        else:
            for value in (*args, *kwargs.values()):
                if isinstance(value, TracedFloat):
                    self.used.add(value.base)
        self.stack.append((name, args, kwargs))
        try:
            return func(*args, **kwargs)
        finally:
            self.stack.pop()

    def _strides(self, tensor: torch.Tensor) -> tuple[int, ...] | None:
        """Steps between places as products of sizes; None where no size is traced, or the places do not lie in order."""
        sizes = self.trace_sizes(tensor)
        if sizes is None or not tensor.is_contiguous():
            return None
        return tuple(math.prod(sizes[dim + 1 :]) for dim in range(len(sizes)))

    def _scaled(self, name: str, args: tuple[Any, ...], value: TracedFloat) -> None:
        """A product or quotient of a tensor and a traced scale."""
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        sign = 1 if "mul" in name else -1 if "div" in name and args[0] is not value else 0
        if len(tensors) == 1 and sign:
            self.on_scale(tensors[:1], value.base, sign * value.exponent)
        else:
            self.used.add(value.base)

    def arguments(self, *names: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments of the innermost running call if its function has one of ``names``."""
        if self.stack and self.stack[-1][0] in names:
            return self.stack[-1][1], self.stack[-1][2]
        return None

    @property
    def running(self) -> str:
        """Name of the innermost running function."""
        return self.stack[-1][0] if self.stack else ""
