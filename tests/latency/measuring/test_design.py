from __future__ import annotations

from itertools import islice

import numpy as np

from latprune.graph.types import Block, ChannelGroup
from latprune.latency import design_points
from latprune.latency.measuring.design import pick_units
from support.made_up_machine import BLOCKS, GROUPS


def test_design_repeats_for_a_seed_and_stays_in_bounds() -> None:
    groups, blocks = list(GROUPS.values()), list(BLOCKS.values())
    first = list(islice(design_points(groups, blocks, seed=3), 80))
    assert first == list(islice(design_points(groups, blocks, seed=3), 80))
    assert first != list(islice(design_points(groups, blocks, seed=4), 80))
    # Latencies are asked for relative to the dense network, so it is the one that must be known.
    assert dict(first[0].widths) == {name: group.columns for name, group in GROUPS.items()} and not first[0].removed
    for point in first:
        assert set(point.widths) == set(GROUPS)
        assert all(1 <= point.widths[name] <= group.columns for name, group in GROUPS.items())
        assert set(point.removed) <= set(BLOCKS)
    assert any(point.removed for point in first) and sum(not point.removed for point in first) > 40


def test_design_goes_through_the_whole_range_of_every_pair() -> None:
    points = list(islice(design_points(list(GROUPS.values()), [], seed=0), 96))
    a = np.array([point.widths["a"] for point in points]) / 96
    stream = np.array([point.widths["stream"] for point in points]) / 128
    counts, _, _ = np.histogram2d(a, stream, bins=3, range=[[0, 1], [0, 1]])
    assert (counts >= 2).all()
    aligned = np.mean([width % 8 == 0 for point in points for width in point.widths.values()])
    assert 0.6 < aligned < 0.95


def test_blocks_that_must_stay_are_never_removed() -> None:
    blocks = [Block(name="a", kernels=(), removable=False, reason="named in keep"), Block(name="b", kernels=())]
    points = list(islice(design_points(list(GROUPS.values()), blocks), 60))
    assert all("a" not in point.removed for point in points)
    assert any("b" in point.removed for point in points)


def test_minimum_widths_are_kept() -> None:
    group = ChannelGroup(name="g", rows=1, columns=40, min_width=33, kind="channels", members=())
    assert all(33 <= point.widths["g"] <= 40 for point in islice(design_points([group], []), 64))


def test_units_are_the_first_of_each_row() -> None:
    group = ChannelGroup(name="g", rows=3, columns=4, min_width=1, kind="head_dim", members=())
    assert pick_units(group, 2).tolist() == [0, 1, 4, 5, 8, 9]


def test_some_networks_have_widths_on_the_engines_steps_only_and_some_have_any() -> None:
    groups = [ChannelGroup(name=f"g{index}", rows=1, columns=128, min_width=1, kind="channels", members=()) for index in range(20)]
    points = list(islice(design_points(groups, []), 1, 41))

    def shares(unit: int) -> list[float]:
        return [sum(width % unit == 0 for width in point.widths.values()) / len(groups) for point in points]

    assert 14 <= sum(share == 1.0 for share in shares(16)) <= 18
    assert 6 <= sum(share < 0.4 for share in shares(8)) <= 10
    assert 12 <= sum(0.4 <= share < 1.0 for share in shares(8)) <= 18
