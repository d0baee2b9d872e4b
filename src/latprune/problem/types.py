"""The factor graph of a pruning problem: variables, terms over them, and resources with limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latprune.problem.rules import ProblemError

if TYPE_CHECKING:
    from latprune.problem.evaluation import BatchEvaluation, Evaluation, Evaluator

__all__ = ["Axis", "Problem", "Resource", "Sum", "SumMember", "Term", "Variable", "check_size", "is_satisfied", "smallest_step"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

KINDS = ("width", "block")
MAX_AXES = 3
LARGEST_WIDTH = 2**40
"""Far above any layer, far below where sums of widths would overflow 64 bits."""
LIMIT_TOLERANCE = 1e-9
"""A resource is satisfied up to this share of its limit; part of the file format."""

LARGEST_NUMBER = 1e100
"""Far above anything measured or counted; sums of such numbers, products of three and quotients stay far within floating point."""
EQUAL = 1e-15
"""Relative difference below which two entries differ by rounding alone."""


def is_satisfied(cost: float, limit: float | None) -> bool:
    """Whether ``cost`` meets ``limit``: ``cost <= limit + 1e-9 * |limit|``; always true without a limit, unless the cost is infinite."""
    if limit is None:
        return cost < math.inf
    return cost <= limit + LIMIT_TOLERANCE * abs(limit) and cost < math.inf


def smallest_step(table: FloatArray) -> float:
    """The smallest number by which an entry of ``table`` decides anything in a sum; infinite where none does.

    It is the smaller of the smallest entry that is not 0 and the distance from the highest entry to the next lower one; infinite entries,
    and differences that are rounding alone, do not count.
    """
    finite = table[np.isfinite(table)]
    if not finite.size:
        return math.inf
    highest = float(finite.max())
    least = float(np.abs(finite[finite != 0.0]).min(initial=math.inf))
    lower = float(finite[finite < highest - EQUAL * abs(highest)].max(initial=-math.inf))
    return min(least, highest - lower)


def check_size(value: float, path: str, what: str) -> None:
    """Refuse a number so large that sums and products of its like overflow; an infinite one is another rule's.

    Raises:
        ProblemError: It is above ``LARGEST_NUMBER``, without its sign.
    """
    if LARGEST_NUMBER < abs(value) < math.inf:
        raise ProblemError(
            f"{what} (={value:g}) must lie between {-LARGEST_NUMBER:g} and {LARGEST_NUMBER:g}, so that sums stay finite; choose "
            "another unit, or a smaller number where it stands for what is not wanted",
            path=path,
        )


def _check_name(value: object, path: str) -> None:
    if not isinstance(value, str) or not value:
        raise ProblemError(f"a name (={value!r}) must be a non-empty string", path=path)


def _check_increasing(values: Sequence[int], path: str, what: str) -> None:
    if not values:
        raise ProblemError(f"{what} (=[]) must hold at least one integer", path=path)
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ProblemError(f"{what} must be integers, not {value!r}", path=f"{path}[{i}]")
        if value < 0:
            raise ProblemError(f"{what} must not be negative (={value})", path=f"{path}[{i}]")
        if value > LARGEST_WIDTH:
            raise ProblemError(f"{what} must be at most 2**40 (={value})", path=f"{path}[{i}]")
        if i and value <= values[i - 1]:
            raise ProblemError(f"{what} must increase: {value} follows {values[i - 1]}", path=f"{path}[{i}]")


def _names(value: Any) -> tuple[str, ...]:
    """A gate as given by a caller (None, one name, several) as a tuple."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _plain_ints(values: Iterable[Any]) -> tuple[int, ...]:
    """NumPy integers made plain; anything else left for the check to name."""
    return tuple(int(v) if isinstance(v, np.integer) else v for v in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A decision: the width of a channel group, or whether a removable block stays.

    Attributes:
        name: Unique name.
        kind: ``width`` or ``block``.
        choices: Increasing integers that may be chosen; exactly ``(0, 1)`` for a block (0: removed).
    """

    name: str
    kind: str = "width"
    choices: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", _plain_ints(self.choices))
        _check_name(self.name, "name")
        if self.kind not in KINDS:
            raise ProblemError(f"kind (={self.kind!r}) must be one of {', '.join(KINDS)}", path="kind")
        _check_increasing(self.choices, "choices", "choices")
        if self.kind == "block" and self.choices != (0, 1):
            raise ProblemError(f"choices (={list(self.choices)}) of a block must be exactly [0, 1]", path="choices")


@dataclass(frozen=True, slots=True, kw_only=True)
class SumMember:
    """One summand of a :class:`Sum`: the value of variable ``name``, or 0 where one of the blocks in ``gate`` is 0."""

    name: str
    gate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "gate", _names(self.gate))
        _check_name(self.name, "name")
        _check_gate(self.gate, "gate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """An axis that reads a total of widths (concat, partial overlap, fused projections).

    Attributes:
        members: What is added; plain names are accepted and a name may repeat (it then counts as often).
        at: Increasing totals, one per table entry. A total counts as the smallest entry of ``at`` that is not below it.
    """

    members: tuple[SumMember, ...]
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        members: tuple[Any, ...] = tuple(self.members)
        object.__setattr__(self, "members", tuple(SumMember(name=m) if isinstance(m, str) else m for m in members))
        object.__setattr__(self, "at", _plain_ints(self.at))
        if not self.members:
            raise ProblemError("a sum (=[]) must have at least one member", path="sum")
        _check_increasing(self.at, "at", "totals")


Axis = str | Sum
"""An axis of a table: a variable's name, or a sum of widths."""


def _check_gate(gate: tuple[str, ...], path: str) -> None:
    for i, name in enumerate(gate):
        _check_name(name, f"{path}[{i}]")
    if len(set(gate)) < len(gate):
        raise ProblemError(f"gate (={list(gate)}) must not name a block twice", path=path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Term:
    """A table over one to three axes, counted only while all blocks in ``gate`` are present.

    Attributes:
        name: For people (the kernel that it stands for); need not be unique.
        over: Axes of ``table``, in order.
        table: One dimension per axis; in the unit of its resource (costs) or of the importance (gains). ``+inf`` in a cost and ``-inf``
            in a gain forbid the assignments that read it.
        gate: Names of blocks.
    """

    name: str
    over: tuple[Axis, ...]
    table: FloatArray
    gate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        over: Any = self.over
        object.__setattr__(self, "over", (over,) if isinstance(over, str | Sum) else tuple(over))
        object.__setattr__(self, "gate", _names(self.gate))
        table = np.array(self.table, dtype=np.float64)
        table.setflags(write=False)
        object.__setattr__(self, "table", table)
        if not isinstance(self.name, str):
            raise ProblemError(f"name (={self.name!r}) must be a string", path="name")
        if not 1 <= len(self.over) <= MAX_AXES:
            raise ProblemError(f"over names {len(self.over)} axes; a term has 1 to {MAX_AXES}", path="over")
        bare = [axis for axis in self.over if isinstance(axis, str)]
        if len(set(bare)) < len(bare):
            raise ProblemError(f"over (={bare}) must not name a variable on two axes", path="over")
        _check_gate(self.gate, "gate")
        if table.ndim != len(self.over):
            raise ProblemError(f"table has {table.ndim} dimensions; over names {len(self.over)} axes", path="table")
        if np.isnan(table).any():
            place = "".join(f"[{i}]" for i in np.argwhere(np.isnan(table))[0])
            raise ProblemError("a table entry must be a number, not NaN", path=f"table{place}")
        low, high = self.extent()
        for value in (low, high):
            if abs(value) > LARGEST_NUMBER:
                place = "".join(f"[{i}]" for i in np.argwhere(table == value)[0])
                check_size(value, f"table{place}", "a table entry")

    @property
    def shape(self) -> tuple[int, ...]:
        """Entries along each axis of ``over``."""
        return self.table.shape

    def read(self, position: tuple[IntArray, ...]) -> FloatArray:
        """Entries at ``position``: an integer array per axis, broadcast against one another."""
        return self.table[position]

    def cut(self, pieces: tuple[slice, ...]) -> Term:
        """The same term over a slice of each axis."""
        return replace(self, table=self.table[pieces])

    def times(self, factor: float) -> Term:
        """The same term with every entry multiplied."""
        return replace(self, table=factor * self.table)

    def extent(self) -> tuple[float, float]:
        """Lowest and highest finite entry; ``(0, 0)`` where there is none."""
        finite = self.table[np.isfinite(self.table)]
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)

    def step(self) -> float:
        """The smallest number by which an entry decides anything; see :func:`smallest_step`."""
        return smallest_step(self.table)

    def find(self, value: float) -> tuple[int, ...] | None:
        """Place of the first entry that equals ``value``, or None."""
        if not (self.table == value).any():
            return None
        return tuple(int(i) for i in np.argwhere(self.table == value)[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resource:
    """Something that a network uses up: latency on an engine, parameters, FLOPs, memory.

    Attributes:
        name: Unique name (the ``resource`` of the file).
        unit: For people (``ms``).
        limit: Highest use allowed, or None where the resource is only reported.
        constant: Use that does not depend on any choice.
        terms: What the choices add.
    """

    name: str
    unit: str = ""
    limit: float | None = None
    constant: float = 0.0
    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        _check_name(self.name, "resource")
        if not isinstance(self.unit, str):
            raise ProblemError(f"unit (={self.unit!r}) must be a string", path="unit")
        object.__setattr__(self, "constant", float(self.constant))
        if self.limit is not None:
            object.__setattr__(self, "limit", float(self.limit))
            if not math.isfinite(self.limit):
                raise ProblemError(f"limit (={self.limit}) must be finite; use None for no limit", path="limit")
        if not math.isfinite(self.constant):
            raise ProblemError(f"constant (={self.constant}) must be finite", path="constant")
        check_size(self.constant, "constant", "constant")
        if self.limit is not None:
            check_size(self.limit, "limit", "limit")
        _check_infinite(self.terms, "terms", forbidden=math.inf)


def _check_infinite(terms: tuple[Term, ...], path: str, *, forbidden: float) -> None:
    for i, term in enumerate(terms):
        found = term.find(-forbidden)
        if found is not None:
            place = "".join(f"[{k}]" for k in found)
            raise ProblemError(
                f"a table entry (={-forbidden}) must be finite, or {forbidden} to forbid it", path=f"{path}[{i}].table{place}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Choose one value per variable so that the sum of ``gains`` is largest and every resource meets its limit.

    ``maximise sum_t [gates of t are 1] * table_t[axes of t]`` subject to ``constant_r + sum of r's terms <= limit_r`` for each resource
    ``r`` (MDP eq. 8 and 9 with tables over any number of axes up to three).

    Attributes:
        variables: The decisions; may be empty.
        gains: Terms of the objective.
        costs: One or more resources.

    Example:
        >>> from latprune.problem import Problem, Resource, Term, Variable
        >>> problem = Problem(
        ...     variables=(Variable(name="conv", choices=(8, 16)),),
        ...     gains=(Term(name="conv", over=("conv",), table=[1.0, 1.5]),),
        ...     costs=(Resource(name="latency", unit="ms", limit=2.0, terms=(Term(name="conv", over=("conv",), table=[1.0, 3.0]),)),),
        ... )
        >>> problem.evaluate({"conv": 16}).satisfied
        False
    """

    variables: tuple[Variable, ...]
    gains: tuple[Term, ...]
    costs: tuple[Resource, ...]
    _index: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    _evaluator: list[Evaluator] = field(init=False, repr=False, default_factory=list)

    def __repr__(self) -> str:
        """One line; tables are not shown."""
        limits = ", ".join(row.name if row.limit is None else f"{row.name} <= {row.limit:.6g} {row.unit}".strip() for row in self.costs)
        return f"Problem({len(self.variables)} variables, {len(self.gains)} gains, {limits})"

    def __post_init__(self) -> None:
        for name in ("variables", "gains", "costs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for i, variable in enumerate(self.variables):
            if variable.name in self._index:
                raise ProblemError(
                    f"name (={variable.name!r}) is taken by variables[{self._index[variable.name]}]", path=f"variables[{i}].name"
                )
            self._index[variable.name] = i
        if not self.costs:
            raise ProblemError("costs (=[]) must hold at least one resource", path="costs")
        names: set[str] = set()
        for i, resource in enumerate(self.costs):
            if resource.name in names:
                raise ProblemError(f"resource (={resource.name!r}) appears twice", path=f"costs[{i}].resource")
            names.add(resource.name)
        _check_infinite(self.gains, "gains", forbidden=-math.inf)
        for i, term in enumerate(self.gains):
            self._check_term(term, f"gains[{i}]")
        for i, resource in enumerate(self.costs):
            for j, term in enumerate(resource.terms):
                self._check_term(term, f"costs[{i}].terms[{j}]")

    def _check_variable(self, name: str, path: str) -> Variable:
        if name not in self._index:
            raise ProblemError(f"variable {name!r} is not among the variables", path=path)
        return self.variables[self._index[name]]

    def _check_blocks(self, gate: tuple[str, ...], path: str) -> None:
        for i, name in enumerate(gate):
            place = path if len(gate) == 1 else f"{path}[{i}]"
            if self._check_variable(name, place).kind != "block":
                raise ProblemError(f"gate {name!r} must be a variable of kind block", path=place)

    def _check_term(self, term: Term, path: str) -> None:
        self._check_blocks(term.gate, f"{path}.gate")
        for d, axis in enumerate(term.over):
            place = f"{path}.over[{d}]"
            if isinstance(axis, str):
                size = len(self._check_variable(axis, place).choices)
                what = f"variable {axis!r} has {size} choices"
            else:
                largest = 0
                for k, member in enumerate(axis.members):
                    largest += self._check_variable(member.name, f"{place}.sum[{k}]").choices[-1]
                    self._check_blocks(member.gate, f"{place}.sum[{k}].gate")
                if largest > axis.at[-1]:
                    raise ProblemError(f"at ends at {axis.at[-1]}; it must cover the largest reachable total {largest}", path=f"{place}.at")
                size = len(axis.at)
                what = f"its at has {size} entries"
            if term.shape[d] != size:
                raise ProblemError(f"table has {term.shape[d]} entries along axis {d}; {what}", path=f"{path}.table")

    def index_of(self, name: str) -> int:
        """Position of variable ``name`` in :attr:`variables`."""
        return self._index[self._check_variable(name, "variables").name]

    @property
    def evaluator(self) -> Evaluator:
        """The compiled form that evaluates assignments; made once."""
        from latprune.problem.evaluation import Evaluator

        if not self._evaluator:
            self._evaluator.append(Evaluator(self))
        return self._evaluator[0]

    def evaluate(self, assignment: Mapping[str, int]) -> Evaluation:
        """Gain, costs and satisfaction of one assignment (variable name -> chosen value).

        Raises:
            InvalidArgumentError: A variable is missing or unknown, or its value is not one of its choices.
        """
        return self.evaluator.one(assignment)

    def evaluate_many(self, indices: IntArray) -> BatchEvaluation:
        """Evaluate ``(n, len(variables))`` positions into each variable's choices at once."""
        return self.evaluator.many(indices)

    def replace_limits(self, limits: Mapping[str, float | None]) -> Problem:
        """The same problem with other limits (resource name -> limit)."""
        unknown = set(limits) - {r.name for r in self.costs}
        if unknown:
            raise ProblemError(f"no resource is named {sorted(unknown)[0]!r}; there are {[r.name for r in self.costs]}", path="costs")
        costs = tuple(
            Resource(name=r.name, unit=r.unit, limit=limits[r.name], constant=r.constant, terms=r.terms) if r.name in limits else r
            for r in self.costs
        )
        return Problem(variables=self.variables, gains=self.gains, costs=costs)

    def to_dict(self) -> dict[str, Any]:
        """The problem as a JSON object (format version 1). Raises InvalidArgumentError where a table holds an infinite entry."""
        from latprune.problem.writer import problem_to_dict

        return problem_to_dict(self)

    def to_json(self) -> str:
        """The problem as the text of a problem file."""
        from latprune.problem.writer import problem_to_json

        return problem_to_json(self)

    def write(self, path: str | Path) -> None:
        """Write a problem file (atomically: a reader never sees half of it)."""
        from latprune.problem.writer import write_text

        write_text(path, self.to_json())

    @classmethod
    def from_json(cls, text: str | bytes) -> Problem:
        """Read the text of a problem file. Raises FileFormatError naming the path of the offending value."""
        from latprune.problem.reader import problem_from_json

        return problem_from_json(text)

    @classmethod
    def read(cls, path: str | Path) -> Problem:
        """Read a problem file. Raises FileFormatError naming the path of the offending value."""
        from latprune.file_errors import naming
        from latprune.problem.reader import problem_from_json, read_text

        with naming(path):
            return problem_from_json(read_text(path))
