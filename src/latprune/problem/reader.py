"""Problem and solution files read and checked; every error names the path of the offending value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from latprune.errors import FileFormatError
from latprune.problem.product import ProductTerm
from latprune.problem.rules import ProblemError, join_path
from latprune.problem.solution import Solution
from latprune.problem.types import Axis, FloatArray, Problem, Resource, Sum, SumMember, Term, Variable
from latprune.problem.writer import FORMAT_VERSION, PROBLEM_FORMAT, SOLUTION_FORMAT

__all__ = ["problem_from_json", "read_text", "solution_from_dict", "solution_from_json"]

T = TypeVar("T")


def read_text(path: str | Path) -> str:
    """The text of a file. Raises FileFormatError where it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except OSError as error:
        raise FileFormatError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{str(path)!r} is not UTF-8: {error.reason} at byte {error.start}") from error


def parse_json(text: str | bytes) -> Any:
    """JSON without a key twice in an object. Python's NaN and Infinity pass here and are refused, with their path, where they stand."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            keys = [key for key, _ in items]
            raise FileFormatError(f"key {next(k for k in keys if keys.count(k) > 1)!r} appears twice in one object")
        return result

    try:
        # Bytes may begin with a byte order mark by themselves.
        return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise FileFormatError("not a problem or solution: lists are nested too deeply") from error


def check_object(value: Any, path: str, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """``value`` as an object with all ``required`` keys and no others than ``optional``."""
    if not isinstance(value, dict):
        raise FileFormatError(f"must be an object, not {_kind(value)}", path=path)
    required = tuple(required)
    allowed = (*required, *optional)
    for key in value:
        if key not in allowed:
            raise FileFormatError(f"unknown key; allowed are {', '.join(allowed)}", path=join_path(path, key))
    for key in required:
        if key not in value:
            raise FileFormatError("this key is missing", path=join_path(path, key))
    return value


def check_header(value: Any, name: str) -> None:
    """Format and version, checked before the keys so that a later version is called that and not a list of unknown keys."""
    if not isinstance(value, dict):
        raise FileFormatError(f"the file must hold one object, not {_kind(value)}")
    if value.get("format") != name:
        raise FileFormatError(f"must be {name!r}, not {value.get('format')!r}", path="format")
    version = value.get("version")
    if isinstance(version, bool) or version != FORMAT_VERSION or not isinstance(version, int):
        raise FileFormatError(f"must be {FORMAT_VERSION}, the one version that this latprune reads, not {version!r}", path="version")


def check_list(value: Any, path: str) -> list[Any]:
    """``value`` as a list."""
    if not isinstance(value, list):
        raise FileFormatError(f"must be a list, not {_kind(value)}", path=path)
    return value


def check_string(value: Any, path: str) -> str:
    """``value`` as a string."""
    if not isinstance(value, str):
        raise FileFormatError(f"must be a string, not {_kind(value)}", path=path)
    return value


def check_number(value: Any, path: str) -> float:
    """``value`` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FileFormatError(f"must be a number, not {_kind(value)}", path=path)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise FileFormatError("must be a finite number", path=path)
    return number


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _build(make: Callable[[], T], path: str) -> T:
    """Run a constructor; the rule that it finds broken becomes an error of the file, at its path."""
    try:
        return make()
    except ProblemError as error:
        raise FileFormatError(error.rule, path=join_path(path, error.path)) from error


def _integers(value: Any, path: str) -> tuple[int, ...]:
    for i, item in enumerate(check_list(value, path)):
        if isinstance(item, bool) or not isinstance(item, int):
            raise FileFormatError(
                f"must be an integer, not {item!r}" if isinstance(item, float) else f"must be an integer, not {_kind(item)}",
                path=f"{path}[{i}]",
            )
    return tuple(value)


