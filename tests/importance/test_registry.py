"""Criteria by name, scores without removed blocks, and curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from latprune.errors import InvalidArgumentError
from latprune.importance import Importance, TaylorConfig, criterion_type, get_criterion, register, registered_criteria, score
from support.synthetic_residual import batches, residual


def test_criteria_have_names():
    assert {"hessian", "lamp", "magnitude", "sp_lamp", "taylor"} <= set(registered_criteria())
    config = get_criterion("taylor", reduction="per_group", batches=2)
    assert config == TaylorConfig(reduction="per_group", batches=2)
    assert criterion_type("taylor") is TaylorConfig


def test_unknown_names_and_options_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"criterion \(='guess'\) must be one of"):
        get_criterion("guess")
    with pytest.raises(InvalidArgumentError, match="criterion 'taylor'.*'depth'"):
        get_criterion("taylor", depth=3)


def test_a_name_is_given_once():
    @dataclass(frozen=True)
    class Mine:
        pass

    with pytest.raises(InvalidArgumentError, match="taylor"):
        register(Mine, name="taylor")(lambda model, graph, config, data, loss: Importance(units={}, shares={}))
    with pytest.raises(InvalidArgumentError, match="TaylorConfig"):
        register(TaylorConfig, name="taylor_again")(lambda model, graph, config, data, loss: Importance(units={}, shares={}))


def test_scores_without_blocks_lose_what_hangs_on_them():
    model, graph = residual()
    importance = score(model, graph, TaylorConfig(), batches())
    left = importance.without(["block"])
    np.testing.assert_array_equal(left.units["stem"], importance.shares["stem", ()])
    assert not left.units["conv1"].any()
    assert set(left.shares) == {("stem", ())}
    assert importance.without([]) is importance


def test_curves_are_checked_and_go_with_their_blocks():
    units = {"g": np.ones(3)}
    importance = Importance(
        units=units, shares={("g", ()): np.ones(3)}, curves={("g", ("b",)): np.array([-1.0, 0.0, 1.0, 1.5]), ("g", ()): np.zeros(4)}
    )
    assert set(importance.curves) == {("g", ("b",)), ("g", ())}
    assert set(importance.without(["b"]).curves) == {("g", ())}
    with pytest.raises(InvalidArgumentError, match="curve of group 'g'"):
        Importance(units=units, shares={}, curves={("g", ()): np.array([0.0, np.nan])})
