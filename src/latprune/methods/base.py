"""The contract of a pruning method: from a stage's graph, importance and tables to a proposer of networks under a limit."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from latprune.errors import BudgetInfeasibleError
from latprune.graph.types import Selection
from latprune.methods.offer import Offer
from latprune.methods.schedule import SCHEDULES, Schedule, SinglePass, SoftMasks
from latprune.registry import ClassRegistry
from latprune.rounding import ROUNDED

if TYPE_CHECKING:
    from torch import nn

    from latprune.graph import ModelGraph
    from latprune.importance import Importance
    from latprune.latency import FixedRuns
    from latprune.problem import Problem, Solution
    from latprune.resources import Resource
    from latprune.solve import Solver

__all__ = [
    "Limit",
    "MeasureAlone",
    "Method",
    "Proposal",
    "ProposalsInterrupted",
    "Proposer",
    "StageContext",
    "get_method",
    "method_type",
    "register_method",
    "registered_methods",
    "selection_of",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limit:
    """A further resource that must stay under a limit, beside the budget's own.

    Attributes:
        resource: The resource.
        value: Its limit, in its unit.
    """

    resource: Resource
    value: float


class MeasureAlone(Protocol):
    """Times the whole network with each group's width changed alone (:func:`latprune.latency.measure_unary_contributions`)."""

    def __call__(self, choices: Mapping[str, Sequence[int]], fixed_runs: FixedRuns | None = None) -> Mapping[str, npt.NDArray[np.float64]]:
        """Group -> widths in, group -> ``(widths,)`` milliseconds against the current network out.

        Args:
            choices: Group -> widths.
            fixed_runs: Runs of each network by itself; None times it beside the current one until it is known closely.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageContext:
    """All that a method may look at in one stage. Everything is said of the dense network: units, widths and blocks keep their names.

    Attributes:
        graph: The dense network's graph without the blocks that are gone.
        importance: Scores of its units, 0 for those that are gone; None for a method that needs none.
        resource: What the budget limits.
        choices: Widths on offer per group, ending with the widest that is left.
        widths: Widths of the network as it is: the dense ones, or what earlier stages left.
        removed_blocks: Blocks that earlier stages removed.
        measured: Measured value of the network as it is; None where the stage measures nothing.
        limits: Further resources with limits of their own.
        walk_on_choices: Whether methods that know of no tables keep to the widths on offer too, because the user restricted them.
        solver: The solver to use, by name or with its options; None for the method's own.
        time_limit: Seconds that one solve may take.
        gap: Relative gap at which a solve is good enough; 0 asks for a proof.
        seed: Seed of everything random.
        measure_alone: Times the whole network with each group's width changed alone; None where nothing is measured.
    """

    graph: ModelGraph
    importance: Importance | None
    resource: Resource
    choices: Mapping[str, Sequence[int]]
    widths: Mapping[str, int]
    removed_blocks: tuple[str, ...] = ()
    measured: float | None = None
    limits: tuple[Limit, ...] = ()
    walk_on_choices: bool = False
    solver: str | Solver | None = None
    time_limit: float | None = None
    gap: float = 0.0
    seed: int = 0
    measure_alone: MeasureAlone | None = None

    def __repr__(self) -> str:
        """One line."""
        return f"StageContext({self.resource.name}, {len(self.choices)} groups, {len(self.removable)} removable blocks)"

    @property
    def current(self) -> float:
        """The resource's predicted value of the network as it is."""
        return self.predict(self.widths)

    @property
    def removable(self) -> tuple[str, ...]:
        """Blocks that may be removed."""
        return tuple(block.name for block in self.graph.blocks.values() if block.removable)

    def predict(self, widths: Mapping[str, int], removed_blocks: Sequence[str] = ()) -> float:
        """The resource's predicted value at ``widths`` (group name -> width) with ``removed_blocks`` gone, earlier ones always."""
        return self.resource.value(widths, (*self.removed_blocks, *removed_blocks))

    def exceeds(self, widths: Mapping[str, int], removed_blocks: Sequence[str] = ()) -> bool:
        """Whether the network's own value of a further resource is over its limit, by more than rounding."""
        gone = (*self.removed_blocks, *removed_blocks)
        return any(other.resource.value(widths, gone) > other.value * ROUNDED for other in self.limits)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """A network under a predicted limit.

    Attributes:
        widths: Group name -> width.
        removed_blocks: Blocks that go.
        predicted: The resource's predicted value.
        problem: The pruning problem that was solved, where there was one.
        solution: The solver's answer to it.
    """

    widths: Mapping[str, int]
    removed_blocks: tuple[str, ...]
    predicted: float
    problem: Problem | None = None
    solution: Solution | None = None

    def __repr__(self) -> str:
        """One line; the problem and its solution are not shown."""
        kept, removed = sum(self.widths.values()), len(self.removed_blocks)
        return f"Proposal({kept} units in {len(self.widths)} groups, {removed} blocks removed, predicted={self.predicted:.6g})"

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal networks."""
        return tuple(sorted(self.widths.items())), tuple(sorted(self.removed_blocks))


class ProposalsInterrupted(KeyboardInterrupt):
    """Ctrl-C while several limits were looked at; ``proposals`` are the networks found so far."""

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        super().__init__("interrupted")
        self.proposals = list(proposals)


class Proposer(ABC):
    """Finds the best network under a limit; called again with a corrected limit when the measurement disagrees with the prediction."""

    @staticmethod
    def just_above(floor: float) -> float:
        """A limit that the network at ``floor`` meets whatever rounding its value goes through on the way."""
        return floor + 1e-6 * abs(floor)

    def with_limits(self, limits: Mapping[str, float]) -> Proposer:
        """This proposer under other limits of further resources (name -> value): where its costs of them are a linearisation, the limits to
        solve for are others than the networks must hold. One that holds them by the networks' own values stays as it is.
        """
        return self

    @abstractmethod
    def propose(self, limit: float) -> Proposal:
        """The best network whose predicted value is at most ``limit``.

        Raises:
            BudgetInfeasibleError: No network is under ``limit``; the error carries the lowest predicted value.
        """

    def along(self, limits: Sequence[float], *, time_limit: float | None = None) -> list[Proposal]:
        """The best networks under each of several limits; a limit that nothing meets, or that time does not suffice for, has none.

        Args:
            limits: Rising limits.
            time_limit: Seconds for all of them.

        Raises:
            ProposalsInterrupted: Ctrl-C.
        """
        deadline = math.inf if time_limit is None else time.monotonic() + time_limit
        found: list[Proposal] = []
        for limit in limits:
            if time.monotonic() >= deadline:
                break
            try:
                found.append(self.propose(limit))
            except BudgetInfeasibleError:
                continue
            except KeyboardInterrupt:
                raise ProposalsInterrupted(found) from None
        return found

    def widened(self, found: Proposal, limit: float) -> Proposal | None:
        """The best network under ``limit`` that keeps all that ``found`` keeps; None where the method has no choice of such networks.

        Between two neighbouring networks little has to be predicted, so that such a one comes closer to a budget than the tables' error
        over whole networks allows.
        """
        return None

    def narrowed(self, found: Proposal, limit: float) -> Proposal | None:
        """The best network under ``limit`` that keeps nothing that ``found`` does not keep; None as for :meth:`widened`.

        Raises:
            BudgetInfeasibleError: No such network is under ``limit``.
        """
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(ABC):
    """A pruning method is three things: an importance, a way from a stage's context to a proposer, and a schedule."""

    name: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """The method's options as a JSON object."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}

    @property
    @abstractmethod
    def importance(self) -> object | None:
        """The criterion's configuration that the method ranks and sums by, or None if it needs none."""

    @property
    def needs_tables(self) -> bool:
        """Whether the method reads latency tables; one that times whole networks does without."""
        return True

    @property
    def keeps_weights(self) -> bool:
        """Whether the network that is delivered has the weights of the dense one, so that there is something to recover."""
        return True

    @property
    def schedule(self) -> Schedule:
        """How the method goes to its budget; in a single pass unless it says otherwise."""
        return SinglePass()

    def check_budget(self, *, on_latency: bool, measures: bool) -> None:  # noqa: B027
        """Refuse a budget that the method cannot work to, before anything is computed; nothing unless it says otherwise.

        Args:
            on_latency: Whether the first budget is on latency; else it is counted.
            measures: Whether networks may be timed.

        Raises:
            InvalidArgumentError: It cannot.
        """

    def check_model(self, model: nn.Module) -> None:  # noqa: B027
        """Refuse a model whose weights the method could not finish, before anything is measured; nothing unless it says otherwise.

        Raises:
            InvalidArgumentError: It could not.
        """

    def offer(self, context: StageContext) -> Offer:
        """What the method chooses from in a stage, by which a budget is refused before anything is trained; by default all that the stage
        offers. A method with fewer choices says so here.

        Args:
            context: The stage; its ``importance`` may be None.
        """
        return Offer(choices=context.choices, removable=context.removable)

    @abstractmethod
    def prepare(self, context: StageContext) -> Proposer:
        """Fill the tables of one stage and return its proposer."""

    def rank(self, context: StageContext, removed_blocks: Iterable[str] = ()) -> Mapping[str, npt.NDArray[np.float64]]:
        """Ranking score per unit of each group, once ``removed_blocks`` are gone; the best are kept."""
        assert context.importance is not None
        return context.importance.without(removed_blocks).units

    def finish(self, model: nn.Module, *, seed: int) -> None:  # noqa: B027
        """What the method does to the weights of the network that was cut and checked; nothing unless it says otherwise."""


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.options()
    if isinstance(value, Method):
        return {"name": value.name, **value.options()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}}
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value


