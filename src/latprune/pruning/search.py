"""Propose, cut, measure, correct: the search for a network that the engine itself runs within the budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from latprune.errors import BudgetInfeasibleError
from latprune.export.verdict import Verdict, verdict
from latprune.methods import Proposal, Proposer
from latprune.pruning.advice import ALLOW_MORE
from latprune.pruning.correction import LimitSearch
from latprune.pruning.trials import Trial

__all__ = ["Candidate", "CandidateSearch"]

MAX_MEASURED = 12
MAX_SOLVED = 40
MAX_NEARBY = 8
MAX_LOWERED = 8
LEAST = 1e-4
"""Share of the network before, below which no limit is tried: nothing is left of it there."""
PATIENCE = 60.0
"""Seconds of a search after which the best network so far may lie further under the budget, by the slack once more for each of them: on a
busy machine every candidate takes half a minute, and what it is measured at scatters by more than the slack."""
_FIRST = 2
"""Candidates that any search measures before it is content with less: a large network takes that long on a quiet machine too."""


@dataclass(slots=True)
class Candidate:
    """A proposal, cut out of a copy of the model and measured.

    Attributes:
        proposal: The network asked for.
        network: The copy.
        trial: The measurement that it was chosen by.
        fresh: A later one, with both networks converted and compiled anew; used only to reject the candidate.
        note: What the user should know of the choice.
    """

    proposal: Proposal
    network: nn.Module
    trial: Trial
    fresh: Trial | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Try:
    """A proposal and its last measurement, ``fresh`` where both networks were converted and compiled anew; without a copy of the model."""

    proposal: Proposal
    trial: Trial
    fresh: bool = False


class CandidateSearch:
    """Looks for a candidate whose fresh measurement lies just under the budget.

    Args:
        proposer: Finds the best network under a predicted limit.
        limits: Chooses the limits; its ``budget`` is what must be met.
        cut: Cuts a proposal out of a copy of the model.
        measure: Measures a network, until it is clear where it lies to ``window``; with ``fresh=True`` both it and the dense network are
            converted and compiled anew.
        asked: The budget in the user's words, for errors.
        say: Takes one line of text per candidate.
        least: Gives the network that is fastest by the tables themselves, if there is one, for costs that are a linearisation: their own
            smallest network need not be it.
        now: Seconds by a clock that never goes back.
    """

    def __init__(
        self,
        proposer: Proposer,
        limits: LimitSearch,
        *,
        cut: Callable[[Proposal], nn.Module],
        measure: Callable[..., Trial],
        asked: str,
        say: Callable[[str], None],
        least: Callable[[], Proposal | None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.proposer = proposer
        self.limits = limits
        self._cut = cut
        self._measure = measure
        self._asked = asked
        self._say = say
        self._least = least
        self._now = now
        self._began = now()
        self._tries: dict[Any, _Try] = {}
        self._largest: Proposal | None = None

    def first(self) -> Candidate:
        """The first candidate, whatever it measures at; for a stage after which others follow.

        Raises:
            BudgetInfeasibleError: No network that the constraints allow is under the budget.
        """
        limit = self.limits.next_limit()
        try:
            proposal = self.proposer.propose(limit)
        except BudgetInfeasibleError as error:
            return self._smallest(error)
        return self._tried(limit, proposal)

    def run(self) -> Candidate:
        """A candidate within the slack under the budget, confirmed by a fresh measurement; else the closest one under it, with a note.

        After each :data:`PATIENCE` the closest one may lie a slack further under it.

        Raises:
            BudgetInfeasibleError: No network that the constraints allow was measured under the budget; carries the lowest latency.
        """
        for _ in range(MAX_SOLVED):
            limit = self.limits.next_limit()
            try:
                proposal = self.proposer.propose(limit)
            except BudgetInfeasibleError as error:
                if self._sided(under=True):
                    break
                # Costs that are a linearisation, or tables that are off, know no network under a limit that one is measured under.
                smallest = self._smallest(error)
                if not self._lies_below(smallest.trial):
                    if self._confirmed(smallest):
                        return smallest
                    break
                if self.limits.next_limit() <= self.limits.rounds[-1].limit:
                    break
                continue
            if proposal.key in self._tries:
                # The same network again: no choice lies between the limits tried so far.
                self.limits.record(limit, proposal.predicted, self._tries[proposal.key].trial.value)
                if self._largest is None and self._is_under(self._tries[proposal.key].trial):
                    self._largest = self.proposer.propose(self.limits.start_predicted)
                    if self._largest.key == proposal.key:  # the loosest limit leads to it too: something else allows no more
                        return self._closest() or self._lowered()
                continue
            if len(self._tries) == MAX_MEASURED:
                break
            candidate = self._tried(limit, proposal)
            if self._accepted(candidate):
                return candidate
            if (enough := self._enough()) is not None:
                return enough
        return self._nearby(under=True) or self._nearby(under=False) or self._closest() or self._lowered()

    def _nearby(self, *, under: bool) -> Candidate | None:
        """A candidate within the slack that keeps all that the closest one under it keeps, and more; with ``under=False`` one that keeps
        only what the closest one over the budget keeps, and less. None if none is found.

        The limits lead past the window where the tables are off by more than the slack for each network on its own. Over a few widths more
        or less they are off by little, whatever they are off by for the network as a whole.
        """
        share = 1.0
        for _ in range(MAX_NEARBY):
            sided = self._sided(under=under)
            if not sided:
                return None
            base = (max if under else min)(sided, key=lambda entry: entry.trial.value)
            limit = base.proposal.predicted + share * (self.limits.aim - base.trial.value) / self.limits.speed
            try:
                other = self.proposer.widened(base.proposal, limit) if under else self.proposer.narrowed(base.proposal, limit)
            except BudgetInfeasibleError:
                return None
            if other is None:
                return None
            if other.key in self._tries:
                # Nothing lies in between: the next step does.
                share *= 1.5
                continue
            candidate = self._tried(limit, other)
            if self._accepted(candidate):
                return candidate
            if (enough := self._enough()) is not None:
                return enough
            share = 1.0 if self._is_under(self._tries[other.key].trial) == under else 0.6 * share
        return None

    def _sided(self, *, under: bool) -> list[_Try]:
        """What was measured under the budget with its whole interval, or what was not."""
        return [entry for entry in self._tries.values() if self._is_under(entry.trial) == under]

    def _is_under(self, trial: Trial) -> bool:
        """Whether a measurement lies under the budget with its whole interval."""
        return self._verdict(trial) == "under"

    def _verdict(self, trial: Trial) -> Verdict:
        """Where a measurement lies to the budget, by the rule that the final measurement and ``verify`` follow."""
        return verdict(trial.value, trial.uncertainty, self.limits.budget)

    def _tried(self, limit: float, proposal: Proposal) -> Candidate:
        network = self._cut(proposal)
        trial = self._measure(network, window=self.limits.window)
        self._tries[proposal.key] = _Try(proposal=proposal, trial=trial)
        self.limits.record(limit, proposal.predicted, trial.value)
        self._say(
            f"candidate {len(self._tries)}: predicted {proposal.predicted * self.limits.speed:.3f} ms, measured {trial.value:.3f} ms, "
            f"limit {self.limits.budget:.3f} ms"
        )
        return Candidate(proposal=proposal, network=network, trial=trial)

    def _lies_below(self, trial: Trial) -> bool:
        """Whether a measurement lies further under the budget than the slack, so that a larger network is to be looked for."""
        return self._is_under(trial) and trial.value < self.limits.window[0]

    def _accepted(self, candidate: Candidate) -> bool:
        """Whether a candidate lies within the slack, in its first measurement and in a fresh one."""
        trial = candidate.trial
        return self.limits.accepts(trial.value, uncertainty=trial.uncertainty) and self._confirmed(candidate)

    def _confirmed(self, candidate: Candidate) -> bool:
        """Whether a fresh measurement bears the candidate out; where it does not, the search goes on with what it showed."""
        trial = candidate.fresh = self._measure(candidate.network, fresh=True, window=self.limits.window)
        self._say(f"measured afresh: {trial.value:.3f} ms, limit {self.limits.budget:.3f} ms")
        if self.limits.accepts(trial.value, uncertainty=trial.uncertainty):
            return True
        self._tries[candidate.proposal.key] = _Try(proposal=candidate.proposal, trial=trial, fresh=True)
        last = self.limits.rounds.pop()
        self.limits.record(last.limit, last.predicted, trial.value)
        return False

    def _enough(self) -> Candidate | None:
        """The closest candidate under the budget, once the search has taken so long, and so many candidates, that it lies close enough."""
        further = min(int((self._now() - self._began) / PATIENCE), len(self._tries) - _FIRST)
        if further <= 0:
            return None
        lowest = self.limits.budget * (1.0 - (1 + further) * self.limits.slack)
        return self._closest_as("under", [entry for entry in self._sided(under=True) if entry.trial.value >= lowest])

    def _closest(self) -> Candidate | None:
        """The candidate closest under the budget that is still under it when measured afresh; where there is none, one that meets it."""
        for wanted in ("under", "close"):
            met = [entry for entry in self._tries.values() if self._verdict(entry.trial) != "over"]
            if (found := self._closest_as(wanted, met)) is not None:
                return found
        return None

    def _lowered(self) -> Candidate:
        """A candidate far enough below those that were tried, none of which meets the budget; steps double down to the smallest network.

        Near the budget the engine may not follow the tables at all (a staircase that is flat for many widths).

        Raises:
            BudgetInfeasibleError: The smallest network does not meet it either; carries the lowest latency.
        """
        limit = min(entry.limit for entry in self.limits.rounds)
        over = min(entry.trial.value for entry in self._tries.values()) - self.limits.aim
        step = max(over, self.limits.slack * self.limits.budget) / self.limits.speed
        for _ in range(MAX_LOWERED):
            limit, step = max(limit - step, LEAST * self.limits.start_predicted), 2 * step
            smallest = False
            try:
                proposal = self.proposer.propose(limit)
            except BudgetInfeasibleError as error:
                smallest = True
                self._smallest(error)
            else:
                if proposal.key in self._tries:
                    continue
                candidate = self._tried(limit, proposal)
                if self._accepted(candidate):
                    return candidate
            if (found := self._closest()) is not None:
                return self._nearby(under=True) or found
            if smallest:
                break
        lowest = min(entry.trial.value for entry in self._tries.values())  # each by its last measurement: an earlier one may lie lower
        raise BudgetInfeasibleError(
            f"no candidate of {len(self._tries)} was measured under the limit of {self.limits.budget:.4g} ms; the lowest was "
            f"{lowest:.4g} ms",
            limit={"latency": self.limits.budget},
            floor={"latency": lowest},
            advice="Raise the budget, or measure on a quieter machine",
        )

    def _closest_as(self, wanted: Verdict, entries: list[_Try]) -> Candidate | None:
        """The highest of the entries (the lowest where they may lie over the budget) that a fresh measurement finds as ``wanted``."""
        for entry in sorted(entries, key=lambda entry: entry.trial.value, reverse=wanted == "under"):
            network = self._cut(entry.proposal)
            fresh = entry.trial if entry.fresh else self._measure(network, fresh=True, window=self.limits.window)
            self._tries[entry.proposal.key] = _Try(proposal=entry.proposal, trial=fresh, fresh=True)
            if self._verdict(fresh) == wanted:
                return Candidate(proposal=entry.proposal, network=network, trial=entry.trial, fresh=fresh, note=self._note(fresh))
        return None

    def _note(self, fresh: Trial) -> str:
        """What the user should know of the closest candidate."""
        share = f"the delivered network lies at {fresh.value / self.limits.budget:.1%} of the budget"
        measured = f"of {len(self._tries)} networks that were measured none lay"
        if self._verdict(fresh) == "close":
            return f"{share}: {measured} clearly under it, and this one does within what two measurements differ by"
        if self._largest is not None and self._largest.key in self._tries:
            return f"{share}: other limits, or the widths on offer, allow no larger network"
        return f"{share}: {measured} closer below it, in {self._now() - self._began:.0f} s"

    def _smallest(self, error: BudgetInfeasibleError) -> Candidate:
        """The smallest network that the constraints allow, if it measures under the budget; else the error, with its latency measured."""
        floor = error.floor.get("latency")
        if floor is None:
            raise error
        proposal = self.proposer.propose(self.proposer.just_above(floor))
        candidate = self._tried(floor, proposal)
        if self._verdict(candidate.trial) == "over" and (other := self._least()) is not None and other.key not in self._tries:
            candidate = min(candidate, self._tried(floor, other), key=lambda tried: tried.trial.value)
        value, found = candidate.trial.value, self._verdict(candidate.trial)
        if found != "over":
            candidate.note = self._note(candidate.trial) if found == "close" else ""
            return candidate
        raise BudgetInfeasibleError(
            f"budget {self._asked!r} ({self.limits.budget:.4g} ms) cannot be met: the smallest network that the constraints allow was "
            f"measured at {value:.4g} ms ({value / self.limits.start:.1%} of the network before)",
            limit={"latency": self.limits.budget},
            floor={"latency": value},
            advice=ALLOW_MORE,
        ) from error
