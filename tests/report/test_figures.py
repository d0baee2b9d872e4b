from __future__ import annotations

from pathlib import Path

import pytest

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.problem import Solution
from latprune.report import (
    TradeOffPoint,
    compute_frontier,
    new_figure,
    plot_frontier,
    plot_result,
    plot_trade_off,
    plot_widths,
    save_figure,
)
from latprune.report.data import compute_widths
from latprune.solve import Frontier, FrontierPoint, solve_frontier
from support.problems import medium_problem
from support.sample_record import sample_dict, sample_record


def test_the_bars_are_as_long_as_the_widths() -> None:
    rows = compute_widths(sample_record())
    axes = new_figure(5, 5).subplots()
    plot_widths(rows, axes)
    lengths = [patch.get_width() for patch in axes.patches]  # type: ignore[attr-defined]
    assert lengths[: len(rows)] == [row.dense for row in rows]
    assert lengths[len(rows) :] == [0 if row.removed else row.kept for row in rows]
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.name for row in rows]


def test_a_frontier_is_read_in_order_and_unsolved_limits_are_left_out() -> None:
    solutions = [
        {"limit": 3.0, "status": "optimal", "gain": 2.0, "costs": {"latency": 2.9}},
        {"limit": 1.0, "status": "infeasible", "gain": None, "costs": None},
        {"limit": 2.0, "status": "feasible", "gain": 1.0, "costs": {"latency": 1.8}},
    ]
    curve = compute_frontier({"format": "latprune/frontier", "version": 1, "resource": "latency", "solutions": solutions}, unit="ms")
    assert (curve.limits, curve.costs, curve.gains, curve.optimal) == ((2.0, 3.0), (1.8, 2.9), (1.0, 2.0), (False, True))
    axes = new_figure(3, 3).subplots()
    plot_frontier(curve, axes)
    assert list(axes.lines[0].get_xdata()) == [1.8, 2.9]
    assert [dots.get_offsets().tolist() for dots in axes.collections] == [[[2.9, 2.0]], [[1.8, 1.0]]]  # type: ignore[union-attr]
    assert axes.get_xlabel() == "latency, ms"
    with pytest.raises(FileFormatError, match="not a frontier"):
        compute_frontier({"format": "latprune/problem"})


def test_a_solved_frontier_is_drawn_and_an_empty_one_refused() -> None:
    found = solve_frontier(medium_problem(0), "latency", points=6)
    curve = compute_frontier(found.to_dict(), unit=found.unit)
    assert curve.gains == tuple(point.solution.gain for point in found.points)
    empty = Frontier(resource="r", unit="", points=(FrontierPoint(limit=1.0, solution=Solution(solver="exact", status="limit")),))
    with pytest.raises(InvalidArgumentError, match="nothing to draw"):
        plot_frontier(compute_frontier(empty.to_dict()), new_figure(3, 3).subplots())


def test_the_trade_off_is_drawn_in_percent() -> None:
    axes = new_figure(4, 3).subplots()
    points = [
        TradeOffPoint(label="dense", latency=1.0, accuracy=0.93),
        TradeOffPoint(label="mdp", latency=0.49, accuracy=0.92, low=0.48, high=0.5, highlight=True),
    ]
    plot_trade_off(points, axes, budget=0.5)
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [(100.0, 93.0), (49.0, 92.0)]
    assert {"dense  93.00 %", "mdp  92.00 %", "budget"} == {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("kind", ["svg", "png", "pdf", "PNG"])
def test_the_same_result_gives_the_same_file(tmp_path: Path, kind: str) -> None:
    first = save_figure(plot_result(sample_record()), tmp_path / f"a.{kind}").read_bytes()
    second = save_figure(plot_result(sample_record()), tmp_path / f"b.{kind}").read_bytes()
    assert first == second and len(first) > 1000


def test_results_without_latency_or_groups_are_drawn_too(tmp_path: Path) -> None:
    data = sample_dict()
    bare = {name: {"parameters": data[name]["parameters"], "macs": data[name]["macs"]} for name in ("dense", "pruned")}
    save_figure(plot_result(sample_record(**bare)), tmp_path / "widths.svg")
    save_figure(plot_result(sample_record(groups=[])), tmp_path / "latency.svg")
    with pytest.raises(InvalidArgumentError, match="must end in"):
        save_figure(plot_result(sample_record()), tmp_path / "figure.bmp")


def test_labels_of_points_that_lie_close_cover_neither_each_other_nor_dots() -> None:
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    places = [("dense", 1.0, 0.9339), ("flops=70%", 1.02, 0.9317), ("flops=50%", 0.752, 0.9151), ("by tables", 0.658, 0.9123)]
    plot_trade_off([TradeOffPoint(label=n, latency=x, accuracy=y, highlight=n == "by tables") for n, x, y in places], axes)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(places) and not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    dots = [axes.transData.transform((100 * x, 100 * y)) for _, x, y in places]
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    inside = axes.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)
