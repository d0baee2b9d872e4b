"""Figures with matplotlib (extra ``demo``): each draws what a ``compute_*`` function gives, onto axes of the caller's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.export.record import ResultRecord
from latprune.extras import importing
from latprune.report.data import LatencyBars, WidthRow, compute_report
from latprune.report.point_labels import PointLabel, label_points
from latprune.storage import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FrontierCurve",
    "TradeOffPoint",
    "compute_frontier",
    "figure_kind",
    "new_figure",
    "plot_frontier",
    "plot_latency",
    "plot_result",
    "plot_trade_off",
    "plot_widths",
    "save_figure",
]

KEPT, DENSE, GONE, ACCENT, INK, SOFT = "#1f6feb", "#aab4c0", "#e4e8ed", "#b45309", "#16202c", "#5a6675"


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOffPoint:
    """One network: ``latency`` as a share of the dense one with its 95 % interval, ``accuracy`` as a fraction."""

    label: str
    latency: float
    accuracy: float
    low: float | None = None
    high: float | None = None
    highlight: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierCurve:
    """The answers along a frontier, by increasing limit.

    Attributes:
        resource: Name of the resource.
        unit: Its unit; empty where it is not known.
        limits: ``(points,)``.
        costs: ``(points,)``, what the answer at each limit uses.
        gains: ``(points,)``.
        optimal: ``(points,)``, whether the answer is proven.
    """

    resource: str
    unit: str
    limits: tuple[float, ...]
    costs: tuple[float, ...]
    gains: tuple[float, ...]
    optimal: tuple[bool, ...]


def compute_frontier(frontier: Mapping[str, Any], *, unit: str = "") -> FrontierCurve:
    """The solved points of a ``latprune/frontier`` object (``Frontier.to_dict()``, or a file's contents).

    Args:
        frontier: The object; limits without an answer are left out.
        unit: Unit of the resource, which the file does not hold.

    Raises:
        FileFormatError: The object is not a frontier.
    """
    if frontier.get("format") != "latprune/frontier" or not isinstance(frontier.get("solutions"), list):
        raise FileFormatError(f"is {frontier.get('format')!r}, not a frontier; expected 'latprune/frontier'", path="format")
    resource = frontier["resource"]
    solved = sorted((item for item in frontier["solutions"] if item.get("gain") is not None), key=lambda item: float(item["limit"]))
    return FrontierCurve(
        resource=resource,
        unit=unit,
        limits=tuple(float(item["limit"]) for item in solved),
        costs=tuple(float(item["costs"][resource]) for item in solved),
        gains=tuple(float(item["gain"]) for item in solved),
        optimal=tuple(item["status"] == "optimal" for item in solved),
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` by ``height`` inches that no window system needs to show.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with importing("matplotlib", "demo"):
        from matplotlib.figure import Figure as NewFigure
    return NewFigure(figsize=(width, height), layout="constrained")


def figure_kind(path: str | Path, *, argument: str = "path") -> str:
    """The kind of a figure's file by its ending: ``svg``, ``png`` or ``pdf``.

    Raises:
        InvalidArgumentError: The ending is another one.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("svg", "png", "pdf"):
        raise InvalidArgumentError(f"{argument} (={str(path)!r}) must end in .svg, .png or .pdf")
    return kind


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 160) -> Path:
    """Write a figure as ``.svg``, ``.png`` or ``.pdf``; the same data gives the same bytes.

    Raises:
        InvalidArgumentError: The file's ending is another one.
    """
    path = Path(path)
    kind = figure_kind(path)
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # A fixed salt and no date: otherwise every run would change a committed picture.
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with rc_context({"svg.hashsalt": "latprune", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())
    return path


def plot_widths(rows: Sequence[WidthRow], axes: Axes) -> None:
    """Widths per channel group as horizontal bars: dense length, the kept part filled, groups of removed blocks faint and named so."""
    places = range(len(rows))
    axes.barh(places, [row.dense for row in rows], color=[GONE if row.removed else DENSE for row in rows], height=0.78)
    axes.barh(places, [0 if row.removed else row.kept for row in rows], color=KEPT, height=0.78)
    axes.set_yticks(list(places), [row.name for row in rows], fontsize=6.5, family="monospace")
    for place, row in zip(places, rows, strict=True):
        text = "removed with its block" if row.removed else f"{row.kept}"
        axes.annotate(text, (row.dense, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6, color=SOFT)
    axes.invert_yaxis()
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("channels kept (blue) of the dense width", fontsize=8)
    _plain(axes)


def plot_latency(bars: LatencyBars, axes: Axes) -> None:
    """Dense and pruned latency with their 95 % intervals, and the budget as a line."""
    for place, (latency, colour) in enumerate(((bars.dense, DENSE), (bars.pruned, KEPT))):
        errors = [[latency.ms - latency.low], [latency.high - latency.ms]]
        axes.barh(place, latency.ms, xerr=errors, color=colour, height=0.6, ecolor=INK, capsize=3)
    axes.set_yticks([0, 1], ["dense", "pruned"], fontsize=8)
    if bars.limit is not None:
        _budget(bars.limit, axes)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per inference", fontsize=8)
    _plain(axes)


def plot_trade_off(points: Sequence[TradeOffPoint], axes: Axes, *, budget: float | None = None) -> None:
    """Accuracy against measured latency, one labelled dot per network.

    Args:
        points: Networks to show.
        axes: Where to draw.
        budget: Share of the dense latency that was asked for, drawn as a line.
    """
    for point in points:
        colour = KEPT if point.highlight else SOFT
        if point.low is not None and point.high is not None:
            axes.plot([100 * point.low, 100 * point.high], [100 * point.accuracy] * 2, color=colour, linewidth=1.4)
        axes.plot(100 * point.latency, 100 * point.accuracy, "o", color=colour, markersize=7 if point.highlight else 5.5)
    if budget is not None:
        _budget(100 * budget, axes)
    axes.set_xlabel("measured latency, % of dense", fontsize=8)
    axes.set_ylabel("accuracy, %", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.18)
    _plain(axes)
    labels = [
        PointLabel(text=f"{point.label}  {100 * point.accuracy:.2f} %", x=100 * point.latency, y=100 * point.accuracy, bold=point.highlight)
        for point in points
    ]
    label_points(labels, axes, colour=INK, size=8.5)


def plot_frontier(curve: FrontierCurve, axes: Axes) -> None:
    """Gain against cost along a frontier, which is a step; hollow dots are not proven optimal.

    Raises:
        InvalidArgumentError: The frontier has no answer.
    """
    if not curve.costs:
        raise InvalidArgumentError("curve has no answer at any limit: nothing to draw")
    axes.step(curve.costs, curve.gains, where="post", color=DENSE, linewidth=1.2, zorder=1)
    for state, fill, label in ((True, KEPT, "optimal"), (False, "white", "best found")):
        chosen = [k for k, optimal in enumerate(curve.optimal) if optimal == state]
        if chosen:
            costs, gains = [curve.costs[k] for k in chosen], [curve.gains[k] for k in chosen]
            axes.scatter(costs, gains, s=20, facecolor=fill, edgecolor=KEPT, label=label, zorder=3)
    axes.set_xlabel(f"{curve.resource}, {curve.unit}" if curve.unit else curve.resource, fontsize=8)
    axes.set_ylabel("gain", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def plot_result(record: ResultRecord) -> Figure:
    """Latency and widths of one result in one figure."""
    data = compute_report(record)
    bars = 0.0 if data.latency is None else 1.5
    widths = 0.0 if not data.widths else 0.5 + 0.155 * len(data.widths)
    figure = new_figure(7.0, max(bars + widths, 1.0) + 0.3)
    if data.latency is not None and data.widths:
        upper, lower = figure.subplots(2, 1, height_ratios=(bars, widths))
        plot_latency(data.latency, upper)
        plot_widths(data.widths, lower)
    elif data.latency is not None:
        plot_latency(data.latency, figure.subplots())
    elif data.widths:
        plot_widths(data.widths, figure.subplots())
    figure.suptitle(f"{data.title}: {data.verdict.text}", fontsize=9)
    return figure


def _budget(place: float, axes: Axes) -> None:
    axes.axvline(place, color=ACCENT, linestyle="--", linewidth=1.3)
    axes.annotate(
        "budget",
        (place, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=ACCENT,
    )


def _plain(axes: Axes) -> None:
    axes.tick_params(color=SOFT)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(DENSE)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GONE, linewidth=0.8)