def _gate(value: Any, path: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise FileFormatError(f"must be null, a block's name or a list of names, not {_kind(value)}", path=path)
    return tuple(check_string(item, f"{path}[{i}]") for i, item in enumerate(value))


def _member(value: Any, path: str) -> SumMember:
    if isinstance(value, str):
        return _build(lambda: SumMember(name=value), path)
    item = check_object(value, path, ("name",), ("gate",))
    gate = _gate(item.get("gate"), f"{path}.gate")
    return _build(lambda: SumMember(name=check_string(item["name"], f"{path}.name"), gate=gate), path)


def _axis(value: Any, path: str) -> Axis:
    if isinstance(value, str):
        return value
    item = check_object(value, path, ("sum", "at"))
    members = tuple(_member(m, f"{path}.sum[{i}]") for i, m in enumerate(check_list(item["sum"], f"{path}.sum")))
    at = _integers(item["at"], f"{path}.at")
    return _build(lambda: Sum(members=members, at=at), path)


def _table(value: Any, path: str) -> FloatArray:
    """Nested lists as an array; ragged lists and entries that are no finite numbers are named."""

    def shape_of(item: Any, place: str) -> tuple[int, ...]:
        rows = check_list(item, place)
        if not rows:
            raise FileFormatError("a table (=[]) must have an entry per choice", path=place)
        if not isinstance(rows[0], list):
            for i, entry in enumerate(rows):
                if type(entry) is not float or not math.isfinite(entry):
                    check_number(entry, f"{place}[{i}]")
            return (len(rows),)
        inner = shape_of(rows[0], f"{place}[0]")
        for i, row in enumerate(rows[1:], start=1):
            found = shape_of(row, f"{place}[{i}]")
            if found != inner:
                raise FileFormatError(f"has shape {list(found)}; the rows before it have {list(inner)}", path=f"{place}[{i}]")
        return (len(rows), *inner)

    shape_of(value, path)
    return np.array(value, dtype=np.float64)


def _term(value: Any, path: str) -> Term:
    if isinstance(value, dict) and "product" in value:
        return _product_term(value, path)
    item = check_object(value, path, ("name", "over", "table"), ("gate",))
    over = tuple(_axis(a, f"{path}.over[{i}]") for i, a in enumerate(check_list(item["over"], f"{path}.over")))
    gate = _gate(item.get("gate"), f"{path}.gate")
    table = _table(item["table"], f"{path}.table")
    return _build(lambda: Term(name=check_string(item["name"], f"{path}.name"), over=over, gate=gate, table=table), path)


def _product_term(value: dict[str, Any], path: str) -> Term:
    """A term that holds a product of one vector per axis in place of its table."""
    item = check_object(value, path, ("name", "over", "product"), ("gate",))
    over = tuple(_axis(a, f"{path}.over[{i}]") for i, a in enumerate(check_list(item["over"], f"{path}.over")))
    gate = _gate(item.get("gate"), f"{path}.gate")
    place = f"{path}.product"
    product = check_object(item["product"], place, ("coefficient", "factors"))
    coefficient = check_number(product["coefficient"], f"{place}.coefficient")
    vectors = [check_list(v, f"{place}.factors[{i}]") for i, v in enumerate(check_list(product["factors"], f"{place}.factors"))]
    factors = tuple(
        np.array([check_number(x, f"{place}.factors[{i}][{k}]") for k, x in enumerate(vector)], dtype=np.float64)
        for i, vector in enumerate(vectors)
    )
    return _build(
        lambda: ProductTerm(
            name=check_string(item["name"], f"{path}.name"), over=over, gate=gate, coefficient=coefficient, factors=factors
        ),
        path,
    )


def _terms(value: Any, path: str) -> tuple[Term, ...]:
    return tuple(_term(t, f"{path}[{i}]") for i, t in enumerate(check_list(value, path)))


def _variable(value: Any, path: str) -> Variable:
    item = check_object(value, path, ("name", "kind", "choices"))
    name, kind = check_string(item["name"], f"{path}.name"), check_string(item["kind"], f"{path}.kind")
    choices = _integers(item["choices"], f"{path}.choices")
    return _build(lambda: Variable(name=name, kind=kind, choices=choices), path)


def _resource(value: Any, path: str) -> Resource:
    item = check_object(value, path, ("resource", "terms"), ("unit", "limit", "constant"))
    name = check_string(item["resource"], f"{path}.resource")
    unit = check_string(item.get("unit", ""), f"{path}.unit")
    limit = None if item.get("limit") is None else check_number(item["limit"], f"{path}.limit")
    constant = check_number(item.get("constant", 0.0), f"{path}.constant")
    terms = _terms(item["terms"], f"{path}.terms")
    return _build(lambda: Resource(name=name, unit=unit, limit=limit, constant=constant, terms=terms), path)


def problem_from_json(text: str | bytes) -> Problem:
    """Read a problem (format version 1).

    Raises:
        FileFormatError: Naming the path of the offending value, for instance ``costs[0].terms[3].table``.
    """
    value = parse_json(text)
    check_header(value, PROBLEM_FORMAT)
    check_object(value, "", ("format", "version", "variables", "gains", "costs"))
    variables = tuple(_variable(v, f"variables[{i}]") for i, v in enumerate(check_list(value["variables"], "variables")))
    gains = _terms(value["gains"], "gains")
    costs = tuple(_resource(r, f"costs[{i}]") for i, r in enumerate(check_list(value["costs"], "costs")))
    return _build(lambda: Problem(variables=variables, gains=gains, costs=costs), "")


def _optional_number(value: Any, path: str) -> float | None:
    return None if value is None else check_number(value, path)


def _numbers(value: Any, path: str) -> dict[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise FileFormatError(f"must be an object, not {_kind(value)}", path=path)
    return {key: check_number(item, join_path(path, key)) for key, item in value.items()}


SOLUTION_KEYS = ("solver", "status", "assignment", "gain", "bound", "gap", "costs", "seconds")


def solution_from_dict(value: dict[str, Any], path: str = "") -> Solution:
    """The fields of a solution, without the header."""
    check_object(value, path, SOLUTION_KEYS, ("format", "version", "floor", "joint"))
    assignment = value["assignment"]
    if assignment is not None:
        if not isinstance(assignment, dict):
            raise FileFormatError(f"must be an object, not {_kind(assignment)}", path=join_path(path, "assignment"))
        for name, item in assignment.items():
            if isinstance(item, bool) or not isinstance(item, int):
                raise FileFormatError(f"must be an integer, not {_kind(item)}", path=join_path(path, f"assignment.{name}"))
    floor = value.get("floor")
    if floor is not None:
        if not isinstance(floor, dict):
            raise FileFormatError(f"must be an object, not {_kind(floor)}", path=join_path(path, "floor"))
        floor = {k: math.inf if v is None else check_number(v, join_path(path, f"floor.{k}")) for k, v in floor.items()}
    joint = value.get("joint", False)
    if not isinstance(joint, bool):
        raise FileFormatError(f"must be a boolean, not {_kind(joint)}", path=join_path(path, "joint"))
    return _build(
        lambda: Solution(
            solver=check_string(value["solver"], join_path(path, "solver")),
            status=check_string(value["status"], join_path(path, "status")),
            assignment=assignment,
            gain=_optional_number(value["gain"], join_path(path, "gain")),
            bound=_optional_number(value["bound"], join_path(path, "bound")),
            gap=_optional_number(value["gap"], join_path(path, "gap")),
            costs=_numbers(value["costs"], join_path(path, "costs")),
            seconds=check_number(value["seconds"], join_path(path, "seconds")),
            floor=floor,
            joint=joint,
        ),
        path,
    )


def solution_from_json(text: str | bytes) -> Solution:
    """Read a solution (format version 1). Raises FileFormatError naming the path of the offending value."""
    value = parse_json(text)
    check_header(value, SOLUTION_FORMAT)
    return solution_from_dict(value)
