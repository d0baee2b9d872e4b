"""Whether the last of several stages can meet its limit at all: asked before the first one, so that nothing is trained in vain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from latprune.errors import BudgetInfeasibleError
from latprune.export.verdict import verdict
from latprune.graph.types import Selection
from latprune.methods import Limit, Method, Offer, selection_of
from latprune.pruning.advice import ALLOW_MORE
from latprune.pruning.lowest import lowest_network
from latprune.rounding import ROUNDED
from latprune.solve import SolverError

if TYPE_CHECKING:
    from latprune.importance import Importance
    from latprune.pruning.pruner import Pruner

__all__ = ["below_floor", "told_of_stage", "require_reachable"]


def below_floor(missed: Sequence[Limit], least: Mapping[str, float], method: Method, offer: Offer) -> BudgetInfeasibleError:
    """The error of limits that lie below what the method's smallest network comes to.

    Args:
        missed: The limits.
        least: Resource name -> the lowest value.
        method: The method.
        offer: What it chooses from.
    """
    held = f" with {offer.because}" if offer.because else ""
    words = (
        f"{limit.resource.name} (={limit.value:g} {limit.resource.unit}) must be at least {least[limit.resource.name]:g} "
        f"{limit.resource.unit}, what the smallest network of method {method.name!r}{held} has"
        for limit in missed
    )
    return BudgetInfeasibleError(
        f"no choice of widths and blocks meets the limits: {'; '.join(words)}",
        limit={limit.resource.name: limit.value for limit in missed},
        floor=dict(least),
    )


def require_reachable(pruner: Pruner, importance: Importance | None) -> None:
    """Refuse a latency that no network of the method's choice has, before the first of several stages; what is counted was judged when the
    pruner was made.

    The stages' own problems may cost layers at the widths of the moment (HALP), so the floor is that of the tables themselves. Where the
    clock decides, the network at the floor is measured before anything is refused.

    Args:
        pruner: A pruner that has changed nothing yet.
        importance: Scores, by which the units of that network are chosen.

    Raises:
        BudgetInfeasibleError: The limit at the end cannot be met; carries the lowest value.
    """
    search, limits, method = pruner._search, pruner.limits, pruner.method
    if not method.needs_tables or not any(budget.on_latency for budget in limits.budgets):
        return
    context = search.context(importance, Selection(kept={}), None)
    offer = method.offer(context)
    speed = search.speed(context)
    missed, least = [], {}
    for number, limit in enumerate((Limit(resource=context.resource, value=limits.limit / speed / search.room), *context.limits)):
        if not limit.resource.on_latency or limit.resource.value(offer.smallest, offer.removable) <= limit.value * ROUNDED:
            continue
        try:
            with pruner.clock.timed("solve"):
                found = lowest_network(context, offer, limit, time_limit=search.time_limit)
        except SolverError:
            pruner._progress("whether the last stage can meet its limit is not known: the smallest network was not found within time_limit")
            continue
        if found is None or found.predicted <= limit.value * ROUNDED:
            continue
        value = found.predicted
        if number == 0:
            limit, value = replace(limit, value=limits.limit), value * speed * search.room
            if limits.measured:
                ranking = method.rank(context, found.removed_blocks)
                network = search.network(selection_of(context.graph, ranking, found, Selection(kept={})))
                trial = search.trial(network, window=(limit.value * (1.0 - search.slack), limit.value))
                pruner._progress(f"the smallest network: measured {trial.value:.3f} ms, limit {limit.value:.3f} ms")
                if verdict(trial.value, trial.uncertainty, limit.value) != "over":
                    continue
                value = trial.value
        missed.append(limit)
        least[limit.resource.name] = value
    if missed:
        raise below_floor(missed, least, method, offer)


@contextmanager
def told_of_stage(pruner: Pruner, stage: int) -> Iterator[None]:
    """A limit of one of several stages that cannot be met is told with the budget that it leads to, and with what became of the model."""
    try:
        yield
    except BudgetInfeasibleError as error:
        if pruner.stages == 1:
            raise
        asked = " and ".join(repr(budget.text) for budget in pruner.limits.budgets)
        advice = error.advice or ALLOW_MORE
        if pruner.edits:
            resource = pruner.limits.resource
            value = resource.value(pruner.widths, pruner.cut_to.removed_blocks)
            share = value / resource.value(pruner.graph.dense_widths())
            advice += (
                f". The model is partly cut: the stages before brought it to {value:.6g} {resource.unit} ({share:.1%} of the dense "
                "network), and it can be used and saved as it is; for another budget build the dense model anew"
            )
        said = str(error).removesuffix(f". {error.advice}")
        raise BudgetInfeasibleError(
            f"stage {stage} of {pruner.stages} on the way to {asked}: {said}", limit=error.limit, floor=error.floor, advice=advice
        ) from error
