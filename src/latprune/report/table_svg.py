"""Figures of the latency tables as SVG text: stairs, pairs, predicted against measured; colours come from the page's CSS classes."""

from __future__ import annotations

from html import escape

from latprune.export.record import PairMapRecord, StaircaseRecord
from latprune.report import formatting as fmt
from latprune.report.data import PredictionPoints
from latprune.report.svg import nice_ticks

__all__ = ["pair_map_svg", "scatter_svg", "staircase_svg"]

_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 26, 52
_LEVELS = 12


class _Plot:
    """Linear axes from given ranges to the figure's frame, and what is drawn so far."""

    def __init__(self, label: str, x_end: float, y_end: float, *, right: int = _RIGHT) -> None:
        self.right = _WIDTH - right
        self.bottom = _HEIGHT - _BOTTOM
        self._x = (self.right - _LEFT) / x_end
        self._y = (self.bottom - _TOP) / y_end
        self.parts = [f'<svg class="figure" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">']

    def x(self, value: float) -> float:
        return _LEFT + value * self._x

    def y(self, value: float) -> float:
        return self.bottom - value * self._y

    def axes(self, x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str, *, grid: bool = True) -> None:
        for tick in y_ticks:
            place = self.y(tick)
            if grid:
                self.parts.append(f'<line class="grid" x1="{_LEFT}" y1="{place:.1f}" x2="{self.right}" y2="{place:.1f}"/>')
            self.parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in x_ticks:
            self.parts.append(f'<text class="tick" x="{self.x(tick):.1f}" y="{self.bottom + 22}" text-anchor="middle">{tick:g}</text>')
        self.parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{_TOP - 10}" text-anchor="start">{escape(y_label)}</text>')
        self.parts.append(f'<text class="tick" x="{self.right}" y="{self.bottom + 42}" text-anchor="end">{escape(x_label)}</text>')

    def text(self) -> str:
        return "".join((*self.parts, "</svg>"))


def staircase_svg(data: StaircaseRecord) -> str:
    """A kernel's time over one size as a line; as ticks the sizes on offer, or the right ends of the steps where the record is too old to
    tell; the delivered size as a dashed line.
    """
    highest = max(max(data.ms), 1e-9)
    plot = _Plot(f"Time of {data.kernel} over its {data.axis} channels", float(data.sizes[-1]), highest * 1.06)
    plot.axes(nice_ticks(0.0, float(data.sizes[-1])), nice_ticks(0.0, highest), f"{data.axis} channels", "milliseconds")
    for size in data.offered or data.steps:
        place = plot.x(size)
        plot.parts.append(f'<line class="step" x1="{place:.1f}" y1="{plot.bottom}" x2="{place:.1f}" y2="{plot.bottom - 7}"/>')
    points = " ".join(f"{plot.x(size):.1f},{plot.y(ms):.1f}" for size, ms in zip(data.sizes, data.ms, strict=True))
    plot.parts.append(f'<polyline class="curve" points="{points}"/>')
    if data.kept:
        place = plot.x(data.kept)
        # The curve rises to the right, so the room for words is on the left, unless there is none.
        anchor, shift = ("end", -7) if place > _LEFT + 120 else ("start", 7)
        plot.parts.append(f'<line class="limit" x1="{place:.1f}" y1="{_TOP}" x2="{place:.1f}" y2="{plot.bottom}"/>')
        plot.parts.append(
            f'<text class="limit-label" x="{place + shift:.1f}" y="{_TOP + 14}" text-anchor="{anchor}">kept {data.kept}</text>'
        )
    return plot.text()


def pair_map_svg(data: PairMapRecord) -> str:
    """A kernel's time over input and output size: the fuller the colour the longer; a ring at the delivered pair."""
    highest = max(max(max(row) for row in data.ms), 1e-9)
    plot = _Plot(
        f"Time of {data.kernel} over its input and output channels", float(data.columns[-1]), float(data.rows[-1]), right=_RIGHT + 92
    )
    x_edges, y_edges = _edges(data.columns), _edges(data.rows)
    for row, values in enumerate(data.ms):
        top, bottom = plot.y(y_edges[row + 1]), plot.y(y_edges[row])
        start = 0
        levels = [min(_LEVELS, int(value / highest * _LEVELS + 0.5)) for value in values]
        for column in range(len(levels)):
            if column + 1 < len(levels) and levels[column + 1] == levels[start]:
                continue
            left, right = plot.x(x_edges[start]), plot.x(x_edges[column + 1])
            plot.parts.append(_cell(left, top, right - left, bottom - top, levels[start]))
            start = column + 1
    plot.axes(
        nice_ticks(0.0, float(data.columns[-1])), nice_ticks(0.0, float(data.rows[-1])), "output channels", "input channels", grid=False
    )
    if data.kept is not None and all(data.kept):
        plot.parts += _ring(plot.x(data.kept[1]), plot.y(data.kept[0]))
    side = plot.right + 16
    height = (plot.bottom - _TOP) / (_LEVELS + 1)
    for level in range(_LEVELS + 1):
        plot.parts.append(_cell(side, plot.bottom - (level + 1) * height, 14, height, level))
    for value, place in ((highest, _TOP + 10), (0.0, plot.bottom)):
        plot.parts.append(f'<text class="tick" x="{side + 20}" y="{place}">{fmt.milliseconds(value) if value else "0"}</text>')
    return plot.text()


def _cell(x: float, y: float, width: float, height: float, level: int) -> str:
    return (
        f'<rect class="heat" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill-opacity="{0.04 + 0.96 * level / _LEVELS:.2f}"/>'
    )


def _ring(x: float, y: float) -> list[str]:
    """A ring that stands out from any colour below it."""
    return [f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="7"/>' for style in ("ring-back", "ring")]


def _edges(sizes: tuple[int, ...]) -> list[float]:
    """Borders half-way between neighbouring sizes; the outermost at 0 and at the largest size."""
    return [0.0, *((a + b) / 2 for a, b in zip(sizes, sizes[1:], strict=False)), float(sizes[-1])]


def scatter_svg(data: PredictionPoints) -> str:
    """Predicted against measured latency, with the +-10 % band and the delivered network."""
    points = [*zip(data.measured, data.predicted, strict=True), *((data.delivered,) if data.delivered is not None else ())]
    end = max(max(pair) for pair in points) * 1.06
    plot = _Plot("Predicted against measured latency", end, end)
    corner = end / 1.1
    band = ((0.0, 0.0), (corner, end), (end, end), (end, 0.9 * end))
    plot.parts.append('<polygon class="band" points="' + " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in band) + '"/>')
    ticks = nice_ticks(0.0, end)
    plot.axes(ticks, ticks, "measured, milliseconds", "predicted, milliseconds")
    plot.parts.append(f'<line class="even" x1="{plot.x(0)}" y1="{plot.y(0)}" x2="{plot.x(end):.1f}" y2="{plot.y(end):.1f}"/>')
    for measured, predicted in zip(data.measured, data.predicted, strict=True):
        title = f"predicted {fmt.milliseconds(predicted)}, measured {fmt.milliseconds(measured)}"
        plot.parts.append(
            f'<circle class="point" cx="{plot.x(measured):.1f}" cy="{plot.y(predicted):.1f}" r="4"><title>{title}</title></circle>'
        )
    if data.delivered is not None:
        x, y = (plot.x(data.delivered[0]), plot.y(data.delivered[1]))
        plot.parts += _ring(x, y)
        # Below the band there is always room.
        plot.parts.append(f'<text class="limit-label" x="{min(x + 12, plot.right - 76):.1f}" y="{y + 20:.1f}">delivered</text>')
    return plot.text()
