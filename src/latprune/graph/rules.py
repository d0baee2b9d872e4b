"""Rules: what each operation does with the channels of its arguments, and how further operations get one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from latprune.errors import InvalidArgumentError
from latprune.graph.provenance import Expression
from latprune.graph.recording import Fields, Info, KernelDraft
from latprune.registry import Registry

if TYPE_CHECKING:
    from latprune.graph.recorder import Recorder

__all__ = ["Rule", "Step", "find_rule", "has_rule", "register_rule"]

Rule = Callable[["Step"], Any]

RULES = Registry[Rule]("operation", group="latprune.operations", named=False, taken="pass replace=True to replace it")
"""Rules by name of the operation, with or without its overload."""


def register_rule(*operations: str, replace: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule that says how an operation carries channels.

    Another package names the module that registers its rules in the group of entry points ``latprune.operations``; it is imported when
    a traced model has an operation without a rule.

    Args:
        operations: Names such as ``"aten::relu"`` or ``"mylib::myop"`` (every overload), or with an overload: ``"aten::add.Tensor"``.
        replace: Allow replacing a rule that exists.

    Returns:
        A decorator for ``rule(step) -> fields``: the fields of the result (a tuple), or a list of such tuples for several results.

    Raises:
        InvalidArgumentError: A rule is registered already and ``replace`` is False.

    Example:
        >>> from latprune.graph import register_rule
        >>> @register_rule("mylib::scaled_relu")
        ... def scaled_relu(step):
        ...     return step.elementwise()
    """

    def add(rule: Rule) -> Rule:
        for name in operations:
            if "::" not in name:
                raise InvalidArgumentError(f"operations (={name!r}) must be of the form 'namespace::name' or 'namespace::name.overload'")
            RULES.register(name, rule, replace=replace)
        return rule

    return add


def find_rule(func: Any) -> Rule | None:
    """The rule of an operator overload, or None."""
    name: str = func._schema.name
    overload = func._schema.overload_name
    names = [f"{name}.{overload}"] if overload else []
    names.append(name)
    if name.endswith("_") and not name.endswith("__"):
        names.append(name[:-1])
    return RULES.find(*names)


def has_rule(name: str) -> bool:
    """Whether a rule is registered for an operation (``"mylib::myop"``), whatever its overload."""
    return any(known == name or known.startswith(f"{name}.") for known in RULES)


class Step:
    """One operation as a rule sees it: its arguments, its results, and the ways to state facts."""

    def __init__(self, recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        self.recorder = recorder
        self.space = recorder.space
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.out = out
        self.kernel: KernelDraft | None = None
        self.expanded: tuple[tuple[int, Expression], ...] = ()
        self.sized: tuple[tuple[int, Expression], ...] = ()
        self.places: dict[int, Fields] = {}
        """Number of a result -> labels among which its values are places: they stay once that result is read."""

    @property
    def place(self) -> str:
        """The operation's name and the module it ran in, for reasons."""
        module = self.recorder.module_path
        return f"{self.func} in '{module}'" if module else f"{self.func}"

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def info(self, tensor: torch.Tensor) -> Info:
        """What is known of ``tensor``."""
        return self.recorder.info(tensor)

    def fields(self, tensor: torch.Tensor) -> Fields:
        """The fields of ``tensor``."""
        return self.recorder.info(tensor).fields

    def elementwise(self) -> Fields:
        """The fields of a result that is computed place by place from all tensor arguments, which broadcast."""
        from latprune.graph.rules_compute import elementwise

        result: Fields = elementwise(self)
        return result

    def freeze(self, fields: Iterable[torch.Tensor], reason: str) -> None:
        """State that the channels of ``fields`` must stay."""
        for f in fields:
            self.space.freeze(f, reason)

    def role(self, labels: torch.Tensor, role: str) -> None:
        """State what a parameter's dimension does; ``labels`` are a field of the parameter itself (else nothing is stated)."""
        self.recorder.state_role(labels, role)
