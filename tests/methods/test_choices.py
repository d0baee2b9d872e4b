"""Rules that narrow the widths on offer."""

from __future__ import annotations

import pytest

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup
from latprune.methods import restrict_choices


def group(name: str, columns: int, kind: str = "channels") -> ChannelGroup:
    """A group without members."""
    return ChannelGroup(name=name, rows=1, columns=columns, min_width=1, kind=kind, members=())


GROUPS = {g.name: g for g in (group("stem", 20), group("layer1.conv", 64), group("layer2.conv", 128), group("attn", 12, "heads"))}
ALL = {name: tuple(range(1, g.columns + 1)) for name, g in GROUPS.items()}


def test_without_rules_all_stays() -> None:
    """No rule, no change."""
    assert restrict_choices(ALL, GROUPS) == ALL


def test_quantum_keeps_multiples_and_the_full_width_and_leaves_heads_alone() -> None:
    """20 is no multiple of 8, but it is the whole group."""
    left = restrict_choices(ALL, GROUPS, multiple_of=8)
    assert left["stem"] == (8, 16, 20)
    assert left["layer1.conv"] == tuple(range(8, 65, 8))
    assert left["attn"] == ALL["attn"]


def test_later_globs_are_exceptions() -> None:
    """The last pattern that matches counts."""
    left = restrict_choices(ALL, GROUPS, multiple_of={"*": 16, "stem": 1, "attn": 4})
    assert left["stem"] == ALL["stem"]
    assert left["layer2.conv"] == tuple(range(16, 129, 16))
    assert left["attn"] == (4, 8, 12)


def test_widths_and_shares() -> None:
    """Shares are rounded towards the inside of the range."""
    left = restrict_choices(ALL, GROUPS, min_widths={"layer*": 10}, max_widths={"layer1*": 32}, min_share={"stem": 0.33}, max_share=0.5)
    assert left["layer1.conv"] == tuple(range(10, 33))
    assert left["layer2.conv"] == tuple(range(10, 65))
    assert left["stem"] == (7, 8, 9, 10)
    assert left["attn"] == tuple(range(1, 7))


def test_nothing_left_is_said_with_the_rules() -> None:
    """The error names the group, what was on offer and the rules."""
    with pytest.raises(
        InvalidArgumentError, match=r"'stem' \(20 wide, 20 widths from 1 to 20 on offer\): multiples of 8, at least 9, at most 15"
    ):
        restrict_choices(ALL, GROUPS, multiple_of={"stem": 8}, min_widths={"stem": 9}, max_widths={"stem": 15})


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"multiple_of": 0}, "multiple_of"),
        ({"multiple_of": 8.0}, "integer"),
        ({"multiple_of": {"nowhere*": 8}}, "nowhere"),
        ({"max_share": 1.5}, "share"),
        ({"min_share": {"stem": 0}}, "share"),
        ({"min_widths": -1}, "min_widths"),
        ({"max_widths": True}, "max_widths"),
    ],
)
def test_bad_rules_are_refused(rules: dict[str, object], said: str) -> None:
    """Every rule's value is checked."""
    with pytest.raises(InvalidArgumentError, match=said):
        restrict_choices(ALL, GROUPS, **rules)  # type: ignore[arg-type]