METHODS = ClassRegistry[Method](Method, "method", group="latprune.methods", hint="add one with latprune.methods.register_method")
"""Methods by name."""


M = TypeVar("M", bound=type[Method])


def register_method(cls: M) -> M:
    """Class decorator: make a method available by its ``name``.

    Another package names its method in the group of entry points ``latprune.methods``.

    Raises:
        InvalidArgumentError: Another method has the name.
    """
    return METHODS.add(cls)


def registered_methods() -> tuple[str, ...]:
    """Names of all registered methods."""
    return METHODS.names()


def method_type(name: str) -> type[Method]:
    """The class of the method called ``name``.

    Raises:
        InvalidArgumentError: No such method.
    """
    return METHODS.get(name)


def get_method(method: str | Method, **options: Any) -> Method:
    """The method called ``method`` with ``options``, or ``method`` itself if it is one.

    Options may be plain values, as a command line has them: a criterion's name for ``score``, for a schedule of soft masks ``True`` or a
    mapping of its own options, and for another method (``structure``) its name or a mapping of ``name`` and its options.

    Raises:
        InvalidArgumentError: No such method, or an option that it does not have.

    Example:
        >>> from latprune.methods import get_method
        >>> get_method("mdp", score="magnitude", soft_masks={"every": 20}).schedule.every
        20
    """
    return METHODS.make(method, {name: _option(name, value) for name, value in options.items()})


