"""What a sweep runs: one cell for each budget, method, engine and seed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latprune.argument_rules import check_whole
from latprune.errors import InvalidArgumentError
from latprune.latency import Target
from latprune.pruning.budget import Budget
from latprune.pruning.placing import placed

__all__ = ["Cell", "grid"]


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


def grid(*, budgets: Sequence[str], methods: Sequence[str], engines: Sequence[str] | None, seeds: Sequence[int]) -> list[Cell]:
    """All combinations; seeds outermost, so that a sweep that is cut short has whole curves of the first seeds.

    Args:
        budgets: Budgets; several that are all to be met joined by ``+``.
        methods: Labels of methods.
        engines: Engines; None takes for each budget the one that it names (``60%@torch``), else the default, as prune() does.
        seeds: Seeds.

    Raises:
        InvalidArgumentError: An axis has no value, or one twice; a seed is negative; a budget that is to name its engine is none.

    Example:
        >>> [str(cell) for cell in grid(budgets=["70%", "50%"], methods=["mdp"], engines=["openvino"], seeds=[0])]
        ['mdp, 70%, openvino, seed 0', 'mdp, 50%, openvino, seed 0']
    """
    axes = {"budgets": budgets, "methods": methods, "engines": engines, "seeds": seeds}
    for name, values in axes.items():
        if values is None:
            continue
        if isinstance(values, str) or not values:
            raise InvalidArgumentError(f"{name} (={values!r}) must be a list of at least one value")
        twice = sorted({str(value) for value in values if list(values).count(value) > 1})
        if twice:
            raise InvalidArgumentError(f"{name} has {', '.join(twice)} twice; name each value once")
    for seed in seeds:
        check_whole("seeds", seed, least=0)
    cells = [
        Cell(budget=str(budget), method=method, engine=engine, seed=seed)
        for seed in seeds
        for engine in engines or [Target().engine]
        for method in methods
        for budget in budgets
    ]
    if engines is not None:
        return cells
    own = {cell.budget: placed(Budget.parse_all(cell.budgets), target=None).target.engine for cell in cells}
    return [replace(cell, engine=own[cell.budget]) for cell in cells]
