"""Readings whose networks the clock brings down: what is compared then are the networks that it let through."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latprune.errors import BudgetInfeasibleError
from latprune.graph.types import Selection
from latprune.pruning.clocked_readings import SEARCHES, Promises, best_by_the_clock

PARTS = np.array([0.99, 1.0, 1.01, 1.0])
NOISE = np.array([0.002, -0.002, 0.002, -0.002])


def network(width: int) -> Selection:
    return Selection(kept={"g": np.arange(width)})


def run(
    promised: Mapping[str, tuple[int, float]],
    delivered: Mapping[str, tuple[int, float] | None],
    taken: str,
    caution: Mapping[str, float] | None = None,
) -> tuple[Any, list[str]]:
    """``promised`` and ``delivered``: reading -> width and divergence of its network; None is no network within the limit."""
    searched: list[str] = []
    of_width = dict(value for value in delivered.values() if value is not None)
    readings = SimpleNamespace(importances={name: name for name in promised}, caution=caution or dict.fromkeys(promised, 0.0))
    promises = Promises(
        readings=readings,  # type: ignore[arg-type]
        values={name: value * PARTS + number * NOISE for number, (name, (_, value)) in enumerate(promised.items())},
        networks={name: network(width) for name, (width, _) in promised.items()},
        taken=taken,
    )

    def find(name: Any) -> Any:
        searched.append(name)
        found = delivered[name]
        if found is None:
            raise BudgetInfeasibleError("too low", limit={}, floor={})
        return SimpleNamespace(selection=network(found[0]), name=name)

    def judge(selections: Mapping[str, Selection]) -> dict[str, Any]:
        return {name: of_width[selection.kept["g"].size] * PARTS for name, selection in selections.items()}

    best = best_by_the_clock(promises, find(taken), find=find, judge=judge, say=lambda text: None)
    return best.name, searched


def test_a_network_that_keeps_its_promise_is_the_only_one_searched_for() -> None:
    assert run({"a": (8, 0.10), "b": (7, 0.12)}, {"a": (8, 0.10), "b": (7, 0.12)}, "a") == ("a", ["a"])


def test_a_promise_within_the_standard_error_is_none() -> None:
    """The more cautious of two that the data cannot tell apart was taken, and its network came out as promised."""
    values = {"wary": (8, 0.1005), "bold": (7, 0.1)}
    assert run(values, values, "wary", caution={"wary": 1.0, "bold": 0.0}) == ("wary", ["wary"])


def test_where_the_clock_takes_more_away_the_next_reading_is_searched_for() -> None:
    delivered = {"a": (4, 0.20), "b": (7, 0.12), "c": (6, 0.15)}
    assert run({"a": (8, 0.10), "b": (7, 0.12), "c": (6, 0.15)}, delivered, "a") == ("b", ["a", "b"])


def test_the_first_stays_where_the_others_lose_more() -> None:
    delivered = {"a": (4, 0.13), "b": (3, 0.30), "c": (6, 0.15)}
    assert run({"a": (8, 0.10), "b": (7, 0.12), "c": (6, 0.15)}, delivered, "a") == ("a", ["a", "b"])


def test_readings_of_one_network_are_searched_for_once_and_what_has_none_is_passed_over() -> None:
    delivered = {"a": (4, 0.20), "same": (4, 0.20), "none": None, "b": (7, 0.14)}
    promised = {"a": (8, 0.10), "same": (8, 0.10), "none": (6, 0.11), "b": (7, 0.14)}
    assert run(promised, delivered, "a") == ("b", ["a", "none", "b"])


@pytest.mark.parametrize("readings", [5, 9])
def test_no_more_than_a_few_are_searched_for(readings: int) -> None:
    promised = {str(number): (20 - number, 0.1 + 0.01 * number) for number in range(readings)}
    delivered = {name: (width - 10, 0.5) for name, (width, _) in promised.items()}
    assert len(run(promised, delivered, "0")[1]) == SEARCHES
    none = dict.fromkeys(promised) | {"0": delivered["0"]}
    assert len(run(promised, none, "0")[1]) == SEARCHES, "a search that finds nothing is one too"
