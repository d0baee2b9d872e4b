"""Labels: components, and coarse labels for reductions."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from latprune.graph.labels import LabelSpace, connected


def _slow(size: int, pairs: list[tuple[int, int]]) -> list[int]:
    root = list(range(size))
    for a, b in pairs:
        low, high = sorted((root[a], root[b]))
        root = [low if r == high else r for r in root]
    return root


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    )
)
def test_connected_equals_the_plain_algorithm(case: tuple[int, list[tuple[int, int]]]) -> None:
    size, pairs = case
    arrays = [(np.array([a]), np.array([b])) for a, b in pairs]
    assert connected(size, arrays).tolist() == _slow(size, pairs)


def test_reduction_gives_equal_places_one_label() -> None:
    space = LabelSpace()
    fine = space.fresh(6, "tensor", "w").reshape(1, 2, 3)
    repeated = fine.expand(4, 2, 3)
    coarse = space.reduce(repeated, (2,), "test")
    assert coarse.shape == (4, 2, 1)
    assert coarse.unique().numel() == 2
    assert torch.equal(space.reduce(fine, (2,), "test"), coarse[:1])


def test_unite_broadcasts_and_skips_what_is_equal() -> None:
    space = LabelSpace()
    a = space.fresh(4, "tensor", "a")
    b = space.fresh(2, "tensor", "b")
    space.unite(a, a)
    assert not space.pairs
    space.unite(a.reshape(2, 2), b.reshape(2, 1))
    root = connected(space.size, space.pairs)
    assert root.tolist() == [0, 0, 2, 2, 0, 2]
