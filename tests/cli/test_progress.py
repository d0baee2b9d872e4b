"""The forms in which the command line shows progress."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from latprune.cli import build_parser
from latprune.cli.progress import add_progress_arguments, shown
from latprune.errors import InvalidArgumentError
from latprune.progress import Event, say, stretch
from latprune.showing import JsonLines, Lines
from latprune.showing.terminal import Display


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def step(done: int, *, key: int = 1, seconds: float = 0.0, kind: str = "step", timed: bool = False) -> Event:
    return Event(
        kind=kind,  # type: ignore[arg-type]
        stretch="scoring",
        key=key,
        done=done,
        total=8,
        unit="groups",
        seconds=seconds,
        figures={"loss": 0.5},
        timed=timed,
    )


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_progress_arguments(parser)
    return argparse.Namespace(command="prune", **vars(parser.parse_args(words)))


def test_lines_have_the_seconds_and_a_step_only_after_ten_quiet_ones() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    lines.event(Event(kind="line", text="tracing"))
    clock.now = 9.0
    lines.event(step(1, seconds=9.0))
    clock.now = 10.5
    lines.event(step(2, seconds=10.5))
    assert stream.getvalue().splitlines() == [
        "[    0.0 s] tracing",
        "[   10.5 s] scoring: 2 of 8 groups, 0:10, about 0:32 left, loss 0.5",
    ]


def test_lines_speak_up_during_one_long_call() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    lines.event(step(0, kind="begin"))
    lines.event(step(0, key=2, kind="begin"))
    clock.now = 8.4
    lines.tick()
    assert stream.getvalue() == ""
    # A tick before the ten seconds are over: the next one might come late.
    clock.now = 9.0
    lines.tick()
    lines.tick()
    assert stream.getvalue() == "[    9.0 s] scoring: 0 of 8 groups, 0:09, loss 0.5\n"
    lines.event(step(0, key=2, kind="end", seconds=10.0))
    lines.event(step(0, kind="end", seconds=10.0))
    clock.now = 30.0
    lines.tick()
    assert stream.getvalue().count("\n") == 1, "where nothing goes on there is nothing to say"


def test_the_innermost_work_that_is_no_mere_moment_is_named() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock)
    lines.event(Event(kind="begin", stretch="prune", key=1))
    lines.event(Event(kind="begin", stretch="frontier", key=2))
    clock.now = 10.0
    lines.event(Event(kind="begin", stretch="solve", key=3))
    lines.tick()
    assert stream.getvalue() == "[   10.0 s] frontier: 0:10\n"


def test_json_has_one_object_a_line_and_leaves_out_what_is_too_quick_to_matter() -> None:
    stream, clock = io.StringIO(), Clock()
    out = JsonLines(stream, clock)
    out.event(Event(kind="line", text='a "quoted" line'))
    out.event(step(0, kind="begin"))
    out.event(step(1))
    clock.now = 0.1
    out.event(step(2, seconds=0.1))
    clock.now = 2.0
    out.event(step(4, seconds=2.0))
    out.event(step(4, seconds=2.0, kind="end"))
    out.event(step(0, key=2, kind="begin"))
    out.event(step(0, key=2, kind="end"))
    clock.now = 20.0
    out.tick()
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [entry["event"] for entry in found] == ["line", "step", "step", "end"]
    assert found[0]["text"] == 'a "quoted" line'
    assert found[2] == {
        "event": "step",
        "seconds": 2.0,
        "stretch": "scoring",
        "key": 1,
        "done": 4,
        "total": 8,
        "unit": "groups",
        "elapsed": 2.0,
        "remaining": 2.0,
        "figures": {"loss": 0.5},
    }


def test_json_speaks_up_during_one_long_call() -> None:
    stream, clock = io.StringIO(), Clock()
    out = JsonLines(stream, clock)
    out.event(step(0, kind="begin"))
    clock.now = 11.0
    out.tick()
    assert json.loads(stream.getvalue())["elapsed"] == 11.0


def rendered(display: Display, now: float) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(display.rendered(now))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_display_shows_a_row_for_all_that_goes_on_and_lines_above() -> None:
    clock, stream = Clock(), Terminal()
    with Display(stream, console=Console(file=stream, force_terminal=True, width=120), clock=clock) as display:
        display.event(step(0, kind="begin"))
        display.event(Event(kind="begin", stretch="solving", key=2))
        clock.now = 2.0
        display.event(step(4, seconds=2.0))
        display.event(Event(kind="line", text="[not] markup"))
        text = rendered(display, 3.0)
        assert "scoring" in text
        assert "4 of 8 groups" in text
        assert "0:03" in text
        assert "loss 0.5" in text
        assert "solving" in text
        display.event(step(4, seconds=3.0, kind="end"))
        assert "scoring" not in rendered(display, 4.0)
    assert "[not] markup" in stream.getvalue()


def test_what_is_printed_comes_above_the_bars_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, screen = Clock(), Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    with Display(screen, console=Console(file=screen, force_terminal=True, width=120), clock=clock) as display:
        display.event(step(0, kind="begin"))
        clock.now = 5.0
        display.tick()
        assert "scoring" in screen.getvalue()
        print("the result")
        before = screen.getvalue().partition("the result")[0]
    assert before.endswith("\x1b[2K"), "the line was erased before"
    assert sys.stdout is screen


def test_the_display_leaves_the_processor_alone_while_a_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(), Terminal()
    drawn: list[float] = []
    with Display(stream, console=Console(file=stream, force_terminal=True, width=120), clock=clock) as display:
        monkeypatch.setattr(display, "_draw", lambda now: drawn.append(now))
        display.event(step(0, kind="begin", timed=True))
        for second in range(1, 10):
            clock.now = float(second)
            display.event(step(second % 8, timed=True, seconds=float(second)))
            display.tick()
        assert drawn == []
        clock.now = 10.0
        display.tick()
        assert drawn == [10.0]


def test_a_stream_that_is_no_terminal_gets_lines_and_a_terminal_the_display() -> None:
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        with shown(arguments(), stream=stream):
            say("tracing")
    assert "\x1b" not in plain.getvalue()
    assert plain.getvalue().endswith("s] tracing\n")
    assert "tracing" in terminal.getvalue()


@pytest.mark.parametrize("words", [["--quiet"], ["--progress", "none"]])
def test_quiet_shows_nothing_and_the_log_file_has_it_all_the_same(words: list[str], tmp_path: Path) -> None:
    stream, path = io.StringIO(), tmp_path / "run.log"
    for text in ("first", "second"):
        with shown(arguments(*words, "--log-file", str(path)), stream=stream), stretch("scoring"):
            say(text)
    assert stream.getvalue() == ""
    assert [line.split("] ")[1] for line in path.read_text().splitlines()] == ["first", "second"]


def test_a_log_file_that_cannot_be_written_is_told_by_its_option(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"--log-file \(='.*x.log'\) cannot be written \(No such file or directory\)"):
        with shown(arguments("--log-file", str(tmp_path / "nowhere" / "x.log")), stream=io.StringIO()):
            pass


def test_json_on_the_command_line() -> None:
    stream = io.StringIO()
    with shown(arguments("--progress", "json"), stream=stream):
        say("tracing")
    assert json.loads(stream.getvalue())["text"] == "tracing"


def test_a_result_as_json_is_not_surrounded_by_progress() -> None:
    stream = io.StringIO()
    args = arguments()
    args.json = True
    with shown(args, stream=stream):
        say("measuring")
    assert stream.getvalue() == ""


def test_quiet_and_a_form_contradict_each_other() -> None:
    with pytest.raises(InvalidArgumentError, match="--quiet"), shown(arguments("--quiet", "--progress", "json")):
        pass


def test_every_long_command_has_the_options() -> None:
    choices: dict[str, argparse.ArgumentParser] = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr, assignment]
    having = {name for name, parser in choices.items() if "--log-file" in parser.format_help()}
    assert {"prune", "explore", "sweep", "measure", "frontier", "verify", "compare", "time", "doctor", "demo", "solve", "export"} <= having


def test_the_library_hears_of_its_phases() -> None:
    from latprune.pruning.clock import Clock as Phases

    heard: list[Event] = []

    class Listening:
        def event(self, event: Event) -> None:
            heard.append(event)

    phases = Phases(Listening())
    with phases.timed("tables"), phases.timed("score"):
        pass
    assert [(event.kind, event.stretch, event.timed) for event in heard] == [
        ("begin", "tables", True),
        ("begin", "score", False),
        ("end", "score", False),
        ("end", "tables", True),
    ]
    assert set(phases.seconds) == {"tables", "score"}
