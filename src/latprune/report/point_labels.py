"""Labels beside the points of a picture, moved out of each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PointLabel", "label_points"]

_PLACES = (
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (7, 9, "left", "bottom"),
    (7, -9, "left", "top"),
    (-7, 9, "right", "bottom"),
    (-7, -9, "right", "top"),
)
"""Offsets in points from the dot, and how the text stands to it; the first that is free is taken."""
_DOT = 5.0
"""Half of the pixels that a dot takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointLabel:
    """A text beside the point ``(x, y)``, in the axes' units; bold ones are placed first."""

    text: str
    x: float
    y: float
    bold: bool = False


def label_points(labels: Sequence[PointLabel], axes: Axes, *, colour: str, size: float) -> None:
    """Write each label where it covers no other label, no dot and no border, as far as there is such a place.

    Args:
        labels: The labels; every one stands beside a dot.
        axes: Where to write; its limits must be the last ones.
        colour: Of the text.
        size: Of the text, points.
    """
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # lays the figure out
    inside = axes.get_window_extent()
    dots = [axes.transData.transform((label.x, label.y)) for label in labels]
    taken: list[Any] = []
    for label in sorted(labels, key=lambda label: not label.bold):
        written = []
        for x, y, horizontal, vertical in _PLACES:
            text = axes.annotate(
                label.text,
                (label.x, label.y),
                xytext=(x, y),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=size,
                color=colour,
                fontweight="bold" if label.bold else "normal",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
            )
            text.set_in_layout(False)
            box = text.get_window_extent()
            covered = sum(box.overlaps(other) for other in taken)
            covered += sum(box.x0 - _DOT < px < box.x1 + _DOT and box.y0 - _DOT < py < box.y1 + _DOT for px, py in dots)
            outside = max(inside.x0 - box.x0, box.x1 - inside.x1, 0.0) + max(inside.y0 - box.y0, box.y1 - inside.y1, 0.0)
            written.append((outside > 0, covered, text, box))
            if not covered and not outside:
                break
        best = min(range(len(written)), key=lambda k: (written[k][0], written[k][1], k))
        for k, (_, _, text, box) in enumerate(written):
            if k == best:
                taken.append(box)
            else:
                text.remove()
