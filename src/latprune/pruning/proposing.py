"""From scores to a proposed network: the stage's problem, and the search for a network that meets its limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from latprune.copying import copied
from latprune.graph.narrowing import without_blocks
from latprune.graph.types import Selection
from latprune.methods import Limit, Method, Proposal, StageContext, selection_of
from latprune.methods.width_rules import WidthRules
from latprune.pruning.clock import Clock, TimedProposer
from latprune.pruning.clocked_readings import Promises
from latprune.pruning.correction import LimitSearch, margin_within
from latprune.pruning.further_limits import FurtherLimits
from latprune.pruning.judging import NetworkJudge
from latprune.pruning.latency_source import LatencySource
from latprune.pruning.least import least_of
from latprune.pruning.limits import Limits
from latprune.pruning.lowest import lowest_network
from latprune.pruning.proposal import StageProposal
from latprune.pruning.scoring import only_present
from latprune.pruning.search import CandidateSearch
from latprune.pruning.search_counted import search_counted
from latprune.pruning.trials import Trial
from latprune.rounding import ALMOST_NOTHING
from latprune.solve import SolverError
from latprune.surgery import prune as cut_model

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.importance import Importance, Readings
    from latprune.methods.base import MeasureAlone, Proposer
    from latprune.pruning.picked import PickedNetwork
    from latprune.recovery.contract import Recovery
    from latprune.solve import Solver

__all__ = ["ProposalSearch"]

_COMPARED_GAP = 2e-3
"""Of the solves whose networks are only compared with each other: what the judge can tell apart is many times as much."""


@dataclass(slots=True, kw_only=True, eq=False)
class ProposalSearch:
    """Proposes networks from scores.

    Attributes:
        graph: The dense network's graph.
        dense_model: The dense network; candidates are cut out of copies of it.
        method: The method.
        limits: What must hold.
        latency: Where tables come from.
        trial: Measures a network.
        clock: Where seconds count.
        say: Takes a line of text as the work goes on.
        rules: The user's rules for the widths on offer.
        solver: The solver, by name or with its options; None leaves it to the method.
        time_limit: Seconds that one solve may take.
        strategy: Recovery after which several readings' networks are compared; None compares them as they are cut.
        seed: Seed of everything random.
        slack: Candidates are accepted within ``[1 - slack, 1]`` of the limit.
    """

    graph: ModelGraph
    dense_model: nn.Module
    method: Method
    limits: Limits
    latency: LatencySource
    trial: Callable[..., Trial]
    clock: Clock
    say: Callable[[str], None]
    rules: WidthRules | None
    solver: str | Solver | None
    time_limit: float | None
    strategy: Recovery | None
    seed: int
    slack: float
    judge: NetworkJudge = field(init=False)
    """Compares networks as a whole."""
    promises: Promises | None = field(init=False, default=None)
    """What the last comparison of readings was made by."""

    def __post_init__(self) -> None:
        self.judge = NetworkJudge(
            graph=self.graph,
            dense_model=self.dense_model,
            network=self.network,
            strategy=self.strategy,
            seed=self.seed,
            say=self.say,
        )

    def find(
        self,
        importance: Importance | None,
        since: Selection,
        *,
        limit: float,
        others: tuple[Limit, ...],
        measure: bool,
        last: bool,
        measure_alone: MeasureAlone,
    ) -> StageProposal:
        """The best network under ``limit``.

        Args:
            importance: Scores of the dense network's units.
            since: What is left of the network; nothing that is gone comes back.
            limit: Limit in the resource's unit.
            others: Limits of the further budgets.
            measure: Whether candidates are measured.
            last: Whether the limit must be met by the clock; a stage after which others follow takes its first candidate.
            measure_alone: Times the whole network with each group's width changed alone.
        """
        context = self.context(importance, since, measure_alone, others)
        if measure and self.limits.measured:
            context = replace(context, measured=self._measured(since))
        if self.limits.measured and measure:
            return self._by_the_clock(context, since, limit=limit, last=last)
        return self._counted(context, since, limit=limit)

    def reading_of(
        self,
        importance: Importance | None,
        readings: Readings | None,
        since: Selection,
        *,
        limit: float,
        others: tuple[Limit, ...],
        picked: PickedNetwork | None = None,
    ) -> Importance | None:
        """The scores to go by: ``importance`` itself, or, of several readings, the picked network's or the one that diverges least."""
        self.promises = None
        if readings is None:
            return importance
        if picked is not None:
            return readings.importances.get(picked.reading or "", importance) if importance is not None else None
        return self.best_reading(readings, since, limit=limit, others=others)

    def best_reading(self, readings: Readings, since: Selection, *, limit: float, others: tuple[Limit, ...]) -> Importance:
        """The scores whose network diverges least as a whole, among several readings of one measurement.

        Each reading's network is one that is predicted to meet ``limit``, near its optimum and not proven; nothing is timed. The model must
        be as it was when it was measured.
        """
        if not self.method.needs_tables:  # whole networks are timed: nothing can be compared by prediction
            return next(iter(readings.importances.values()))

        def network(found: Importance) -> Selection:
            context = replace(self.context(found, since, None, others), gap=_COMPARED_GAP)
            return self._counted(context, since, limit=limit).selection

        return self.least_divergent(readings, network, since)[1]

    def least_divergent(self, readings: Readings, network: Callable[[Importance], Selection], since: Selection) -> tuple[str, Importance]:
        """The reading, and its scores, whose ``network`` diverges least as a whole; see :func:`least_of` for what counts as equal."""
        selections = {name: network(importance) for name, importance in readings.importances.items()}
        values = self.judge.values(readings, selections, since)
        taken = least_of(values, readings.caution)
        for name, reason in readings.left_out.items():
            self.say(f"scores by {name} are left out: {reason}")
        told = ", ".join(f"{name}: {float(value.mean()):.4g}" for name, value in values.items())
        self.say(f"divergence of the networks that the readings lead to: {told}; taken: {taken}")
        self.promises = Promises(readings=readings, values=values, networks=selections, taken=taken)
        return taken, readings.importances[taken]

    def picked(self, importance: Importance | None, picked: PickedNetwork, *, limit: float) -> StageProposal:
        """The network that was picked from an exploration, as it was shown; nothing is solved, and no tables are built.

        Args:
            importance: Scores of the dense network's units: which of them stay is decided here.
            picked: The network.
            limit: The budget's limit in its resource's unit.
        """
        context = StageContext(
            graph=self.graph,
            importance=importance,
            resource=self.limits.untabulated,
            choices={name: (width,) for name, width in picked.widths.items()},
            widths=self.graph.dense_widths(),
            seed=self.seed,
        )
        proposal = Proposal(widths=picked.widths, removed_blocks=picked.removed_blocks, predicted=picked.share * self.limits.dense)
        return StageProposal(
            proposal=proposal,
            selection=selection_of(self.graph, self.method.rank(context, picked.removed_blocks), proposal, Selection(kept={})),
            limit=limit,
            predicted=proposal.predicted,
            note=f"picked by {picked.budget.text} from an exploration, and cut as it was shown; nothing was searched",
            context=context,
        )

    def context(
        self,
        importance: Importance | None,
        since: Selection,
        measure_alone: MeasureAlone | None,
        others: tuple[Limit, ...] | None = None,
    ) -> StageContext:
        """All that the method may look at, from what is left of the network on; ``others``: the further limits (None: those at the end)."""
        dense = self.graph.dense_widths()
        widths = {**dense, **{name: kept.size // self.graph.groups[name].rows for name, kept in since.kept.items()}}
        graph = without_blocks(self.graph, since.removed_blocks)
        resource = self.limits.resource if self.method.needs_tables else self.limits.untabulated
        choices = {
            name: tuple(sorted({w for w in resource.offered(name) if group.min_width <= w < widths[name]} | {widths[name]}))
            for name, group in graph.groups.items()
        }
        return StageContext(
            graph=graph,
            importance=only_present(importance, since) if importance is not None else None,
            resource=resource,
            choices=self.rules.apply(choices, graph.groups) if self.rules is not None else choices,
            widths=widths,
            removed_blocks=tuple(sorted(since.removed_blocks)),
            limits=self.limits.others() if others is None else others,
            walk_on_choices=self.rules is not None,
            solver=self.solver,
            time_limit=self.time_limit,
            seed=self.seed,
            measure_alone=measure_alone if self.limits.measures else None,
        )

    def _measured(self, since: Selection) -> float:
        """The measured value of the network that the stage starts from."""
        if not since.kept and not since.removed_blocks:
            return self.limits.dense
        return self.trial(self.network(since)).value

    def prepared(self, context: StageContext, since: Selection) -> tuple[Proposer, Callable[[Proposal], Selection]]:
        """The method's proposer, and what a proposal of it keeps."""
        with self.clock.timed("solve"):
            proposer = self.method.prepare(context)

        def chosen(proposal: Proposal) -> Selection:
            return selection_of(self.graph, self.method.rank(context, proposal.removed_blocks), proposal, since)

        return proposer, chosen

    def _by_the_clock(self, context: StageContext, since: Selection, *, limit: float, last: bool) -> StageProposal:
        assert context.measured is not None
        prepared, chosen = self.prepared(context, since)
        search = LimitSearch(budget=limit, start=context.measured, start_predicted=context.current, slack=self.slack)
        candidates = CandidateSearch(
            self._within_further(TimedProposer(prepared, self.clock), context),
            search,
            cut=lambda proposal: self.network(chosen(proposal)),
            measure=self.trial,
            asked=self.limits.budget.text,
            say=self.say,
            least=lambda: self._least(context, limit),
        )
        # The next stage starts from what this one measures; only the last has to meet its limit.
        found = candidates.run() if last else candidates.first()
        return StageProposal(
            proposal=found.proposal,
            selection=chosen(found.proposal),
            limit=limit,
            predicted=self.predicted(context, found.proposal),
            trial=found.trial,
            fresh=found.fresh,
            rounds=tuple((r.limit * search.speed, r.predicted * search.speed, r.measured) for r in search.rounds),
            note=found.note,
            context=context,
        )

    def _least(self, context: StageContext, limit: float) -> Proposal | None:
        """The stage's network that is fastest by the tables; None without tables, where it breaks another limit, or was not found."""
        if not self.method.needs_tables:
            return None
        asked = Limit(resource=context.resource, value=limit / self.speed(context))
        try:
            with self.clock.timed("solve"):
                found = lowest_network(context, self.method.offer(context), asked, time_limit=self.time_limit)
        except SolverError as error:
            self.say(f"the network that is fastest by the tables was not found, and is not tried: {error}")
            return None
        if found is None or any(other.resource.value(found.widths, found.removed_blocks) > other.value for other in context.limits):
            return None
        return found

    def _counted(self, context: StageContext, since: Selection, *, limit: float) -> StageProposal:
        proposer, chosen = self.prepared(context, since)
        # What is counted needs no margin for a later measurement; what is only predicted needs room for the tables' error.
        speed = self.speed(context)
        search = LimitSearch(
            budget=limit / speed / self.room,
            start=context.current,
            start_predicted=context.current,
            slack=self.slack,
            margin=margin_within(self.slack, ALMOST_NOTHING),
        )
        with self.clock.timed("solve"):
            proposal = search_counted(self._within_further(proposer, context), search, context)
        if self.limits.predicted:
            # A method's own sum may be a linearisation; the tables' value counts.
            proposal = replace(proposal, predicted=context.predict(proposal.widths, proposal.removed_blocks))
        return StageProposal(
            proposal=proposal,
            selection=chosen(proposal),
            limit=limit,
            predicted=proposal.predicted * speed,
            rounds=() if context.resource.on_latency else tuple((r.limit, r.predicted, r.measured) for r in search.rounds),
            note=self.only_predicted(proposal.predicted, limit),
            context=context,
        )

    def predicted(self, context: StageContext, proposal: Proposal) -> float:
        """Predicted value of a network of the stage; where the stage measures, at the machine's present speed."""
        speed = context.measured / context.current if context.measured is not None else 1.0
        return self._predicted(context, proposal) * speed

    @property
    def room(self) -> float:
        """What a predicted value may be wrong by, as a factor: 1 for what is counted, or measured in the end."""
        return self.latency.room() if self.limits.predicted else 1.0

    def _within_further(self, proposer: Proposer, context: StageContext) -> Proposer:
        """A proposer of networks that hold the stage's further limits by their own values."""
        return FurtherLimits(proposer, context, slack=self.slack) if context.limits else proposer

    def _predicted(self, context: StageContext, proposal: Proposal) -> float:
        """What the tables say of a network; a method's own sum may be a linearisation."""
        return context.predict(proposal.widths, proposal.removed_blocks) if self.method.needs_tables else proposal.predicted

    def speed(self, context: StageContext) -> float:
        """What brings tables that were made when the machine ran at another speed to the present one, by the dense network."""
        return self.limits.dense / context.resource.value(self.graph.dense_widths()) if self.limits.measured else 1.0

    def only_predicted(self, value: float, limit: float) -> str:
        """The note of a latency that nothing here can measure; empty for others."""
        if not self.limits.predicted:
            return ""
        return (
            f"predicted, not measured: {value:.4g} ms; solved {1.0 - 1.0 / self.latency.room():.1%} below the limit of {limit:.4g} "
            "ms, because one in twenty of the networks that the tables were checked on took that much longer than predicted"
        )

    def network(self, selection: Selection) -> nn.Module:
        """A copy of the dense network, cut to ``selection``: its latency is that of any network of these shapes."""
        network = copied(self.dense_model)
        cut_model(network, self.graph, selection)
        return network
