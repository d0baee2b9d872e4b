"""Rules for the widths on offer."""

import pytest

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup
from latprune.methods.width_rules import WidthRules

GROUPS = {
    name: ChannelGroup(name=name, rows=1, columns=columns, min_width=1, kind="channels", members=())
    for name, columns in {"conv1": 20, "layer1.conv": 64, "layer2.conv": 64}.items()
}
CHOICES = {name: tuple(range(1, group.columns + 1)) for name, group in GROUPS.items()}


def test_a_quantum_keeps_its_multiples_and_the_whole():
    found = WidthRules(multiple_of={"layer*": 16, "*": 8}).apply(CHOICES, GROUPS)
    assert found["layer1.conv"] == (16, 32, 48, 64) and found["conv1"] == (8, 16, 20)


def test_a_quantum_brings_its_widths_in_where_the_staircase_had_others():
    found = WidthRules(multiple_of=8).apply({"layer1.conv": (10, 33, 64)}, GROUPS)
    assert found["layer1.conv"] == (8, 16, 24, 32, 40, 48, 56, 64)


def test_a_quantum_holds_below_a_largest_width_unless_no_multiple_is_left():
    below = WidthRules(multiple_of=8, max_widths={"conv1": 19, "layer1.*": 7}).apply(CHOICES, GROUPS)
    assert (below["conv1"], below["layer1.conv"]) == ((8, 16), (7,))


def test_shares_and_largest_widths_by_glob():
    found = WidthRules(min_share=0.5, max_share={"layer2.*": 0.75}, max_widths={"layer1.*": 40}).apply(CHOICES, GROUPS)
    assert found["conv1"] == tuple(range(10, 21))
    assert found["layer2.conv"] == tuple(range(32, 49))
    assert found["layer1.conv"] == tuple(range(32, 41))


def test_what_an_earlier_stage_left_stays_on_offer():
    assert WidthRules(min_share=0.5).apply({"layer1.conv": (10, 20)}, GROUPS)["layer1.conv"] == (20,)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WidthRules(multiple_of=0), r"multiple_of \(=0\)"),
        (lambda: WidthRules(max_share=0.0), "max_share"),
        (lambda: WidthRules(min_share={"*": 1.5}), r"min_share\['\*'\] \(=1.5\) must be a share of a group's channels, from 0 to 1"),
        (lambda: WidthRules(multiple_of=2.5), r"multiple_of \(=2.5\) must be a whole number"),
        (lambda: WidthRules(multiple_of="8"), r"multiple_of \(='8'\) must be a whole number"),
        (lambda: WidthRules(multiple_of=float("nan")), r"multiple_of \(=nan\) must be a whole number"),
        (lambda: WidthRules(max_widths=8), r"max_widths \(=8\) must be a mapping"),
        (lambda: WidthRules(max_widths={"*": 2.5}), r"max_widths\['\*'\] \(=2.5\) must be a whole number"),
        (lambda: WidthRules(min_share="x"), r"min_share \(='x'\) must be a share"),
        (lambda: WidthRules(multiple_of={"nothing": 8}).apply(CHOICES, GROUPS), "matches no channel group"),
        (lambda: WidthRules(min_share=0.9, max_share=0.5).apply(CHOICES, GROUPS), "relax one of them"),
    ],
)
def test_rules_that_cannot_hold_are_told(make, words):
    with pytest.raises(InvalidArgumentError, match=words):
        make()
