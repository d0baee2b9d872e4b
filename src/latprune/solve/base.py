"""What every solver promises, the registry of solvers, and the clock that stops them."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from latprune.errors import InvalidArgumentError, LatpruneError
from latprune.problem import Problem, Solution, relative_gap
from latprune.problem.solution import OPTIMAL_GAP
from latprune.problem.types import IntArray
from latprune.registry import ClassRegistry
from latprune.solve.canonical import canonical
from latprune.solve.resolution import is_resolved

__all__ = [
    "Control",
    "SolveInterrupted",
    "Solver",
    "SolverError",
    "answer",
    "refuse_rounded_limits",
    "register",
    "solver_named",
    "solver_names",
    "solver_options",
]


_ROUNDING = 1e-12
"""Share of all terms together that a sum of them, taken in another order, stays well within."""
ROUNDING = 1e-14
"""Share of all the gains together by which a solver that adds them up in another order may be off."""


class SolverError(LatpruneError):
    """A solver failed: it crashed, or returned an answer that its own tables contradict."""


class SolveInterrupted(KeyboardInterrupt):
    """The user pressed Ctrl-C; ``solution`` is the best answer so far (status ``feasible`` or ``limit``)."""

    def __init__(self, solution: Solution) -> None:
        super().__init__("interrupted")
        self.solution = solution


class Control:
    """When to stop, and whom to tell: shared by a solver and everything that it calls.

    Attributes:
        gap: Relative gap at which an answer is good enough.
        deadline: ``time.monotonic()`` at which to stop; infinite without a limit.
    """

    def __init__(
        self, *, time_limit: float | None = None, gap: float = 0.0, progress: Callable[[float | None, float | None], None] | None = None
    ) -> None:
        if time_limit is not None and not time_limit > 0:
            raise InvalidArgumentError(f"time_limit (={time_limit}) must be a positive number of seconds, or None")
        if not 0 <= gap < math.inf:
            raise InvalidArgumentError(f"gap (={gap}) must be a relative gap of at least 0")
        self.gap = gap
        self.started = time.monotonic()
        self.deadline = math.inf if time_limit is None else self.started + time_limit
        self._progress = progress

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def report(self, gain: float | None, bound: float | None) -> None:
        """Tell the caller the best gain and bound so far."""
        if self._progress is not None:
            self._progress(gain, bound)


class Solver(ABC):
    """A way of solving a :class:`~latprune.problem.Problem`; its fields are its options.

    Contract: :meth:`run` is deterministic, does not change the problem, and returns a :class:`~latprune.problem.Solution` whose gain and
    costs were recomputed from the tables (:func:`answer` does it). ``bound`` is a proven upper bound or None. ``infeasible`` is returned
    only where proven, with the floor. On Ctrl-C it raises :class:`SolveInterrupted` with the best answer so far; past
    ``control.deadline`` it returns it.
    Raises SolverNotApplicableError for a problem that it cannot take, MissingExtraError, or SolverError where it failed.
    """

    name: ClassVar[str]
    proves: ClassVar[bool] = True
    """Whether its answers carry a bound."""

    @abstractmethod
    def run(self, problem: Problem, control: Control) -> Solution:
        """Solve ``problem``."""


SOLVERS = ClassRegistry[Solver](Solver, "solver", group="latprune.solvers", hint="add one with latprune.solve.register")
"""Solvers by name."""


def register(solver: type[Solver]) -> type[Solver]:
    """Make a solver known by its name (a class decorator; the class must be constructible without arguments).

    Another package names its solver in the group of entry points ``latprune.solvers``.

    Raises:
        InvalidArgumentError: Another solver has the name.
    """
    return SOLVERS.add(solver)


def solver_names() -> tuple[str, ...]:
    """Names that :func:`~latprune.solve.solve` accepts."""
    return SOLVERS.names()


def solver_named(name: str, **options: Any) -> Solver:
    """The solver of that name, with its default options where none are given.

    Raises:
        InvalidArgumentError: No such solver, or an option that it does not have.

    Example:
        >>> from latprune.solve import solver_named
        >>> solver_named("group-knapsack", units=20_000)
        GroupKnapsack(units=20000)
    """
    return SOLVERS.make(name, options)


def solver_options(solver: Solver) -> dict[str, Any]:
    """A solver's name and options as a JSON object."""
    names = getattr(solver, "__dataclass_fields__", {})  # another package's solver need not be a dataclass
    return {"name": solver.name, **{name: getattr(solver, name) for name in names}}


