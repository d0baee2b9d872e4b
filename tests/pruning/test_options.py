"""Options are said once: types, defaults, signatures and the command line tell the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace

import pytest
import torch

import latprune
from latprune.cli import build_parser
from latprune.cli.prune import _check_data, _fit
from latprune.cli.pruning_arguments import options_of
from latprune.errors import InvalidArgumentError
from latprune.importance import DivergenceConfig, L1Config, MagnitudeConfig
from latprune.methods import HALP, FromScratch, Method, get_schedule
from latprune.pruning.finetuning import RecipeFit
from latprune.pruning.options import Options, PruningOptions, SharedOptions
from latprune.solve import GroupKnapsack, solver_named, solver_options
from latprune.train import RECIPES, Recipe, recipe

NAMES = {entry.name for entry in fields(Options)}
WORDS = ["prune", "--model", "latprune.zoo:digits_resnet", "--input", "1x1x32x32", "--budget", "flops=50%", "-o", "out"]


def method_told(*words: str) -> Method:
    """The method that a command line with these words has."""
    method = options_of(build_parser().parse_args([*WORDS, *words]))["method"]
    assert isinstance(method, Method)
    return method


def recipe_told(*words: str) -> Recipe:
    """The recipe that a command line with these words trains by."""
    fit = _fit(build_parser().parse_args([*WORDS, *words]), [torch.zeros(1)], None)
    assert isinstance(fit, RecipeFit)
    return fit.recipe


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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"slack": "x"}, r"slack \(='x'\) must be a share of the budget"),
        ({"slack": 1}, r"slack \(=1\) must be a share of the budget"),
        ({"time_limit": "x"}, r"time_limit \(='x'\) must be a positive number of seconds"),
        ({"seed": -1}, r"seed \(=-1\) must be a whole number of at least 0"),
        ({"seed": 1.5}, r"seed \(=1.5\) must be a whole number"),
        ({"measure_latency": "no"}, r"measure_latency \(='no'\) must be True or False"),
        ({"min_widths": {"*": 2.5}}, r"min_widths\['\*'\] \(=2.5\) must be a whole number"),
        ({"min_widths": {"*": "x"}}, r"min_widths\['\*'\] \(='x'\) must be a whole number"),
        ({"keep": 3}, r"keep \(=3\) must be a list of names or globs"),
        ({"keep": [3]}, r"an entry of keep \(=3\) must be a name or glob"),
        ({"keep": ["head", ""]}, r"keep \(=\['head', ''\]\) has an empty name, which would keep nothing"),
        ({"progress": 3}, r"progress \(=3\) must be a function of one line of text"),
        ({"pick": {"budget": "50%"}}, r"pick \(=.*\) must be a network of an exploration"),
        ({"within": 3}, r"within \(=3\) must be the path of a sub-module"),
        ({"widths": {"multiple_of": 8}}, r"widths \(=.*\) must be rules for widths"),
        ({"tables": "tables.json"}, r"tables \(='tables.json'\) must be latency tables"),
        ({"predictor": "p.npz"}, r"predictor \(='p.npz'\) must be a predictor"),
        ({"store": "store.sqlite"}, r"store \(='store.sqlite'\) must be a store"),
        ({"fold": 3}, r"fold \(=3\) must be True, False or 'temporary'"),
    ],
)
def test_an_option_of_another_kind_is_refused_in_words(given: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Options(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("spelling", ["false", "False"])
def test_no_blocks_are_removed_where_the_command_line_says_so(spelling: str) -> None:
    assert method_told("--method-arg", f"blocks={spelling}") == method_told("--no-blocks")
    with pytest.raises(InvalidArgumentError, match=r"channels \(='no'\) must be True or False; on the command line write true or false"):
        method_told("--method-arg", "channels=no")
    with pytest.raises(InvalidArgumentError, match=r"stages \(=2.5\) must be a whole number"):
        method_told("--method", "halp", "--method-arg", "stages=2.5")


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


def test_criteria_inside_a_criterion_have_names_on_the_command_line() -> None:
    ranked = method_told("--criterion", "divergence", "--criterion-arg", "rank=magnitude", "--criterion-arg", "rivals=l1, magnitude")
    assert ranked.importance == DivergenceConfig(rank=MagnitudeConfig(), rivals=(L1Config(), MagnitudeConfig()))
    told = ["rivals=", "priors=0,0.5", "narrowings=2", "removed=[0.25,0.5]"]
    alone = method_told("--criterion", "divergence", *(word for entry in told for word in ("--criterion-arg", entry)))
    assert alone.importance == DivergenceConfig(rivals=(), priors=(0.0, 0.5), narrowings=(2.0,), removed=(0.25, 0.5))
    for wrong, message in (("rank=best", "criterion .='best'. must be one of"), ("priors=few", "priors .='few'. must be numbers")):
        with pytest.raises(InvalidArgumentError, match=message):
            method_told("--criterion", "divergence", "--criterion-arg", wrong)


def test_the_method_behind_fresh_weights_has_its_options_on_the_command_line() -> None:
    words = ["--method", "from_scratch", "--method-arg", "structure=halp", "--criterion", "taylor", "--criterion-arg", "reduction=split"]
    assert method_told(*words).importance == method_told("--method", "halp", *words[4:]).importance
    whole = method_told("--method", "from_scratch", "--method-arg", 'structure={"name": "halp", "stages": 1, "score": "l1"}')
    assert whole == FromScratch(structure=HALP(stages=1, score=L1Config()))


MATCHING = 'distillation={"weight": 1.0, "loss": "matching"}'


@pytest.mark.parametrize(
    ("words", "reads"),
    [
        (["--epochs", "1"], True),
        (["--epochs", "1", "--distill"], True),
        (["--epochs", "1", "--recipe-arg", MATCHING], False),
        (["--recipe", "match-dense"], False),
        (["--recipe", "match-dense", "--recipe-arg", "distillation=null"], True),
        (["--recipe", "match-dense", "--distill"], True),
        (["--recipe", "sp-lamp-cifar10", "--recipe-arg", MATCHING], False),
    ],
)
def test_images_train_whatever_recipe_reads_no_labels(words: list[str], reads: bool) -> None:
    args = build_parser().parse_args([*WORDS, "--images", "photos", *words])
    with pytest.raises(InvalidArgumentError, match="train on labels, which --images have none of") if reads else nullcontext():
        _check_data(args)


def test_a_value_of_the_recipe_is_told_once() -> None:
    with pytest.raises(InvalidArgumentError, match="--recipe-arg learning_rate does nothing with --learning-rate"):
        recipe_told("--epochs", "1", "--learning-rate", "0.1", "--recipe-arg", "learning_rate=0.2")


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_leaves_a_named_recipe_as_it_is(name: str) -> None:
    assert recipe_told("--recipe", name) == recipe(name)


def test_the_command_line_changes_of_a_named_recipe_what_it_is_told_and_no_more() -> None:
    own = recipe("sp-lamp-cifar10")
    words = ["--learning-rate", "0.3", "--train-precision", "bf16", "--channels-last", "--recipe-arg", "weight_decay=0.25"]
    changed = replace(own, learning_rate=0.3, precision="bf16", channels_last=True, weight_decay=0.25)
    assert recipe_told("--recipe", "sp-lamp-cifar10", *words) == changed
    assert (own.precision, own.channels_last) == ("fp32", False) and own.weight_decay not in (0.0, 0.25)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("criterion", "has no option 'criterion'; a method has its own"),
        ("budgett", "did you mean 'budget'?"),
        ("zzz", "has no option 'zzz'$"),
    ],
)
@pytest.mark.parametrize("function", [latprune.prune, latprune.explore, latprune.Pruner])
def test_unknown_options_are_named_with_what_they_may_have_meant(function: Callable[..., object], name: str, told: str) -> None:
    with pytest.raises(TypeError, match=f"^{function.__name__} .*{told}"):
        function(torch.nn.Linear(2, 2), torch.zeros(1, 2), **{name: 1})
