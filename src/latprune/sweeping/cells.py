"""What a sweep runs: one cell for each budget, method, engine and seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from latprune.argument_rules import check_instance, check_whole
from latprune.errors import InvalidArgumentError
from latprune.latency import Target
from latprune.pruning.budget import Budget
from latprune.pruning.placing import placed

__all__ = ["Cell", "grid", "listed"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One pruning run of a sweep.

    Attributes:
        budget: What to prune to; several that are all to be met are joined by ``+`` (``params=467K+flops=13.36M``).
        method: The method's label: its name, or its name and options.
        engine: Engine that is measured.
        seed: Seed of everything random.
    """

    budget: str
    method: str
    engine: str
    seed: int = 0

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets, one by one."""
        return tuple(part.strip() for part in self.budget.split("+"))

    @property
    def folder(self) -> str:
        """Name of the cell's folder: readable, and different for different cells on any file system."""
        text = f"{self.method}-{self.budget}-{self.engine}-{self.seed}"
        readable = re.sub(r"[^a-z0-9.=+-]+", "_", text.lower().replace("%", "pc")).strip("_")
        return f"{readable[:80]}-{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"

    def __str__(self) -> str:
        """``mdp, 50%, openvino, seed 0``."""
        return f"{self.method}, {self.budget}, {self.engine}, seed {self.seed}"


def listed(name: str, values: Iterable[T]) -> list[T]:
    """The values of an axis, read once: an iterator has them no second time.

    Args:
        name: The axis.
        values: What it was given.

    Raises:
        InvalidArgumentError: It has no value, or is one text or one number.
    """
    found = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not found:
        raise InvalidArgumentError(f"{name} (={values!r}) must be a list of at least one value")
    return found


def _budget_text(budget: Any) -> str:
    """A budget as :func:`latprune.prune` takes it, as the text of a cell: a share is a percentage, several are joined by ``+``.

    Raises:
        InvalidArgumentError: It is none.
    """
    if not isinstance(budget, str):
        return "+".join(entry.text for entry in Budget.parse_all(budget))
    Budget.parse_all([part.strip() for part in budget.split("+")])
    return budget


def grid(
    *,
    budgets: Iterable[str | float | Budget | Sequence[str | Budget]],
    methods: Iterable[str],
    engines: Iterable[str] | None,
    seeds: Iterable[int],
) -> list[Cell]:
    """All combinations; seeds outermost, so that a sweep that is cut short has whole curves of the first seeds.

    Args:
        budgets: Budgets as :func:`latprune.prune` takes them; several that are all to be met may be joined by ``+``.
        methods: Labels of methods.
        engines: Engines; None takes for each budget the one that it names (``60%@torch``), else the default, as prune() does.
        seeds: Seeds.

    Raises:
        InvalidArgumentError: An axis has no value, or one twice; a seed is no whole number or negative; a text is no budget.

    Example:
        >>> [str(cell) for cell in grid(budgets=["70%", "50%"], methods=["mdp"], engines=["openvino"], seeds=[0])]
        ['mdp, 70%, openvino, seed 0', 'mdp, 50%, openvino, seed 0']
    """
    texts = [_budget_text(budget) for budget in listed("budgets", budgets)]
    labels, places = listed("methods", methods), None if engines is None else listed("engines", engines)
    for name, values in (("methods", labels), ("engines", places or [])):
        for value in values:
            check_instance(f"an entry of {name}", value, str, "a name")
    numbers = listed("seeds", seeds)
    for seed in numbers:
        check_whole("seeds", seed, least=0)
    numbers = [int(seed) for seed in numbers]  # NumPy's whole numbers too
    axes: dict[str, list[Any]] = {"budgets": texts, "methods": labels, "engines": places or [], "seeds": numbers}
    for name, values in axes.items():
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise InvalidArgumentError(f"{name} has {', '.join(twice)} twice; name each value once")
    cells = [
        Cell(budget=budget, method=method, engine=engine, seed=seed)
        for seed in numbers
        for engine in places or [Target().engine]
        for method in labels
        for budget in texts
    ]
    if places is not None:
        return cells
    own = {cell.budget: placed(Budget.parse_all(cell.budgets), target=None).target.engine for cell in cells}
    return [replace(cell, engine=own[cell.budget]) for cell in cells]
