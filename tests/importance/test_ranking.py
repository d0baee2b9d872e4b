from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup
from latprune.importance import best_units, layer_importance, rank_units


def grid(rows: int, columns: int) -> ChannelGroup:
    return ChannelGroup(name="g", rows=rows, columns=columns, min_width=1, kind="channels", members=())


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_each_width_is_worth_the_best_units_of_each_row(rows: int, columns: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 5, rows * columns).astype(float)
    table = layer_importance(grid(rows, columns), scores)
    assert table.shape == (columns + 1,) and table[0] == 0.0
    for width in range(1, columns + 1):
        expected = sum(np.sort(row)[::-1][:width].sum() for row in scores.reshape(rows, columns))
        assert table[width] == pytest.approx(expected)
        kept = best_units(grid(rows, columns), scores, width)
        assert (np.diff(kept) > 0).all() and scores[kept].sum() == pytest.approx(expected)
        assert (np.bincount(kept // columns, minlength=rows) == width).all()


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_widths_are_nested_and_shares_add_up(rows: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.random(rows * columns).round(1)
    part = generator.random(rows * columns) * scores
    group = grid(rows, columns)
    for width in range(1, columns):
        assert set(best_units(group, scores, width)) < set(best_units(group, scores, width + 1))
    total = layer_importance(group, scores, part) + layer_importance(group, scores, scores - part)
    np.testing.assert_allclose(total, layer_importance(group, scores), atol=1e-12)


def test_ties_rank_by_index() -> None:
    assert rank_units(grid(1, 4), np.array([1.0, 2.0, 1.0, 2.0])).tolist() == [[1, 3, 0, 2]]


def test_wrong_shapes_and_widths_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"scores \(shape \(3,\)\) of group 'g'"):
        rank_units(grid(1, 4), np.zeros(3))
    with pytest.raises(InvalidArgumentError, match=r"width \(=5\)"):
        best_units(grid(1, 4), np.zeros(4), 5)
    with pytest.raises(InvalidArgumentError, match="values"):
        layer_importance(grid(1, 4), np.zeros(4), np.zeros(3))