def refuse_rounded_limits(problem: Problem, costs: Mapping[str, float]) -> None:
    """Refuse a limit that ``costs`` lie so close to that rounding decides whether it is met: one near 0, where large terms cancel.

    Raises:
        InvalidArgumentError: Names the limit, and how far to move it.
    """
    for resource in problem.costs:
        if resource.limit is None:
            continue
        size = math.fsum([abs(resource.constant), abs(resource.limit), *(max(map(abs, term.extent())) for term in resource.terms)])
        if 0.0 < abs(costs[resource.name] - resource.limit) <= _ROUNDING * size:
            raise InvalidArgumentError(
                f"the limit of {resource.name!r} (={resource.limit:g}) is met or broken by rounding alone: a network's cost is "
                f"{costs[resource.name]:g}, a sum of terms of up to {size:g} in all; move the limit by {2.0 * _ROUNDING * size:.2g} or more"
            )


def answer(
    problem: Problem,
    indices: IntArray | None,
    *,
    solver: str,
    control: Control,
    bound: float | None,
    proven: bool = True,
    notes: tuple[str, ...] = (),
    rounding: float = ROUNDING,
    scale: float | None = None,
) -> Solution:
    """The solution at ``indices`` (positions into the choices of each variable), re-evaluated from the raw tables.

    Args:
        problem: The problem.
        indices: ``(len(variables),)``, or None where nothing feasible was found.
        solver: Name to report.
        control: The clock.
        bound: Proven upper bound, or None.
        proven: False where the solver rounds, so that even a closed gap is only ``feasible``.
        notes: Remarks.
        rounding: Share of all the gains together by which the bound may lie above the gain through rounding alone. It then is the gain,
            where so much more could not be another answer; otherwise it is raised by what rounding may hide.
        scale: All the gains together, as far as an answer can read them (see :mod:`~latprune.solve.trimming`); by default those of the
            tables.

    Raises:
        InvalidArgumentError: The assignment breaks a limit, and only by the rounding of its costs.
        SolverError: The assignment breaks a limit.
    """
    if indices is None:
        return Solution(solver=solver, status="limit", bound=bound, seconds=control.seconds, notes=notes)
    row = canonical(problem, np.asarray(indices, dtype=np.int64))
    found = problem.evaluate_many(row[None, :])
    gain = float(found.gain[0])
    costs = {name: float(values[0]) for name, values in found.costs.items()}
    if not found.satisfied[0]:
        refuse_rounded_limits(problem, costs)
        raise SolverError(f"solver {solver!r} returned an answer that breaks a limit: its costs are {costs}")
    if bound is not None:
        # The bound and the gain are sums of the same numbers in two orders.
        error = rounding * (sum(max(map(abs, t.extent())) for t in problem.gains) if scale is None else scale)
        if is_resolved(error, problem.evaluator.read_gain(row), lambda: min((t.step() for t in problem.gains), default=math.inf)):
            bound = gain if bound - gain <= error else bound
        else:
            # A search adds up once per variable.
            bound = max(bound, gain) + (1 + len(problem.variables)) * error
    gap = relative_gap(gain, bound)
    status = "optimal" if proven and gap is not None and gap <= OPTIMAL_GAP else "feasible"
    return Solution(
        solver=solver,
        status=status,
        assignment=problem.evaluator.assignment(row),
        gain=gain,
        bound=bound,
        gap=gap,
        costs=costs,
        seconds=control.seconds,
        notes=notes,
    )
