"""What was chosen: the width of each group, the networks that the search measured, and what the solver said."""

from __future__ import annotations

from dataclasses import dataclass

from latprune.export.record import CorrectionRecord, ResultRecord

__all__ = ["CandidateRow", "SolverFacts", "WidthRow", "compute_candidates", "compute_solver", "compute_widths"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthRow:
    """Width of one channel group before and after; ``removed`` where it went with its block."""

    name: str
    kind: str
    dense: int
    kept: int
    removed: bool

    @property
    def share(self) -> float:
        """Kept over dense."""
        return self.kept / self.dense


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRow:
    """One network of the search, milliseconds: the round that first led to it, its limit, and how many later rounds led to it again."""

    first: int
    again: int
    limit_ms: float
    predicted_ms: float
    measured_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverFacts:
    """What the solver said: its name, ``optimal`` or another status, gain, bound, gap and seconds where it gave them."""

    name: str
    status: str
    gain: float | None
    bound: float | None
    gap: float | None
    seconds: float | None
    variables: int | None


def compute_widths(record: ResultRecord) -> tuple[WidthRow, ...]:
    """One row per channel group in the order of the network; widths count all rows of a group."""
    removed = set(record.blocks_removed)
    return tuple(
        WidthRow(
            name=group.name,
            kind=group.kind,
            dense=group.dense * group.rows,
            kept=group.kept * group.rows,
            removed=not removed.isdisjoint(group.blocks),
        )
        for group in record.groups
    )


def compute_candidates(record: ResultRecord) -> tuple[CandidateRow, ...]:
    """The networks that the search measured, each once, in the order in which it came to them.

    A round whose limit leads to a network that was measured before takes that measurement over, so equal ones are of one network.
    """
    rounds: dict[float, list[CorrectionRecord]] = {}
    for item in record.corrections:
        rounds.setdefault(item.measured_ms, []).append(item)
    return tuple(
        CandidateRow(
            first=items[0].iteration,
            again=len(items) - 1,
            limit_ms=items[0].limit_ms,
            predicted_ms=items[0].predicted_ms,
            measured_ms=items[0].measured_ms,
        )
        for items in rounds.values()
    )


def compute_solver(record: ResultRecord) -> SolverFacts | None:
    """What the solution section says, or None where the method solved nothing."""
    solution = record.solution
    if solution is None:
        return None
    variables = record.problem.get("variables") if record.problem is not None else None
    return SolverFacts(
        name=str(solution.get("solver", "")),
        status=str(solution.get("status", "")),
        gain=solution.get("gain"),
        bound=solution.get("bound"),
        gap=solution.get("gap"),
        seconds=solution.get("seconds"),
        variables=len(variables) if isinstance(variables, list) else None,
    )
