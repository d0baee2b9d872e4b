"""Several readings of one measurement, followed to the networks that the clock lets through where those are others than was promised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latprune.errors import BudgetInfeasibleError
from latprune.graph.types import Selection
from latprune.pruning.least import least_of
from latprune.pruning.proposal import StageProposal

if TYPE_CHECKING:
    from latprune.importance import Importance, Readings
    from latprune.importance.core import Scores

__all__ = ["Promises", "best_by_the_clock"]

SEARCHES = 3
"""Readings that are searched for by the clock at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Promises:
    """The networks that readings lead to by prediction.

    Attributes:
        readings: The readings.
        values: Reading -> ``(parts,)`` divergence of its network.
        networks: Reading -> its network.
        taken: The reading that was taken.
    """

    readings: Readings
    values: Mapping[str, Scores]
    networks: Mapping[str, Selection]
    taken: str


def best_by_the_clock(
    promises: Promises,
    first: StageProposal,
    *,
    find: Callable[[Importance], StageProposal],
    judge: Callable[[Mapping[str, Selection]], dict[str, Scores]],
    say: Callable[[str], None],
) -> StageProposal:
    """``first``, or the network of another reading that diverges less once the clock has had its say.

    Readings are compared by networks that are predicted to meet the limit. A solver finds the network whose latency the tables flatter most
    sooner than others, so the one that is measured within the limit may be a smaller, worse one, while another reading's network is
    measured as predicted. So as long as another reading promises less than the best network so far diverges by, by the rule that the
    reading was taken by, that one is searched for too.

    Args:
        promises: What the readings led to by prediction.
        first: The network that the taken reading led to by the clock.
        find: Searches by the clock with a reading's scores.
        judge: Divergences of networks by name, measured like the promises.
        say: Takes a line of text.
    """
    found = {promises.taken: first}
    values = judge({promises.taken: first.selection})
    met = {_key(promises.networks[promises.taken])}
    caution = promises.readings.caution
    means = {name: float(value.mean()) for name, value in promises.values.items()}
    promised = dict(sorted(means.items(), key=lambda item: item[1]))
    for _ in range(SEARCHES - 1):
        best = least_of(values, caution)
        left = [name for name in promised if name not in found and _key(promises.networks[name]) not in met]
        # By the same rule: a promise that differs by less than the data can tell is none.
        better = (name for name in left if least_of({best: values[best], name: promises.values[name]}, caution) == name)
        name = next(better, None)
        if name is None:
            break
        say(
            f"the network within the limit diverges by {float(values[best].mean()):.4g}; {name} promises {promised[name]:.4g} and is "
            "searched for too"
        )
        met.add(_key(promises.networks[name]))
        try:
            other = find(promises.readings.importances[name])
        except BudgetInfeasibleError as error:
            say(f"{name} leads to no network within the limit: {error}")
            continue
        found[name] = other
        values |= judge({name: other.selection})
    taken = least_of(values, caution)
    if len(found) > 1:
        told = ", ".join(f"{name}: {float(value.mean()):.4g}" for name, value in values.items())
        say(f"divergence of the networks that were measured within the limit: {told}; taken: {taken}")
    return found[taken]


def _key(selection: Selection) -> tuple[object, ...]:
    return tuple(sorted((name, kept.tobytes()) for name, kept in selection.kept.items())), tuple(sorted(selection.removed_blocks))
