"""Which target a run is on, and which of its budgets is on that target's latency: a budget may name the engine that it is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from latprune.errors import InvalidArgumentError
from latprune.latency import Target
from latprune.pruning.budget import Budget

__all__ = ["Placed", "placed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The target with the budgets as they stand to it.

    Attributes:
        target: Engine and conditions.
        budgets: The first is the one that candidates are searched for: on the target's own latency, or counted where none is. Those that
            still name an engine are on another one than the target's.
        said: A line for people where a budget decided the target; empty otherwise.
    """

    target: Target
    budgets: tuple[Budget, ...]
    said: str = ""


def placed(budgets: Sequence[Budget], *, target: Target | None) -> Placed:
    """Bring the target and the budgets together.

    Args:
        budgets: As :meth:`Budget.parse_all` gives them.
        target: What was asked for; None takes the engine that a budget names where none is on the target's own latency, else the default.

    Raises:
        InvalidArgumentError: The latency on the target is limited twice; or the only budgets are on other engines than the target that was
            asked for, so that nothing is left to search for candidates by.

    Example:
        >>> found = placed(Budget.parse_all(["60%@torch", "flops=90%"]), target=None)
        >>> found.target.engine, [entry.name for entry in found.budgets]
        ('torch', ['latency', 'flops'])
    """
    named = [entry for entry in budgets if entry.engine is not None]
    said = ""
    if target is None:
        target = Target()
        if named and not any(entry.name == "latency" for entry in budgets):
            target = Target(engine=str(named[0].engine))
            said = f"target: {target}, which budget {named[0].text!r} names; none was given"
    here = [replace(entry, engine=None) if entry.engine == target.engine else entry for entry in budgets]
    own = [entry for entry in here if entry.name == "latency"]
    if len(own) > 1:
        raise InvalidArgumentError(
            f"budget limits the latency on {target.engine}, the target's engine, twice "
            f"({' and '.join(repr(entry.text) for entry in own)}); give it one limit"
        )
    first = next((entry for entry in (*own, *here) if entry.engine is None), None)
    if first is None:
        raise InvalidArgumentError(
            f"budget (={named[0].text!r}) is on {named[0].engine}, and the target on {target.engine}: give target={named[0].engine!r} "
            f"(--engine {named[0].engine}), or a further budget on the target's own latency, on flops or on params"
        )
    return Placed(target=target, budgets=(first, *(entry for entry in here if entry is not first)), said=said)
