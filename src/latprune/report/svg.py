"""Small figures as SVG text, drawn from report data without a plotting library; colours come from the page's CSS classes."""

from __future__ import annotations

from html import escape

from latprune.report import formatting as fmt
from latprune.report.data import AccuracyPoint, LatencyBars, LossPoint

__all__ = ["accuracy_svg", "latency_svg", "loss_svg", "nice_ticks"]

_WIDTH = 480


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round values (1, 2 or 5 times a power of ten apart) that lie in ``[low, high]``."""
    span = max(high - low, 1e-12)
    power = 10.0 ** _floor_log10(span / count)
    # A step as long as the whole span may have no multiple inside, so half of the span is the longest.
    step = next((power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= max(count, 3)), power * 10)
    first = -(-low // step)
    ticks = []
    while first * step <= high + step * 1e-9:
        ticks.append(round(first * step, 12))
        first += 1
    return ticks


def _floor_log10(value: float) -> int:
    import math

    return math.floor(math.log10(value))


def latency_svg(bars: LatencyBars) -> str:
    """Dense and pruned latency as horizontal bars with their 95 % intervals, the budget as a line, the prediction as a mark."""
    left, right, row = 74, 24, 46
    top = 34 if bars.limit is not None else 10
    height = top + 2 * row + 40
    values = [bars.dense.high, bars.pruned.high, bars.limit or 0.0, bars.predicted or 0.0]
    scale = (_WIDTH - left - right) / (max(values) * 1.02)

    def x(value: float) -> float:
        return left + value * scale

    parts = [f'<svg class="figure" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Latency of the dense and the pruned network">']
    for tick in nice_ticks(0.0, max(values)):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" y1="{top}" x2="{x(tick):.1f}" y2="{top + 2 * row}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{top + 2 * row + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text class="tick" x="{_WIDTH - right}" y="{top + 2 * row + 33}" text-anchor="end">milliseconds per inference</text>')
    for index, (label, latency, style) in enumerate((("dense", bars.dense, "dense"), ("pruned", bars.pruned, "kept"))):
        y = top + index * row + 9
        middle = y + 14
        parts.append(f'<text class="label" x="{left - 10}" y="{middle + 5}" text-anchor="end">{label}</text>')
        parts.append(f'<rect class="{style}" x="{left}" y="{y}" width="{x(latency.ms) - left:.1f}" height="28" rx="3"/>')
        value = fmt.milliseconds(latency.ms)
        parts.append(f'<text class="on-bar" x="{left + 10}" y="{middle + 5}">{value}</text>')
        parts.append(f'<line class="whisker" x1="{x(latency.low):.1f}" y1="{middle}" x2="{x(latency.high):.1f}" y2="{middle}"/>')
        for end in (latency.low, latency.high):
            parts.append(f'<line class="whisker" x1="{x(end):.1f}" y1="{middle - 6}" x2="{x(end):.1f}" y2="{middle + 6}"/>')
    if bars.predicted is not None:
        y = top + row + 37
        parts.append(f'<path class="mark" d="M{x(bars.predicted):.1f} {y} l-5 9 h10 z"><title>predicted</title></path>')
    if bars.limit is not None:
        place = x(bars.limit)
        anchor = "end" if place > _WIDTH * 0.75 else "start" if place < _WIDTH * 0.25 else "middle"
        parts.append(f'<line class="limit" x1="{place:.1f}" y1="{top - 8}" x2="{place:.1f}" y2="{top + 2 * row}"/>')
        parts.append(
            f'<text class="limit-label" x="{place:.1f}" y="{top - 14}" text-anchor="{anchor}">budget {fmt.milliseconds(bars.limit)}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def accuracy_svg(points: tuple[AccuracyPoint, ...]) -> str:
    """Accuracy through the run, one dot per evaluation."""
    left, right, top, bottom, height = 52, 14, 30, 62, 230
    values = [point.accuracy for point in points]
    low, high = min(values), max(values)
    pad = max((high - low) * 0.12, 0.005)
    low, high = max(0.0, low - pad), min(1.0, high + pad)
    inset = 30.0 if len(points) > 1 else (_WIDTH - left - right) / 2
    step = (_WIDTH - left - right - 2 * inset) / max(len(points) - 1, 1)
    digits = 2 if len(points) <= 4 else 1

    def x(index: int) -> float:
        return left + inset + index * step

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    parts = [f'<svg class="figure" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Accuracy through the run">']
    for tick in nice_ticks(low * 100, high * 100, 4):
        place = y(tick / 100)
        parts.append(f'<line class="grid" x1="{left}" y1="{place:.1f}" x2="{_WIDTH - right}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{place + 4:.1f}" text-anchor="end">{tick:g} %</text>')
    path = " ".join(f"{x(index):.1f},{y(point.accuracy):.1f}" for index, point in enumerate(points))
    parts.append(f'<polyline class="curve" points="{path}"/>')
    every = max(1, -(-len(points) // 6))
    last = len(points) - 1
    for index, point in enumerate(points):
        value = point.accuracy
        cx, cy = x(index), y(value)
        title = f"{escape(point.label)}: {fmt.percent(point.accuracy, 2)}"
        parts.append(f'<circle class="dot" cx="{cx:.1f}" cy="{cy:.1f}" r="4.5"><title>{title}</title></circle>')
        if index % every and index != last:
            continue
        if index != last and last - index < every:
            continue
        neighbours = [points[other].accuracy for other in (index - 1, index + 1) if 0 <= other <= last]
        valley = bool(neighbours) and all(point.accuracy < other for other in neighbours)
        above = cy + 20 if valley or cy <= top + 8 else cy - 10
        parts.append(f'<text class="value" x="{cx:.1f}" y="{above:.1f}" text-anchor="middle">{fmt.percent(value, digits)}</text>')
        stage, _, rest = point.label.partition(", ")
        parts.append(f'<text class="tick" x="{cx:.1f}" y="{height - bottom + 22}" text-anchor="middle">{escape(stage)}</text>')
        if rest:
            parts.append(f'<text class="tick" x="{cx:.1f}" y="{height - bottom + 38}" text-anchor="middle">{escape(rest)}</text>')
    parts.append("</svg>")
    return "".join(parts)


def loss_svg(points: tuple[LossPoint, ...]) -> str:
    """Mean loss of each epoch of training, one dot an epoch, with the learning rate in its title."""
    left, right, top, bottom, height = 52, 14, 14, 40, 230
    low, high = min(point.loss for point in points), max(point.loss for point in points)
    pad = max((high - low) * 0.08, 1e-6)
    low, high = low - pad, high + pad
    step = (_WIDTH - left - right - 20) / max(len(points) - 1, 1)
    places = [
        (left + 10 + index * step, top + (high - point.loss) / (high - low) * (height - top - bottom)) for index, point in enumerate(points)
    ]
    parts = [f'<svg class="figure" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Loss of the training">']
    for tick in nice_ticks(low, high, 4):
        y = top + (high - tick) / (high - low) * (height - top - bottom)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{_WIDTH - right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append('<polyline class="curve" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in places) + '"/>')
    for point, (x, y) in zip(points, places, strict=True):
        title = f"{escape(point.label)}: loss {point.loss:.4g}, learning rate {point.learning_rate:.3g}"
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{title}</title></circle>')
    for index, anchor in ((0, "start"), (len(points) - 1, "end")):
        x = places[index][0]
        label = escape(points[index].label)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - bottom + 22}" text-anchor="{anchor}">{label}</text>')
    parts.append("</svg>")
    return "".join(parts)
