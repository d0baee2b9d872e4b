"""The limits of a run: each budget with its resource, the dense network's value, and the limit that it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from latprune.argument_rules import check_number
from latprune.graph.tensors import tensors_in
from latprune.methods import Limit, StageContext
from latprune.pruning.agreement import of_first
from latprune.pruning.budget import Budget
from latprune.pruning.reachable import below_floor
from latprune.resources import MultiplyAdds, Parameters, Resource, TabulatedLatency, UntabulatedLatency
from latprune.rounding import ALMOST_NOTHING

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.latency import Target
    from latprune.methods import Method
    from latprune.methods.width_rules import WidthRules
    from latprune.pruning.clock import Clock
    from latprune.pruning.latency_source import LatencySources
    from latprune.pruning.trials import Trials

__all__ = ["Limits"]

_COUNTED: dict[str, type[Resource]] = {"flops": MultiplyAdds, "params": Parameters}


class Limits:
    """What must hold at the end. The first budget is the one that candidates are searched for; the others are counted, or predicted by
    the tables of another engine than the target's.

    Args:
        budgets: The budgets; first the one on the target's latency, where there is one.
        graph: The dense network.
        target: Engine and conditions.
        latency: Where tables come from, of the target and of other engines.
        trials: Where the dense network is measured.
        clock: Where seconds count.
        measures: Whether latency may be measured.
    """

    def __init__(
        self,
        budgets: Sequence[Budget],
        graph: ModelGraph,
        target: Target,
        latency: LatencySources,
        trials: Trials,
        clock: Clock,
        *,
        measures: bool,
    ) -> None:
        self.budgets = tuple(budgets)
        self.measures = measures
        self._graph = graph
        self._target = target
        self._latency = latency
        self._trials = trials
        self._clock = clock
        self._resources: dict[str, Resource] = {}

    @property
    def budget(self) -> Budget:
        """The first budget."""
        return self.budgets[0]

    @property
    def measured(self) -> bool:
        """Whether candidates are judged by the engine's clock."""
        return self.budget.on_latency and self.measures

    @property
    def predicted(self) -> bool:
        """Whether the budget is on a latency that nothing here can measure."""
        return self.budget.on_latency and not self.measures

    @property
    def resource(self) -> Resource:
        """The first budget's resource; its tables are built at first use."""
        return self._resource(self.budget)

    @property
    def untabulated(self) -> Resource:
        """The first budget's resource for a method that reads no tables."""
        if not self.budget.on_latency:
            return self.resource
        return UntabulatedLatency(self._graph, self.dense)

    def _resource(self, budget: Budget) -> Resource:
        name = budget.name
        if name not in self._resources:
            if budget.resource in _COUNTED:
                self._resources[name] = _COUNTED[budget.resource](self._graph)
            elif budget.engine is None:
                self._resources[name] = self._latency.own.resource()
            else:
                self._resources[name] = TabulatedLatency(self._graph, self._latency.on(budget.engine).tables(), name=name)
        return self._resources[name]

    def check_counted(self, method: Method, rules: WidthRules | None, *, floor: bool) -> None:
        """Judge the limits on what is counted, which takes neither tables nor scores.

        Args:
            method: The method, whose own options may keep more than the widths on offer do.
            rules: The user's rules for widths.
            floor: Whether a limit below the count of the smallest network is refused too.

        Raises:
            InvalidArgumentError: A limit lies above the dense network, or the rules fit no group.
            BudgetInfeasibleError: A limit lies below the smallest network that the method may choose.
        """
        counted = [budget for budget in self.budgets if not budget.on_latency]
        limits = [Limit(resource=self._resource(budget), value=budget.limit(dense=self._resource_dense(budget))) for budget in counted]
        if not limits or not floor:
            return
        graph = self._graph
        choices = {name: tuple(range(group.min_width, group.columns + 1)) for name, group in graph.groups.items()}
        context = StageContext(
            graph=graph,
            importance=None,
            resource=limits[0].resource,
            choices=rules.apply(choices, graph.groups) if rules is not None else choices,
            widths=graph.dense_widths(),
            walk_on_choices=rules is not None,
        )
        offer = method.offer(context)
        least = {limit.resource.name: limit.resource.value(offer.smallest, offer.removable) for limit in limits}
        missed = [limit for limit in limits if limit.value < least[limit.resource.name] * (1.0 - ALMOST_NOTHING)]
        if missed:
            raise below_floor(missed, least, method, offer)

    def told_of_batch(self, example_inputs: Any) -> str:
        """What people are told of a number of multiply-adds where the example inputs, which they are counted on, are a batch of several
        examples; empty elsewhere.
        """
        sizes = [tensor.shape[0] for tensor in tensors_in(example_inputs)[:1] if tensor.dim()]
        asked = [budget.text for budget in self.budgets if budget.resource == "flops" and budget.unit == "count"]
        if not asked or sizes in ([], [1]):
            return ""
        dense = self._graph.macs(self._graph.dense_widths())
        return (
            f"{asked[0]} counts the multiply-adds of the whole batch of {sizes[0]} example inputs ({dense:,.0f} for the dense network), "
            "whatever the target's batch is; to count those of one example give a batch of one, or give a share (flops=50%)"
        )

    @property
    def dense(self) -> float:
        """The dense network's value of the first resource: counted, or measured where the clock decides."""
        if not self.measured:
            return self._resource_dense(self.budget)
        if self._trials.dense_ms is None:
            with self._clock.timed("measure dense"):
                self._trials.dense_ms = of_first(self._trials.dense_latency)
        return self._trials.dense_latency()

    def _resource_dense(self, budget: Budget) -> float:
        if budget.on_latency:
            return self._latency.on(budget.engine).tables().dense_ms
        return self._resource(budget).value(self._graph.dense_widths())

    @property
    def limit(self) -> float:
        """The first budget's limit in its resource's unit."""
        return self.budget.limit(dense=self.dense, batch=self._target.batch)

    def asked(self, limit: float | str | Budget) -> float:
        """A limit that was asked for beside the budget, in the first resource's unit.

        Args:
            limit: A number in that unit, or a budget's text on that resource.

        Raises:
            InvalidArgumentError: It is no positive number, no budget on the resource, or lies above the dense network.
        """
        if isinstance(limit, (str, Budget)):
            return Budget.of(self.budget.resource, limit, name="limit").limit(dense=self.dense, batch=self._target.batch)
        rule = f"be a positive number of {self.budget.unit_of_limit}, or a budget's text, such as '70%'"
        check_number("limit", limit, rule, 0.0, above=True)
        return float(limit)

    def others(self, on_the_way: Callable[[float, float], float] | None = None) -> tuple[Limit, ...]:
        """The limits of the other budgets; one on another engine's latency leaves room for the error of its tables.

        Args:
            on_the_way: The schedule's rule: from the dense network's value and the limit at the end to the limit that holds now; None: the
                limits at the end.
        """
        found = []
        for budget in self.budgets[1:]:
            dense = self._resource_dense(budget)
            value = budget.limit(dense=dense, batch=self._target.batch)
            if budget.engine is not None:
                value /= self._latency.on(budget.engine).room()
            found.append(Limit(resource=self._resource(budget), value=value if on_the_way is None else on_the_way(dense, value)))
        return tuple(found)
