"""Settings that do not match are told in the words and options of the command line."""

from __future__ import annotations

from typing import Any

import pytest

from latprune.pruning.differences import first_difference
from latprune.recovery import Distil

SAVED: dict[str, Any] = {
    "method": "mdp",
    "options": {"score": {"type": "MagnitudeConfig", "p": 2.0}, "blocks": True, "masks": {"every": 4}},
    "budget": [{"text": "50%"}],
    "target": {"engine": "openvino", "threads": 1},
    "keep": [],
    "min_widths": {"conv1": 8},
    "solver": None,
    "recover": {"strategy": "refit", "ridge": 0.01},
    "trained by": None,
    "measure_latency": True,
}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, None),
        ({"method": "sp_lamp"}, "method 'mdp', this one 'sp_lamp' (--method)"),
        ({"options": {**SAVED["options"], "score": {"type": "TaylorConfig"}}}, "criterion 'magnitude', this one 'taylor' (--criterion)"),
        (
            {"options": {**SAVED["options"], "score": {"type": "MagnitudeConfig", "p": 1.0}}},
            "criterion option p=2.0, this one 1.0 (--criterion-arg)",
        ),
        ({"options": {**SAVED["options"], "blocks": False}}, "method option blocks=yes, this one no (--method-arg)"),
        ({"options": {**SAVED["options"], "masks": {"every": 2}}}, "method option masks.every=4, this one 2 (--method-arg)"),
        ({"budget": [{"text": "60%"}, {"text": "params=1M"}]}, "budget '50%', this one '60%' and 'params=1M' (--budget)"),
        ({"target": {"engine": "openvino", "threads": 2}}, "threads 1, this one 2 (--threads)"),
        ({"keep": ["fc"]}, "modules kept whole none, this one 'fc' (--keep)"),
        ({"min_widths": {"conv1": 4}}, "smallest widths conv1=8, this one conv1=4 (--min-width)"),
        ({"solver": {"name": "greedy"}}, "solver none, this one 'greedy' (--solver)"),
        ({"recover": {"strategy": "fold"}}, "recovery 'refit', this one 'fold' (--recover)"),
        ({"recover": {"strategy": "refit", "ridge": 0.1}}, "recover option ridge=0.01, this one 0.1 (--recover-arg)"),
        ({"trained by": {"epochs": 3, "momentum": 0.9}}, "trained by none, this one 3 epochs of a recipe (--epochs, --recipe, --fit)"),
        ({"measure_latency": False}, "latency measured yes, this one no (--predict-only)"),
        ({"fold": True}, "fold none, this one yes (--fold)"),
        ({"weights": "0" * 64}, "dense weights of digest none, this one 000000000000... (--model, --weights)"),
        ({"inputs": ["x: 1x8 int64", "1x8 float32"]}, "example inputs none, this one 'x: 1x8 int64' and '1x8 float32' (--input)"),
    ],
)
def test_the_first_difference_is_told_as_it_was_given(changed: dict[str, Any], says: str | None) -> None:
    assert first_difference(SAVED, {**SAVED, **changed}) == says


def test_an_option_that_releases_before_did_not_have_differs_once_it_is_given() -> None:
    saved = {"options": {"structure": {"name": "mdp"}}, "budget": [{"text": "50%"}]}
    mine = {"options": {"structure": {"name": "mdp", "score": None}, "seeds": None}, "budget": [{"text": "50%", "engine": None}]}
    assert first_difference(saved, mine) is None and first_difference(mine, saved) is None
    given = {**mine, "options": {"structure": {"name": "mdp", "score": "taylor"}}}
    assert first_difference(saved, given) == "criterion none, this one 'taylor' (--criterion)"


def test_a_flag_that_a_release_before_did_not_have_was_off() -> None:
    off, on = ({**SAVED, "options": {**SAVED["options"], "masks": {"every": 4, "norm_scaling": flag}}} for flag in (False, True))
    assert first_difference(SAVED, off) is None
    assert first_difference(SAVED, on) == "method option masks.norm_scaling=none, this one yes (--method-arg)"
    assert first_difference(on, off) == "method option masks.norm_scaling=yes, this one no (--method-arg)"
    assert first_difference(SAVED, {**SAVED, "recover": False}) is not None


def test_a_distillation_of_a_release_without_precisions_was_in_the_networks_own() -> None:
    saved = {name: value for name, value in Distil().settings().items() if name != "precision"}
    assert first_difference({"recover": saved}, {"recover": Distil().settings()}) is None
    mixed = Distil(precision="bf16").settings()
    assert first_difference({"recover": saved}, {"recover": mixed}) == "recover option precision=none, this one 'bf16' (--recover-arg)"
