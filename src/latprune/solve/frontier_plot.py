"""The frontier as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latprune.errors import InvalidArgumentError, MissingExtraError
from latprune.solve.frontier import Frontier

__all__ = ["plot_frontier"]


def plot_frontier(frontier: Frontier, path: str | Path | None = None) -> Any:
    """Gain against use of the resource, one dot per limit, proven optima filled.

    Args:
        frontier: What :func:`~latprune.solve.solve_frontier` returned.
        path: Where to save the picture (format by its suffix); None only draws it.

    Returns:
        The matplotlib figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidArgumentError: No limit has an answer.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "demo") from error
    answered = [p.solution for p in frontier.points if p.solution.gain is not None and p.solution.costs is not None]
    if not answered:
        raise InvalidArgumentError("the frontier has no answer at any limit: nothing to draw")
    use = [float((s.costs or {})[frontier.resource]) for s in answered]
    gain = [float(s.gain or 0.0) for s in answered]
    proven = [s.status == "optimal" for s in answered]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.step(use, gain, where="post", linewidth=1.0, color="tab:blue")
    for state, fill, label in ((True, "tab:blue", "optimal"), (False, "white", "best found")):
        chosen = [i for i, p in enumerate(proven) if p == state]
        if chosen:
            axes.scatter(
                [use[i] for i in chosen], [gain[i] for i in chosen], s=18, facecolor=fill, edgecolor="tab:blue", label=label, zorder=3
            )
    axes.set_xlabel(f"{frontier.resource} ({frontier.unit})" if frontier.unit else frontier.resource)
    axes.set_ylabel("gain")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
