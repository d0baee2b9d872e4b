"""Problems and solutions written as JSON (format version 1)."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from latprune.problem.product import ProductTerm
from latprune.problem.rules import ProblemError
from latprune.problem.types import Axis, Problem, Sum, SumMember, Term

__all__ = ["FORMAT_VERSION", "problem_to_dict", "problem_to_json", "write_text"]

FORMAT_VERSION = 1
PROBLEM_FORMAT = "latprune/problem"
SOLUTION_FORMAT = "latprune/solution"
FRONTIER_FORMAT = "latprune/frontier"


def _gate(gate: tuple[str, ...]) -> str | list[str]:
    return gate[0] if len(gate) == 1 else list(gate)


def _member(member: SumMember) -> str | dict[str, Any]:
    return {"name": member.name, "gate": _gate(member.gate)} if member.gate else member.name


def _axis(axis: Axis) -> str | dict[str, Any]:
    if isinstance(axis, Sum):
        return {"sum": [_member(m) for m in axis.members], "at": list(axis.at)}
    return axis


def _term(term: Term, path: str) -> dict[str, Any]:
    if isinstance(term, ProductTerm):
        result: dict[str, Any] = {"name": term.name, "over": [_axis(a) for a in term.over]}
        if term.gate:
            result["gate"] = _gate(term.gate)
        result["product"] = {"coefficient": term.coefficient, "factors": [f.tolist() for f in term.factors]}
        return result
    if not np.isfinite(term.table).all():
        place = "".join(f"[{i}]" for i in np.argwhere(~np.isfinite(term.table))[0])
        raise ProblemError("a forbidden (infinite) entry cannot be written to a file; drop the choice instead", path=f"{path}.table{place}")
    result = {"name": term.name, "over": [_axis(a) for a in term.over]}
    if term.gate:
        result["gate"] = _gate(term.gate)
    result["table"] = term.table.tolist()
    return result


def problem_to_dict(problem: Problem) -> dict[str, Any]:
    """The problem as a JSON object.

    Raises:
        ProblemError: A table holds an infinite entry, which the file format has no word for.
    """
    return {
        "format": PROBLEM_FORMAT,
        "version": FORMAT_VERSION,
        "variables": [{"name": v.name, "kind": v.kind, "choices": list(v.choices)} for v in problem.variables],
        "gains": [_term(t, f"gains[{i}]") for i, t in enumerate(problem.gains)],
        "costs": [
            {
                "resource": r.name,
                "unit": r.unit,
                "limit": r.limit,
                "constant": r.constant,
                "terms": [_term(t, f"costs[{i}].terms[{j}]") for j, t in enumerate(r.terms)],
            }
            for i, r in enumerate(problem.costs)
        ],
    }


def problem_to_json(problem: Problem) -> str:
    """The text of a problem file."""
    return json.dumps(problem_to_dict(problem), allow_nan=False) + "\n"


def finite_or_null(value: float | None) -> float | None:
    """JSON knows no infinity: an unknown or infinite number is null."""
    return value if value is not None and math.isfinite(value) else None


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` through a temporary file beside it, so that a reader never sees half of it."""
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
