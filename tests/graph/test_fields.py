"""Fields: compaction and reshaping agree with the same operation on the whole label tensor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latprune.graph.fields import align, compact, reshape, segments, varying


def test_compact_cuts_only_constant_dimensions() -> None:
    field = torch.arange(6).reshape(1, 2, 3, 1).expand(4, 2, 3, 5)
    assert compact(field).shape == (1, 2, 3, 1)
    assert varying(compact(field)) == (1, 2)
    assert compact(torch.tensor([[1, 2], [2, 1]])).shape == (2, 2)


def test_align_adds_leading_dimensions() -> None:
    assert align(torch.arange(3), 4).shape == (1, 1, 1, 3)


@pytest.mark.parametrize(
    ("old", "new", "runs"),
    [
        ((2, 12, 5), (2, 3, 4, 5), [([0], [0]), ([1], [1, 2]), ([2], [3])]),
        ((2, 3, 4), (24,), [([0, 1, 2], [0])]),
        ((1, 6), (6,), [([0, 1], [0])]),
        ((4, 6), (8, 3), [([0, 1], [0, 1])]),
    ],
)
def test_segments_are_the_finest_runs(old: tuple[int, ...], new: tuple[int, ...], runs: list[tuple[list[int], list[int]]]) -> None:
    assert segments(old, new) == runs


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    parts = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=2, max_size=5))
    cut = draw(st.integers(1, len(parts) - 1)) if len(parts) > 1 else 1
    old = (math.prod(parts[:cut]), *parts[cut:])
    other = draw(st.integers(0, len(parts) - 1))
    new = (*parts[:other], math.prod(parts[other:]))
    vary = tuple(n if draw(st.booleans()) else 1 for n in old)
    return old, new, vary


@given(reshapes())
def test_reshape_equals_the_dense_reshape(case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]) -> None:
    old, new, vary = case
    field = torch.arange(math.prod(vary)).reshape(vary)
    expected = field.expand(old).reshape(new)
    moved = reshape(compact(field), old, new)
    assert torch.equal(moved.expand(new), expected)
