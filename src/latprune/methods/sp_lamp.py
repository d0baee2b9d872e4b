"""SP-LAMP: scores per channel, unary latency contributions, group knapsack, in stages (SP-LAMP eq. 5 to 10, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError
from latprune.graph.types import Role
from latprune.importance import SpLampConfig
from latprune.latency.unary import changes_alone, unary_contributions
from latprune.methods.assemble import UNITS, gain_terms
from latprune.methods.base import Method, Proposer, StageContext, register_method
from latprune.methods.solved import SolvedProposer
from latprune.problem import Problem, Resource, Term, Variable

__all__ = ["SPLAMP", "contributions"]

CONTRIBUTIONS = ("in-place", "whole-network")
COUNTED = ("flops", "params")


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class SPLAMP(Method):
    """Structured pruning with layer-adaptive magnitude scores, guided by latency.

    Each stage scores the surviving channels, derives every group's latency contribution around the current network, and solves a group
    knapsack; the network is cut and fine-tuned before the next stage. The paper masks between stages and cuts at the end: masked filters do
    not return, so cutting at once gives the same networks and cheaper training.

    The budget row is ``Phi_s - sum_l [T_l(m_l) - T_l(p_l)] <= C_s`` with ``C_i = dense - (dense - C) i / k`` (the paper prints
    ``C_k = C / k``, which would end far under the budget). Contributions add up to about twice the dense latency, because each kernel is
    counted by its producer's and its consumer's group: they are a linearisation, so the last stage is measured and corrected.

    The objective (eq. 8) adds up the scores of every layer's filters. A group of ``n`` coupled layers (a residual stream) has one score per
    channel here, so it counts ``n`` times: counted once, the stream would be the cheapest thing to give up in any residual network.

    Attributes:
        stages: Stages ``k``.
        score: Importance criterion.
        contributions: ``in-place``: from the latency tables. ``whole-network``: each width timed in the whole network (eq. 7; slow).
    """

    name: ClassVar[str] = "sp_lamp"
    stages: int = 3
    score: object = field(default_factory=SpLampConfig)
    contributions: str = "in-place"

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.contributions not in CONTRIBUTIONS:
            raise InvalidArgumentError(f"contributions (={self.contributions!r}) must be one of {', '.join(CONTRIBUTIONS)}")

    @property
    def importance(self) -> object:
        """SP-LAMP scores unless set otherwise."""
        return self.score

    def prepare(self, context: StageContext) -> Proposer:
        """The unary problem of one stage."""
        costs = contributions(context, whole_network=self.contributions == "whole-network")
        terms = tuple(Term(name=name, over=(name,), table=table) for name, table in costs.items())
        resource = Resource(name=context.resource, unit=UNITS[context.resource], constant=context.dense, terms=terms)
        variables = tuple(Variable(name=name, choices=tuple(context.choices[name])) for name in context.graph.groups)
        gains = tuple(replace(term, table=term.table * _layers(context, term.name)) for term in gain_terms(context, gated=False))
        problem = Problem(variables=variables, gains=gains, costs=(resource,))
        return SolvedProposer(context, problem, context.solver or "group-knapsack")


def _layers(context: StageContext, group: str) -> int:
    """Layers whose filters make the group's channels."""
    makers = {member.kernel for member in context.graph.groups[group].members if member.role in (Role.PRODUCER, Role.DEPTHWISE)}
    return max(len(makers), 1)


def contributions(context: StageContext, *, whole_network: bool = False) -> dict[str, npt.NDArray[np.float64]]:
    """What each group's width saves or costs against the current network, all other groups whole (SP-LAMP eq. 6 and 7, cumulated).

    Args:
        context: The stage.
        whole_network: Time the whole network at each width instead of reading the tables. Negative and non-monotone values are kept.

    Returns:
        Group -> ``(choices,)``: ``Phi(width) - Phi(current)`` in the resource's unit; 0 for the current width.
    """
    dense = context.graph.dense_widths()
    choices = {name: context.choices[name] for name in context.graph.groups}
    if whole_network:
        if context.measure_alone is None or context.resource != "latency":
            raise InvalidArgumentError("contributions='whole-network' times networks: it needs a latency budget, and to measure")
        return dict(context.measure_alone(choices))
    if context.tables is not None and context.resource == "latency":
        return unary_contributions(context.tables, choices, widths=dense)
    if context.resource in COUNTED:
        return {name: _counted_alone(context, name, options) for name, options in choices.items()}
    current = context.predict(dense)
    return changes_alone(lambda name, width: context.predict({**dense, name: width}) - current, choices, dense)


def _counted_alone(context: StageContext, group: str, options: Sequence[int]) -> npt.NDArray[np.float64]:
    """``(choices,)`` change of what is counted with ``group`` at each width, all others whole: one pass over the network for all widths."""
    graph = context.graph
    count: Any = graph.macs if context.resource == "flops" else graph.parameters
    widths = np.asarray([*options, graph.dense_widths()[group]], dtype=np.int64)
    # Sizes are polynomials of the widths, which arrays take part in as numbers do.
    values = np.broadcast_to(np.asarray(count({**graph.dense_widths(), group: widths}), dtype=np.float64), widths.shape)
    return np.array(values[:-1] - values[-1])