def _option(name: str, value: Any) -> Any:
    if name == "score" and isinstance(value, str):
        from latprune.importance import get_criterion

        return get_criterion(value)
    if name == "structure" and isinstance(value, Mapping):
        given = {key: _option(key, entry) for key, entry in value.items()}
        return METHODS.make(given.pop("name", None), given)
    if name in ("soft_masks", "masks") and (value is True or isinstance(value, Mapping)):
        return SCHEDULES.make(SoftMasks.name, value if isinstance(value, Mapping) else {})
    return None if name == "soft_masks" and value is False else value


def selection_of(graph: ModelGraph, ranking: Mapping[str, npt.NDArray[np.float64]], proposal: Proposal, since: Selection) -> Selection:
    """The units that a proposal keeps: in every row of each group the best ``width`` columns of what is left, ties to the lower index.

    Args:
        graph: The dense network's graph.
        ranking: Group -> ``(units,)`` ranking scores.
        proposal: Widths and blocks.
        since: What earlier stages left; nothing that is gone comes back.
    """
    from latprune.importance import best_units

    kept = {}
    for name, width in proposal.widths.items():
        group = graph.groups[name]
        if width == group.columns:
            continue
        scores = np.asarray(ranking[name], dtype=np.float64)
        if name in since.kept:
            left = np.zeros(group.units, dtype=bool)
            left[since.kept[name]] = True
            scores = np.where(left, scores, -np.inf)
        kept[name] = best_units(group, scores, width)
    return Selection(kept=kept, removed_blocks=since.removed_blocks | frozenset(proposal.removed_blocks))
