"""Budgets: what the pruned network may cost, as people write it and as a limit in the resource's own unit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from latprune.argument_rules import check_number
from latprune.errors import InvalidArgumentError

__all__ = ["Budget"]

Resource = Literal["latency", "flops", "params"]
Unit = Literal["%", "ms", "/s", "count"]

_EXAMPLES = "'50%', '8.5ms', '2000/s', 'flops=45%', 'flops=1.2G', 'params=1.2M' or 'params=60%'"
_NUMBER = r"(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)"
_LATENCY = re.compile(rf"{_NUMBER}\s*(?P<unit>%|ms|us|s|/s)(?:\s*@\s*(?P<engine>[\w.-]+))?")
_COUNT = re.compile(rf"(?P<resource>flops|params)\s*=\s*{_NUMBER}\s*(?P<unit>%|[kKMGT]?)")
_TO_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_UNITS: dict[Resource, str] = {"latency": "ms", "flops": "multiply-adds", "params": "parameters"}
_SCALE = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """An upper limit on one resource.

    Attributes:
        resource: ``latency`` (measured on its engine), ``flops`` (multiply-adds of one inference of the example inputs, all examples of
            their batch together) or ``params``.
        value: The number.
        unit: ``%`` of the dense network, ``ms``, ``/s`` (inferences a second at the target's batch size) or ``count``.
        text: The budget as it was written.
        engine: For a latency, the engine that it names (``"60%@onnxruntime"``); None is the target's own.

    Example:
        >>> Budget.parse("50%").limit(dense=8.0, batch=1)
        4.0
        >>> Budget.parse("2000/s").limit(dense=8.0, batch=4)
        2.0
    """

    resource: Resource
    value: float
    unit: Unit
    text: str
    engine: str | None = None

    @classmethod
    def parse(cls, text: str | Budget) -> Budget:
        """Read a budget such as ``"50%"``, ``"8.5ms"``, ``"2000/s"``, ``"flops=45%"`` or ``"params=1.2M"``.

        Raises:
            InvalidArgumentError: The text is not a budget, is not positive, or is a percentage above 100.
        """
        if isinstance(text, Budget):
            return text
        if not isinstance(text, str):
            raise InvalidArgumentError(f"budget (={text!r}) must be a text such as {_EXAMPLES}")
        stripped = text.strip()
        if match := _LATENCY.fullmatch(stripped):
            number, unit, engine = float(match["number"]), match["unit"], match["engine"]
            if unit in _TO_MS:
                budget = cls(resource="latency", value=number * _TO_MS[unit], unit="ms", text=stripped, engine=engine)
            else:
                budget = cls(resource="latency", value=number, unit="%" if unit == "%" else "/s", text=stripped, engine=engine)
        elif match := _COUNT.fullmatch(stripped):
            number, unit = float(match["number"]), match["unit"]
            resource: Resource = "flops" if match["resource"] == "flops" else "params"
            if unit == "%":
                budget = cls(resource=resource, value=number, unit="%", text=stripped)
            else:
                budget = cls(resource=resource, value=number * _SCALE[unit], unit="count", text=stripped)
        else:
            raise InvalidArgumentError(f"budget (={text!r}) is not a budget; write {_EXAMPLES}")
        if not math.isfinite(budget.value) or budget.value <= 0:
            raise InvalidArgumentError(f"budget (={text!r}) must be positive; write {_EXAMPLES}")
        if budget.unit == "%" and budget.value > 100:
            raise InvalidArgumentError(
                f"budget (={text!r}) is above the dense network; a percentage must be at most 100%, and 100% leaves the network as it is"
            )
        return budget

    @classmethod
    def of(cls, resource: Resource, given: str | float | Budget, *, name: str) -> Budget:
        """Read a budget on one ``resource``, whose share needs no name of it: ``"63%"`` and ``0.63`` are shares of the dense value.

        Args:
            resource: What is limited.
            given: A share, or a value in the resource's own words (``"8.5ms"``, ``"flops=1.2G"``).
            name: The argument, for messages.

        Raises:
            InvalidArgumentError: It is no budget, no share, or on another resource or engine.

        Example:
            >>> Budget.of("flops", 0.5, name="pick").text
            'flops=50%'
        """
        text: Any = given
        if not isinstance(text, bool) and isinstance(text, Real):
            rule = "be a share of the dense network's value, above 0 and at most 1"
            check_number(name, text, rule, 0.0, math.nextafter(1.0, 2.0), above=True)
            text = f"{100.0 * float(text):g}%"
        if not isinstance(text, (str, Budget)):
            raise InvalidArgumentError(f"{name} (={given!r}) must be a share such as '63%' or 0.63, or a text such as {_EXAMPLES}")
        if isinstance(text, str) and "=" not in text and text.strip().endswith("%") and resource != "latency":
            text = f"{resource}={text.strip()}"
        budget = cls.parse(text)
        if budget.resource != resource or budget.engine is not None:
            raise InvalidArgumentError(f"{name} (={given!r}) is on {budget.name}, and must be on {resource}; write for instance '63%'")
        return budget

    @classmethod
    def parse_all(cls, budget: str | float | Budget | Sequence[str | Budget]) -> tuple[Budget, ...]:
        """Read one budget or several; those on latency first.

        Args:
            budget: A text, a :class:`Budget`, a number between 0 and 1 (a share of the dense latency), or a list of texts and budgets.

        Raises:
            InvalidArgumentError: A text is no budget, a number is no share, or a resource is limited twice.

        Example:
            >>> [entry.text for entry in Budget.parse_all(["params=467K", "50%"])]
            ['50%', 'params=467K']
        """
        if isinstance(budget, (int, float)) and not isinstance(budget, bool):
            if not 0.0 < budget <= 1.0:
                raise InvalidArgumentError(
                    f"budget (={budget!r}) is a number, so it must be a share of the dense latency above 0 and at most 1; write {_EXAMPLES}"
                )
            return (cls.parse(f"{100.0 * budget:g}%"),)
        if isinstance(budget, (str, Budget)):
            return (cls.parse(budget),)
        if not isinstance(budget, Sequence) or not budget:
            raise InvalidArgumentError(f"budget (={budget!r}) must be a budget or a list of budgets; write {_EXAMPLES}")
        found = [cls.parse(entry) for entry in budget]
        names = [entry.name for entry in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidArgumentError(
                f"budget (={[entry.text for entry in found]!r}) limits {twice[0]} twice; give each resource one limit"
            )
        # What the target's own clock decides comes first: candidates are searched for under it.
        return tuple(sorted(found, key=lambda entry: (not entry.on_latency, entry.engine is not None)))

    def limit(self, *, dense: float, batch: int = 1) -> float:
        """The limit in the resource's unit: milliseconds per inference of one batch, multiply-adds, or parameters.

        Args:
            dense: The dense network's value in the same unit.
            batch: Batch size, which turns a throughput into a latency.

        Raises:
            InvalidArgumentError: The limit lies above the dense network's own value, so there is nothing to prune.
        """
        if self.unit == "%":
            return dense * self.value / 100.0
        limit = 1e3 * batch / self.value if self.unit == "/s" else self.value
        if limit > dense:
            unit = self.unit_of_limit
            raise InvalidArgumentError(
                f"budget (={self.text!r}, that is {limit:.6g} {unit}) is above the dense network's {dense:.6g} {unit}; "
                "the network already meets it: choose a smaller budget"
            )
        return limit

    @property
    def on_latency(self) -> bool:
        """Whether it limits a latency; what else can be limited is counted."""
        return self.resource == "latency"

    @property
    def unit_of_limit(self) -> str:
        """The unit of its limit, in words: ``ms``, ``multiply-adds`` or ``parameters``."""
        return _UNITS[self.resource]

    @property
    def name(self) -> str:
        """Name of what is limited: the resource, with the engine where that is another one."""
        return f"{self.resource}@{self.engine}" if self.engine is not None else self.resource

    def to_dict(self) -> dict[str, Any]:
        """The budget as a JSON object."""
        own = {"text": self.text, "resource": self.resource, "value": self.value, "unit": self.unit}
        return own if self.engine is None else {**own, "engine": self.engine}
