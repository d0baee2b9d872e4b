"""Progress in notebooks: HTML that is replaced as the work goes on."""

from __future__ import annotations

import io
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import latprune
from latprune.progress import Event, listening, say, stretch
from latprune.showing.bars import in_notebook
from latprune.showing.notebook import NotebookBars


class Page:
    """What a notebook shows: each piece of HTML that was there."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def __call__(self, html: str) -> Any:
        self.shown.append(html)
        return self.shown.append


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def step(done: int, *, seconds: float, timed: bool = False, kind: Any = "step") -> Event:
    return Event(kind=kind, stretch="a<b", key=1, done=done, total=8, unit="groups", seconds=seconds, figures={"loss": 0.5}, timed=timed)


def test_bars_and_lines_are_drawn_and_the_end_is_told() -> None:
    page, clock = Page(), Clock()
    with NotebookBars(show=page, clock=clock) as bars, listening(bars):
        say("scoring <all>")
        clock.now = 4.0
        bars.event(step(2, seconds=4.0))
        html = page.shown[-1]
        assert "scoring &lt;all&gt;" in html and '<progress max="8" value="2">' in html
        assert re.findall(r"<td[^>]*>([^<]*)</td>", html) == ["a&lt;b", "2 of 8 groups", "0:04", "0:12 left", "loss 0.5"]
        clock.now = 7.0
        bars.tick()
        assert "0:07" in page.shown[-1]
    assert "0:07  done" in page.shown[-1] and "<progress" not in page.shown[-1]


def test_a_running_clock_is_left_alone_and_quick_steps_are_not_all_drawn() -> None:
    page, clock = Page(), Clock()
    with NotebookBars(show=page, clock=clock) as bars:
        bars.event(step(0, seconds=0.0, kind="begin", timed=True))
        before = len(page.shown)
        for number in range(1, 8):
            clock.now = float(number)
            bars.event(step(number, seconds=clock.now, timed=True))
            bars.tick()
        assert len(page.shown) == before
        clock.now = 11.0
        bars.tick()
        assert len(page.shown) == before + 1


def test_only_the_last_lines_stay() -> None:
    page = Page()
    with NotebookBars(show=page, clock=Clock()) as bars, listening(bars):
        for number in range(20):
            say(f"line {number}.")
        assert "line 19." in page.shown[-1] and "line 12." in page.shown[-1] and "line 11." not in page.shown[-1]


def test_an_error_ends_them_too() -> None:
    page = Page()
    with pytest.raises(ZeroDivisionError), NotebookBars(show=page, clock=Clock()):
        raise ZeroDivisionError
    assert "stopped" in page.shown[-1]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Page:
    """A process that is a notebook's kernel, as far as can be seen."""
    page = Page()

    def display(html: str, *, display_id: bool) -> Any:
        assert display_id
        return SimpleNamespace(update=page(html))

    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython).update(get_ipython=lambda: SimpleNamespace(kernel=object()), display=displays)
    vars(displays).update(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    return page


def test_a_notebook_is_known_and_shows_what_is_told(kernel: Page) -> None:
    assert in_notebook()
    stream = io.StringIO()
    with latprune.progress_bars(stream), stretch("scoring", total=2, unit="groups") as work:
        work.reached(1)
        say("half")
    assert "half" in kernel.shown[-1] and "done" in kernel.shown[-1] and stream.getvalue() == ""


def test_elsewhere_lines_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    stream = io.StringIO()
    with latprune.progress_bars(stream):
        say("scoring")
    assert stream.getvalue().endswith("s] scoring\n")


def test_a_terminal_gets_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with latprune.progress_bars(stream):
        say("scoring")
    assert "0:00  scoring" in stream.getvalue()
