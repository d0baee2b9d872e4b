"""What work tells, and to whom."""

from __future__ import annotations

import itertools

import pytest

from latprune.progress import Event, LineListener, clock_text, counted, described, listener_of, listening, say, speaker, stretch


class Heard:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


def test_nobody_hears_what_nobody_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    say("a line")
    with stretch("scoring", total=2, unit="groups") as work:
        work.reached(1, loss=0.5)
    assert list(counted("ab", "spelling", unit="letters")) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_a_listener_hears_lines_and_how_far_the_work_has_come() -> None:
    heard = Heard()
    with listening(heard):
        say("begun")
        with stretch("scoring", total=4, unit="groups", timed=True) as work:
            work.reached(1, loss=0.5)
            work.reached(2)
    say("nobody listens any more")
    assert heard.kinds == ["line", "begin", "step", "step", "end"]
    begin, first, second, end = heard.events[1:]
    assert len({event.key for event in heard.events[1:]}) == 1
    assert (begin.done, begin.total, begin.stretch, begin.unit, begin.timed) == (0, 4, "scoring", "groups", True)
    assert (first.done, first.figures) == (1, {"loss": 0.5})
    assert second.figures == {"loss": 0.5}, "the last figures stay until there are others"
    assert end.done == 2


def test_work_in_which_nothing_is_counted_tells_its_figures() -> None:
    heard = Heard()
    with listening(heard), stretch("solving") as work:
        work.note(gain=1.0, bound=2.0)
    assert [event.figures for event in heard.events] == [{}, {"gain": 1.0, "bound": 2.0}, {"gain": 1.0, "bound": 2.0}]
    assert heard.events[1].done is None


def test_a_stretch_ends_where_its_work_fails() -> None:
    heard = Heard()
    with listening(heard), pytest.raises(RuntimeError, match="on the way"), stretch("scoring"):
        raise RuntimeError("on the way")
    assert heard.kinds == ["begin", "end"]


def test_stretches_that_go_on_at_once_are_told_apart() -> None:
    heard = Heard()
    with listening(heard), stretch("score"), stretch("score"):
        pass
    keys = [event.key for event in heard.events]
    assert keys[0] != keys[1]
    assert keys == [keys[0], keys[1], keys[1], keys[0]], "the inner one ends first"


def test_an_inner_listener_hears_instead_of_the_outer_one_and_none_leaves_it_to_the_outer() -> None:
    outer, inner = Heard(), Heard()
    with listening(outer):
        with listening(inner):
            say("inner")
        with listening(None):
            say("outer")
    assert [event.text for event in outer.events] == ["outer"]
    assert [event.text for event in inner.events] == ["inner"]


def test_counted_counts_what_is_done_and_ends_where_it_is_left() -> None:
    heard = Heard()
    with listening(heard):
        for letter in counted("abcd", "spelling", unit="letters"):
            if letter == "c":
                break
    assert heard.kinds == ["begin", "step", "step", "end"]
    assert [event.done for event in heard.events] == [0, 1, 2, 2]
    assert heard.events[0].total == 4


def test_counted_takes_what_has_no_length() -> None:
    heard = Heard()
    with listening(heard):
        assert list(counted(iter("ab"), "spelling", unit="letters")) == ["a", "b"]
    assert [event.total for event in heard.events] == [None] * 4
    assert heard.events[-1].remaining is None


def test_a_function_of_a_line_hears_lines_and_after_ten_quiet_seconds_how_far_it_is() -> None:
    lines: list[str] = []
    ticks = itertools.chain([0.0, 1.0, 5.0, 11.5, 12.0, 22.0])
    listener = LineListener(lines.append, clock=lambda: next(ticks))
    listener.event(Event(kind="line", text="scoring"))
    for done, seconds in ((1, 4.0), (2, 10.0), (3, 11.0), (4, 21.0)):
        listener.event(Event(kind="step", stretch="groups", done=done, total=8, unit="groups", seconds=seconds))
    assert lines == ["scoring", "groups: 2 of 8 groups, 0:10, about 0:30 left", "groups: 4 of 8 groups, 0:21, about 0:21 left"]


def test_a_speaker_speaks_to_what_it_was_given_or_to_whoever_listens() -> None:
    given: list[str] = []
    heard = Heard()
    with listening(heard):
        speaker(given.append)("to the given one")
        speaker(None)("to the listener")
    assert given == ["to the given one"]
    assert [event.text for event in heard.events] == ["to the listener"]
    assert listener_of(heard) is heard
    assert listener_of(None) is None


def test_remaining_is_known_once_something_of_a_known_total_is_done() -> None:
    assert Event(kind="step", done=2, total=8, seconds=3.0).remaining == pytest.approx(9.0)
    assert Event(kind="step", done=0, total=8, seconds=3.0).remaining is None
    assert Event(kind="step", done=2, seconds=3.0).remaining is None
    assert Event(kind="step", done=9, total=8, seconds=3.0).remaining == 0.0


def test_described_tells_count_time_and_figures() -> None:
    event = Event(
        kind="step", stretch="training", done=30, total=60, unit="steps", seconds=90, figures={"mean_error": 0.01234, "by": "doubt"}
    )
    assert described(event) == "training: 30 of 60 steps, 1:30, about 1:30 left, mean error 0.01234, by doubt"
    assert described(Event(kind="step", stretch="check", seconds=3)) == "check: 0:03"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.2, "1:15"), (7390, "2:03:10")])
def test_clock_text(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
