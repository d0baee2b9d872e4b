"""The contract of a pruning method: from a stage's graph, importance and tables to a proposer of networks under a limit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError, TableError
from latprune.graph.types import Selection
from latprune.registry import Registry

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.importance import Importance
    from latprune.latency import LatencyTables
    from latprune.problem import Problem, Solution

__all__ = ["Method", "Proposal", "Proposer", "StageContext", "get_method", "register_method", "registered_methods", "selection_of"]


LAYERS = ("conv", "depthwise", "linear")
"""Kinds of kernel that every engine spends time on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageContext:
    """All that a method may look at in one stage.

    Attributes:
        graph: The current network's graph (earlier stages are already cut).
        importance: Scores of its units; None for a method that needs none.
        tables: Latency tables of the current network; None for a budget on multiply-adds or parameters.
        resource: ``latency``, ``flops`` or ``params``.
        choices: Widths on offer per group, ending with the current width.
        dense: The current network's value of the resource, as the tables predict it.
        solver: Name of the solver to use, or None for the method's own.
        time_limit: Seconds that one solve may take.
        seed: Seed of everything random.
        measure_alone: Times the whole network with each group's width changed alone (``measure_unary_contributions``): group -> widths in,
            group -> ``(widths,)`` milliseconds against the current network out. None where nothing is measured.
    """

    graph: ModelGraph
    importance: Importance | None
    tables: LatencyTables | None
    resource: str
    choices: Mapping[str, Sequence[int]]
    dense: float
    solver: str | None = None
    time_limit: float | None = None
    seed: int = 0
    measure_alone: Callable[[Mapping[str, Sequence[int]]], Mapping[str, npt.NDArray[np.float64]]] | None = None

    def __post_init__(self) -> None:
        if self.tables is not None:
            _refuse_holes(self.graph, set(self.tables.kernels))

    @property
    def removable(self) -> tuple[str, ...]:
        """Blocks that may be removed."""
        return tuple(block.name for block in self.graph.blocks.values() if block.removable)

    def predict(self, widths: Mapping[str, int], removed_blocks: Sequence[str] = ()) -> float:
        """The resource's predicted value at ``widths`` (group name -> width) with ``removed_blocks`` gone."""
        if self.resource == "flops":
            return self.graph.macs(widths, removed_blocks)
        if self.resource == "params":
            return float(self.graph.parameters(widths, removed_blocks))
        assert self.tables is not None
        return self.tables.predict(widths, removed_blocks)


def _refuse_holes(graph: ModelGraph, priced: set[str]) -> None:
    """A layer without an entry would count as free, and be kept whole for nothing."""
    holes = [kernel.name for kernel in graph.kernels.values() if kernel.kind in LAYERS and kernel.name not in priced]
    if holes:
        named = ", ".join(holes[:4]) + (", ..." if holes[4:] else "")
        raise TableError(
            f"the latency tables have no entry for {len(holes)} of the network's layers ({named}); "
            "they belong to another network or are not complete: build them again"
        )


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

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal networks."""
        return tuple(sorted(self.widths.items())), tuple(sorted(self.removed_blocks))


class Proposer(ABC):
    """Finds the best network under a limit; called again with a corrected limit when the measurement disagrees with the prediction."""

    @abstractmethod
    def propose(self, limit: float) -> Proposal:
        """The best network whose predicted value is at most ``limit``.

        Raises:
            BudgetInfeasibleError: No network is under ``limit``; the error carries the lowest predicted value.
        """

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
    """A pruning method: which importance, which costs, which solver, how many stages."""

    name: ClassVar[str]
    stages: int = 1

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise InvalidArgumentError(f"stages (={self.stages}) must be at least 1")

    def options(self) -> dict[str, Any]:
        """The method's options as a JSON object."""
        found: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            found[entry.name] = (
                {"type": type(value).__name__, **asdict(value)} if is_dataclass(value) and not isinstance(value, type) else value
            )
        return found

    @property
    @abstractmethod
    def importance(self) -> object | None:
        """The importance that the method ranks and sums, or None if it needs none."""

    @abstractmethod
    def prepare(self, context: StageContext) -> Proposer:
        """Fill the tables of one stage and return its proposer."""

    def stage_limit(self, *, stage: int, dense: float, limit: float) -> float:
        """Limit of stage ``stage`` (1-based) on the way from ``dense`` to ``limit``: ``dense - (dense - limit) * stage / stages``."""
        return dense - (dense - limit) * stage / self.stages

    def rank(self, context: StageContext) -> Mapping[str, np.ndarray]:
        """Ranking score per unit of each group; the best are kept."""
        assert context.importance is not None
        return context.importance.units


METHODS = Registry[Callable[..., Method]]("method", group="latprune.methods", hint="add one with latprune.methods.register_method")
"""Methods by name."""


M = TypeVar("M", bound="type[Method]")


def register_method(cls: M) -> M:
    """Class decorator: make a method available by its ``name``.

    Another package names its method in the group of entry points ``latprune.methods``.

    Raises:
        InvalidArgumentError: Another method has the name.
    """
    METHODS.register(cls.name, cls)
    return cls


def registered_methods() -> tuple[str, ...]:
    """Names of all registered methods."""
    return METHODS.names()


def get_method(method: str | Method, **options: Any) -> Method:
    """The method called ``method`` with ``options``, or ``method`` itself if it is one.

    Raises:
        InvalidArgumentError: No such method, or an option that it does not have.
    """
    if isinstance(method, Method):
        if options:
            raise InvalidArgumentError(f"options {sorted(options)} cannot be combined with a method object; set them on {method!r}")
        return method
    factory = METHODS.get(method)
    try:
        return factory(**options)
    except TypeError as error:
        raise InvalidArgumentError(f"method {method!r}: {error}") from error


def selection_of(graph: ModelGraph, ranking: Mapping[str, np.ndarray], proposal: Proposal) -> Selection:
    """The units that a proposal keeps: in every row of each group the best ``width`` columns, ties to the lower index."""
    from latprune.importance import best_units

    kept = {}
    for name, width in proposal.widths.items():
        group = graph.groups[name]
        if width == group.columns:
            continue
        kept[name] = best_units(group, np.asarray(ranking[name], dtype=np.float64), width)
    return Selection(kept=kept, removed_blocks=frozenset(proposal.removed_blocks))
