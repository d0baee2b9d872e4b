"""SP-LAMP: scores per channel, unary latency contributions, group knapsack, in stages (SP-LAMP eq. 5 to 10, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from latprune.argument_rules import check_one_of
from latprune.errors import InvalidArgumentError
from latprune.importance import SpLampConfig, check_criterion
from latprune.latency.measuring.protocol import FixedRuns
from latprune.methods.assemble import cost_row, gain_terms
from latprune.methods.base import Method, Proposer, StageContext, register_method
from latprune.methods.offer import Offer
from latprune.methods.schedule import Between, Ramp, Schedule, Stages
from latprune.methods.solved import SolvedProposer
from latprune.problem import Problem, Term, Variable
from latprune.problem import Resource as CostRow

__all__ = ["SPLAMP", "contributions"]

CONTRIBUTIONS = ("in-place", "whole-network")
PROTOCOLS = ("interleaved", "fixed-runs")
_TIMES = "contributions='whole-network' times whole networks: it needs a latency budget, and to measure"


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class SPLAMP(Method):
    """Structured pruning with layer-adaptive magnitude scores, guided by latency.

    Each stage scores the surviving channels, derives every group's latency contribution around the current network, and solves a group
    knapsack; then the network trains, cut or masked (the paper masks between stages and cuts at the end: what is masked does not return, so
    both give the same networks).

    The budget row is ``Phi_s - sum_l [T_l(m_l) - T_l(p_l)] <= C_s`` with ``C_i = dense - (dense - C) i / k`` (the paper prints
    ``C_k = C / k``, which would end far under the budget). Contributions add up to about twice the dense latency, because each kernel is
    counted by its producer's and its consumer's group: they are a linearisation, so the last stage is measured and corrected.

    The objective (eq. 8) adds up the scores of every layer's filters; how a group of coupled layers counts is the criterion's choice
    (:class:`~latprune.importance.SpLampConfig`).

    Attributes:
        stages: Stages ``k`` (the paper: 10).
        score: Criterion.
        contributions: ``in-place``: from the latency tables, or the predictor where one is given. ``whole-network``: each width timed in
            the whole network (eq. 7; slow).
        protocol: How whole networks are timed. ``interleaved``: beside the current one, until the ratio is known closely enough.
            ``fixed-runs``: the paper's own (section 4), each by itself, the mean over the last ``keep`` of ``runs`` inferences at the
            target's batch; only for a machine that does nothing else.
        runs: Inferences of each network under ``fixed-runs``.
        keep: How many of them count, the last ones.
        ramp: Limits of the stages.
        between: ``cut`` or ``mask`` the network between stages.
    """

    name: ClassVar[str] = "sp_lamp"
    stages: int = 3
    score: object = field(default_factory=SpLampConfig)
    contributions: Literal["in-place", "whole-network"] = "in-place"
    protocol: Literal["interleaved", "fixed-runs"] = "interleaved"
    runs: int = FixedRuns().runs
    keep: int = FixedRuns().keep
    ramp: Ramp = "linear"
    between: Between = "cut"

    def __post_init__(self) -> None:
        check_criterion("score", self.score)
        check_one_of("contributions", self.contributions, CONTRIBUTIONS)
        check_one_of("protocol", self.protocol, PROTOCOLS)
        FixedRuns(runs=self.runs, keep=self.keep)  # checks them
        if self.protocol == "fixed-runs" and self.contributions != "whole-network":
            raise InvalidArgumentError(
                f"protocol (='fixed-runs') times whole networks, and contributions (={self.contributions!r}) times none: set it to "
                "'whole-network'"
            )
        if self.protocol == "interleaved" and (self.runs, self.keep) != (FixedRuns().runs, FixedRuns().keep):
            raise InvalidArgumentError(f"runs (={self.runs}) and keep (={self.keep}) decide nothing without protocol='fixed-runs'")
        _ = self.schedule  # checks its options

    @property
    def importance(self) -> object:
        """SP-LAMP scores unless set otherwise."""
        return self.score

    @property
    def needs_tables(self) -> bool:
        """Not where whole networks are timed."""
        return self.contributions == "in-place"

    @property
    def schedule(self) -> Schedule:
        """Stages, each of which is measured: the next one starts from what it gave."""
        return Stages(stages=self.stages, ramp=self.ramp, between=self.between, measure="each")

    def check_budget(self, *, on_latency: bool, measures: bool) -> None:
        """Whole networks are timed for a budget on latency, where that is measured."""
        if self.contributions == "whole-network" and not (on_latency and measures):
            raise InvalidArgumentError(_TIMES)

    def offer(self, context: StageContext) -> Offer:
        """All widths; every block stays."""
        return Offer(choices=context.choices, removable=())

    def prepare(self, context: StageContext) -> Proposer:
        """The unary problem of one stage."""
        fixed_runs = FixedRuns(runs=self.runs, keep=self.keep) if self.protocol == "fixed-runs" else None
        costs = contributions(context, whole_network=self.contributions == "whole-network", fixed_runs=fixed_runs)
        terms = tuple(Term(name=name, over=(name,), table=table) for name, table in costs.items())
        # Times of whole networks are today's, so they stand on today's time of the current network.
        start = context.current if self.needs_tables or context.measured is None else context.measured
        row = CostRow(name=context.resource.name, unit=context.resource.unit, constant=start, terms=terms)
        others = [cost_row(context, other.resource, limit=other.value, removable=()) for other in context.limits]
        variables = tuple(Variable(name=name, choices=tuple(context.choices[name])) for name in context.graph.groups)
        problem = Problem(variables=variables, gains=tuple(gain_terms(context, gated=False)), costs=(row, *others))
        return SolvedProposer(context, problem, context.solver or ("exact" if others else "group-knapsack"))


def contributions(
    context: StageContext, *, whole_network: bool = False, fixed_runs: FixedRuns | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """What each group's width saves or costs against the current network, all other groups as they are (SP-LAMP eq. 6 and 7, cumulated).

    Args:
        context: The stage.
        whole_network: Time the whole network at each width instead of reading the tables. Negative and non-monotone values are kept.
        fixed_runs: Time each of them by itself, by the paper's protocol; None: beside the current network.

    Returns:
        Group -> ``(choices,)``: ``Phi(width) - Phi(current)`` in the resource's unit; 0 for the current width.
    """
    choices = {name: context.choices[name] for name in context.graph.groups}
    if not whole_network:
        return context.resource.changes_alone(choices, context.widths, context.removed_blocks)
    if context.measure_alone is None or not context.resource.on_latency:
        raise InvalidArgumentError(_TIMES)
    return dict(context.measure_alone(choices) if fixed_runs is None else context.measure_alone(choices, fixed_runs))
