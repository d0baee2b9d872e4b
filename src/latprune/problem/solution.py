"""The answer to a problem: an assignment with its value, a bound on any answer's value, and what it uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latprune.problem.rules import ProblemError
from latprune.problem.writer import FORMAT_VERSION, SOLUTION_FORMAT, finite_or_null, write_text

__all__ = ["OPTIMAL_GAP", "STATUSES", "Solution", "relative_gap"]

STATUSES = ("optimal", "feasible", "infeasible", "limit")
OPTIMAL_GAP = 1e-9
"""Largest relative gap that is called optimal; part of the file format."""


def relative_gap(gain: float | None, bound: float | None) -> float | None:
    """``(bound - gain) / max(|bound|, |gain|)``; 0 when both are 0, None without a gain or a bound."""
    if gain is None or bound is None:
        return None
    size = max(abs(gain), abs(bound))
    return (bound - gain) / size if size > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A solver's answer, with ``gain`` and ``costs`` recomputed from the problem's tables.

    Attributes:
        solver: Name of the solver; ``exact+highs`` where ``exact`` handed its reduced problem over.
        status: ``optimal`` (proven), ``feasible``, ``infeasible`` (proven) or ``limit`` (stopped with nothing feasible found).
        assignment: Variable name -> value; None without an answer.
        gain: Sum of the gains; None without an answer.
        bound: Proven upper bound on the gain of any feasible answer; None for a solver that has none.
        gap: ``(bound - gain) / max(|bound|, |gain|)``; None without a bound.
        costs: Resource name -> use; None without an answer.
        seconds: Wall-clock seconds of the solver.
        floor: Only for ``infeasible``: resource name -> lowest value that it can reach alone (``inf`` where nothing is allowed at all).
        joint: Only for ``infeasible``: every resource could meet its limit alone, the combination cannot.
        notes: Remarks for people (what was handed over and why, how many nodes); not part of the file.
    """

    solver: str
    status: str
    assignment: Mapping[str, int] | None = None
    gain: float | None = None
    bound: float | None = None
    gap: float | None = None
    costs: Mapping[str, float] | None = None
    seconds: float = 0.0
    floor: Mapping[str, float] | None = None
    joint: bool = False
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """One line; the assignment is not shown."""
        known = [
            f"{name}={value:.6g}" for name, value in (("gain", self.gain), ("bound", self.bound), ("gap", self.gap)) if value is not None
        ]
        return f"Solution({', '.join([self.solver, self.status, *known])}, {self.seconds:.2f} s)"

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ProblemError(f"status (={self.status!r}) must be one of {', '.join(STATUSES)}", path="status")
        answered = self.status in ("optimal", "feasible")
        for name in ("assignment", "gain", "costs"):
            if (getattr(self, name) is not None) != answered:
                raise ProblemError(f"status {self.status!r} {'needs' if answered else 'has no'} {name}", path=name)
        if self.status == "optimal" and (self.gap is None or self.gap > OPTIMAL_GAP):
            raise ProblemError(f"status 'optimal' needs a gap of at most {OPTIMAL_GAP}, not {self.gap}", path="gap")
        if (self.floor is not None) != (self.status == "infeasible"):
            raise ProblemError("floor belongs to status 'infeasible' and only there", path="floor")

    def to_dict(self) -> dict[str, Any]:
        """The solution as a JSON object (format version 1)."""
        result: dict[str, Any] = {
            "format": SOLUTION_FORMAT,
            "version": FORMAT_VERSION,
            "solver": self.solver,
            "status": self.status,
            "assignment": None if self.assignment is None else dict(self.assignment),
            "gain": self.gain,
            "bound": finite_or_null(self.bound),
            "gap": finite_or_null(self.gap),
            "costs": None if self.costs is None else dict(self.costs),
            "seconds": self.seconds,
        }
        if self.floor is not None:
            result["floor"] = {name: finite_or_null(value) for name, value in self.floor.items()}
            if self.joint:
                result["joint"] = True
        return result

    def to_json(self) -> str:
        """The text of a solution file."""
        return json.dumps(self.to_dict(), allow_nan=False) + "\n"

    def write(self, path: str | Path) -> None:
        """Write a solution file (atomically)."""
        write_text(path, self.to_json())

    @classmethod
    def from_json(cls, text: str | bytes) -> Solution:
        """Read the text of a solution file. Raises FileFormatError naming the path of the offending value."""
        from latprune.problem.reader import solution_from_json

        return solution_from_json(text)

    @classmethod
    def read(cls, path: str | Path) -> Solution:
        """Read a solution file. Raises FileFormatError naming the path of the offending value."""
        from latprune.file_errors import naming
        from latprune.problem.reader import read_text, solution_from_json

        with naming(path):
            return solution_from_json(read_text(path))
