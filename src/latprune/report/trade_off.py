"""Accuracy against what it costs, for several networks: a table for a terminal, and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latprune.errors import InvalidArgumentError

__all__ = ["TradeOff", "plot_trade_offs", "trade_off_text"]

_COLOURS = ("#1f6feb", "#b45309", "#12805c", "#8b3fb8", "#b3261e", "#4a5568", "#0e7490", "#a16207")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff:
    """One method at one budget on one engine.

    Attributes:
        latency: Measured latency as a share of the dense one; None where it was not measured.
        macs: Multiply-adds as a share of the dense ones.
        accuracy: Fraction; the mean over ``seeds``.
        spread: Standard deviation of the accuracy over the seeds; None for one seed.
        over: In how many of the seeds the budget was not met.
        best: Whether it lies on the Pareto front of its engine.
    """

    engine: str
    method: str
    budget: str
    seeds: int
    latency: float | None
    macs: float | None
    accuracy: float | None
    spread: float | None = None
    over: int = 0
    best: bool = False

    @property
    def cost(self) -> float | None:
        """The measured latency, else the multiply-adds, as a share of the dense network's."""
        return self.latency if self.latency is not None else self.macs


def trade_off_text(points: Sequence[TradeOff], *, width: int = 110) -> str:
    """The points as a table of at most ``width`` columns; ``*`` marks what nothing else of its engine beats."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not points:
        return "no network yet"
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for title in ("engine", "method", "budget"):
        table.add_column(title)
    for title in ("latency", "multiply-adds", "accuracy", "seeds"):
        table.add_column(title, justify="right")
    table.add_column("")
    for point in points:
        spread = f" ± {100 * point.spread:.2f}" if point.spread is not None else ""
        table.add_row(
            escape(point.engine),
            escape(point.method),
            escape(point.budget),
            f"{point.latency:.1%}" if point.latency is not None else "–",
            f"{point.macs:.1%}" if point.macs is not None else "–",
            f"{100 * point.accuracy:.2f}{spread} %" if point.accuracy is not None else "–",
            str(point.seeds),
            ("*" if point.best else "") + (f" over in {point.over}" if point.over else ""),
        )
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    note = "\n* no other of its engine is both more accurate and cheaper" if any(point.best for point in points) else ""
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + note


def plot_trade_offs(points: Sequence[TradeOff], path: str | Path) -> None:
    """Draw accuracy against cost, one panel for each engine, one curve for each method, bars for the spread, and the Pareto front.

    Args:
        points: Points with an accuracy and a cost; others are left out.
        path: The picture's file, ``.svg`` or ``.png``.

    Raises:
        InvalidArgumentError: No point has an accuracy and a cost.
        MissingExtraError: matplotlib is not installed.
    """
    from latprune.report.figures import new_figure, save_figure

    shown = [point for point in points if point.accuracy is not None and point.cost is not None]
    if not shown:
        raise InvalidArgumentError("points have no accuracy: give evaluate= (--test-data) to draw accuracy against latency")
    engines = list(dict.fromkeys(point.engine for point in shown))
    methods = list(dict.fromkeys(point.method for point in shown))
    figure = new_figure(width=6.4 * len(engines), height=4.2)
    for engine, axis in zip(engines, figure.subplots(1, len(engines), squeeze=False)[0], strict=True):
        here = [point for point in shown if point.engine == engine]
        for number, method in enumerate(methods):
            curve = sorted((point for point in here if point.method == method), key=lambda point: point.cost or 0.0)
            if not curve:
                continue
            colour, mark = _COLOURS[number % len(_COLOURS)], _MARKS[number % len(_MARKS)]
            axis.errorbar(
                [100 * (point.cost or 0.0) for point in curve],
                [100 * (point.accuracy or 0.0) for point in curve],
                yerr=[100 * (point.spread or 0.0) for point in curve],
                color=colour,
                marker=mark,
                markersize=5.5,
                linewidth=1.2,
                capsize=2.5,
                label=method,
            )
        front = sorted((point for point in here if point.best), key=lambda point: point.cost or 0.0)
        costs, accuracies = [100 * (point.cost or 0.0) for point in front], [100 * (point.accuracy or 0.0) for point in front]
        axis.step(costs, accuracies, where="post", color="#aab4c0", linewidth=5, alpha=0.45, zorder=0, label="nothing better")
        measured = all(point.latency is not None for point in here)
        axis.set_xlabel("measured latency, % of dense" if measured else "multiply-adds, % of dense", fontsize=8)
        axis.set_ylabel("accuracy, %", fontsize=8)
        axis.set_title(engine, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(color="#e4e8ed", linewidth=0.6)
        axis.legend(fontsize=8, frameon=False, loc="lower right")
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    save_figure(figure, path)
