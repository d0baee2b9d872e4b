"""The options of everything that is registered keep the types of their fields: whatever else is given is refused in words."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from latprune.argument_rules import check_flag, check_instance, check_one_of, check_share, check_wholes
from latprune.errors import InvalidArgumentError
from latprune.importance import criterion_type, registered_criteria
from latprune.latency import FixedRuns, Target
from latprune.methods import method_type, registered_methods, registered_schedules, schedule_type
from latprune.recovery import strategies, strategy_type
from latprune.solve import solver_named, solver_names

WRONG: tuple[Any, ...] = ("x", math.nan, -1, 2.5, None)


def _registered() -> Iterator[type]:
    yield from (method_type(name) for name in registered_methods())
    yield from (schedule_type(name) for name in registered_schedules())
    yield from (criterion_type(name) for name in registered_criteria())
    yield from (strategy_type(name) for name in strategies())
    yield from (type(solver_named(name)) for name in solver_names())
    yield from (FixedRuns, Target)


def _allows(hint: Any, value: Any, default: Any) -> bool:
    """Whether a field of type ``hint`` may be given ``value``; numbers below 0 are outside of every field's range."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_allows(part, value, default) for part in typing.get_args(hint))
    if hint is object:  # a criterion, which not every method needs to be told
        return value is None and default is None
    if typing.get_origin(hint) is tuple:  # one number stands for a list of one
        return typing.get_args(hint)[0] is float and value == 2.5
    if hint is float:
        return value == 2.5
    if hint is str:
        return isinstance(value, str)
    return value is None and hint is type(None)


def _cases() -> Iterator[Any]:
    for kind in _registered():
        if not kind.__module__.startswith("latprune.") or not dataclasses.is_dataclass(kind):
            continue
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            for value in WRONG:
                if field.init and not _allows(hints[field.name], value, field.default):
                    yield pytest.param(kind, field.name, value, id=f"{kind.__name__}.{field.name}={value}")


@pytest.mark.parametrize(("kind", "name", "value"), tuple(_cases()))
def test_what_the_type_of_a_field_does_not_allow_is_refused_in_words(kind: type, name: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as told:
        kind(**{name: value})
    assert "must" in str(told.value)
    # A text in place of a criterion or a method is taken for a name.
    assert name in str(told.value) or (value == "x" and "(='x')" in str(told.value)) or name == "structure"


def test_every_kind_has_options_that_are_tried() -> None:
    kinds = {case.values[0].__name__ for case in _cases()}
    assert {"MDP", "Stages", "SoftMasks", "TaylorConfig", "Exact", "Refit", "FixedRuns", "ReconstructionConfig"} <= kinds


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: check_flag("blocks", "no"), r"blocks \(='no'\) must be True or False; on the command line write true or false"),
        (lambda: check_flag("blocks", 1), r"blocks \(=1\) must be True or False$"),
        (lambda: check_one_of("ramp", ["linear"], ("linear", "exponential")), r"ramp \(=\['linear'\]\) must be one of linear, exponential"),
        (lambda: check_share("keep", 1.1), r"keep \(=1.1\) must be a share, from 0 to 1"),
        (lambda: check_share("keep", True), r"keep \(=True\) must be a share"),
        (lambda: check_wholes("max_widths", 8, least=1), r"max_widths \(=8\) must be a mapping of groups or globs to whole numbers"),
        (lambda: check_wholes("max_widths", {"*": 2.5}, least=1), r"max_widths\['\*'\] \(=2.5\) must be a whole number of at least 1"),
        (lambda: check_wholes("multiple_of", "8", least=1, alone=True), r"multiple_of \(='8'\) must be a whole number .* by group or glob"),
        (lambda: check_instance("masks", "x", int, "a whole thing"), r"masks \(='x'\) must be a whole thing"),
    ],
)
def test_each_rule_names_argument_value_and_rule(check: Callable[[], None], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        check()


def test_the_bounds_of_a_share_belong_to_it() -> None:
    for share in (0, 0.0, 0.5, 1, 1.0):
        check_share("keep", share)
