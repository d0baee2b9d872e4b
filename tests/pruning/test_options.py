"""Options are said once: types, defaults, signatures and the command line tell the same."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import torch

import latprune
from latprune.cli import build_parser
from latprune.cli.pruning_arguments import options_of
from latprune.errors import InvalidArgumentError
from latprune.methods import get_schedule
from latprune.pruning.options import Options, PruningOptions, SharedOptions
from latprune.solve import GroupKnapsack, solver_named, solver_options

NAMES = {entry.name for entry in fields(Options)}


def test_types_and_defaults_name_the_same_options() -> None:
    assert set(PruningOptions.__annotations__) | set(SharedOptions.__annotations__) == NAMES
    kinds = {entry.name: entry.type for entry in fields(Options)}
    typed = {**SharedOptions.__annotations__, **PruningOptions.__annotations__}
    assert {name: getattr(kind, "__forward_arg__", kind) for name, kind in typed.items()} == kinds


@pytest.mark.parametrize("function", [latprune.prune, latprune.explore, latprune.Pruner])
def test_signatures_show_every_option(function: object) -> None:
    shown = inspect.signature(function).parameters
    known = NAMES if function is not latprune.explore else set(SharedOptions.__annotations__)
    assert known <= set(shown) and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in shown.values())
    for entry in fields(Options):
        if entry.name in known:
            assert shown[entry.name].default == entry.default and shown[entry.name].kind is inspect.Parameter.KEYWORD_ONLY


def test_an_option_that_there_is_not_is_an_error() -> None:
    with pytest.raises(TypeError, match="bugdet"):
        latprune.prune(torch.nn.Linear(2, 2), torch.randn(1, 2), bugdet="50%")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="slack"):
        latprune.explore(torch.nn.Linear(2, 2), torch.randn(1, 2), slack=0.1)  # type: ignore[call-arg]


def test_the_command_line_gives_every_shared_option() -> None:
    words = ["prune", "--model", "latprune.zoo:digits_resnet", "--input", "1x1x32x32", "--budget", "50%", "-o", "out", "--predict-only"]
    words += ["--schedule", "stages", "--schedule-arg", "stages=4", "--solver", "group-knapsack", "--solver-arg", "units=500", "--quiet"]
    found = options_of(build_parser().parse_args(words))
    assert set(found) == set(SharedOptions.__annotations__)
    assert found["schedule"] == get_schedule("stages", stages=4) and found["solver"] == GroupKnapsack(units=500)
    assert found["measure_latency"] is False and found["progress"] is None
    for wrong, message in ((["--solver-arg", "units=5"], "needs --solver"), (["--schedule-arg", "stages=5"], "needs --schedule")):
        with pytest.raises(InvalidArgumentError, match=message):
            options_of(build_parser().parse_args([*words[:9], *wrong]))


def test_solvers_and_schedules_are_made_by_name_with_options() -> None:
    assert solver_named("group-knapsack", units=500) == GroupKnapsack(units=500)
    assert solver_options(GroupKnapsack(units=500)) == {"name": "group-knapsack", "units": 500}
    for make in (lambda: solver_named("exact", units=5), lambda: get_schedule("stages", steps=5), lambda: get_schedule("stages", stages=0)):
        with pytest.raises(InvalidArgumentError):
            make()
    with pytest.raises(InvalidArgumentError, match="set them on"):
        get_schedule(latprune.SinglePass(), stages=2)
