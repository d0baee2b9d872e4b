"""Rows summed up over seeds, and which of them nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev

from latprune.report.trade_off import TradeOff
from latprune.sweeping.rows import SweepRow

__all__ = ["summarise"]


def summarise(rows: Sequence[SweepRow]) -> list[TradeOff]:
    """Means over the seeds for each engine, method and budget, in the rows' order; what lies on an engine's Pareto front is marked.

    A point is on the front where no other of its engine has both a higher accuracy and a lower cost. The cost is the measured latency as a
    share of the dense one; where nothing was measured, the multiply-adds.

    Args:
        rows: Rows of a sweep; those without a network are left out.

    Returns:
        One entry for each engine, method and budget.
    """
    groups: dict[tuple[str, str, str], list[SweepRow]] = {}
    for row in rows:
        if row.answer == "pruned":
            groups.setdefault((row.engine, row.method, row.budget), []).append(row)
    found = [_point(engine, method, budget, group) for (engine, method, budget), group in groups.items()]
    return [replace(point, best=_on_front(point, [other for other in found if other.engine == point.engine])) for point in found]


def _point(engine: str, method: str, budget: str, rows: list[SweepRow]) -> TradeOff:
    ratios = [row.ratio for row in rows if row.ratio is not None]
    macs = [row.macs for row in rows if row.macs is not None]
    accuracies = [row.accuracy for row in rows if row.accuracy is not None]
    return TradeOff(
        engine=engine,
        method=method,
        budget=budget,
        seeds=len(rows),
        latency=mean(ratios) if len(ratios) == len(rows) else None,
        macs=mean(macs) if macs else None,
        accuracy=mean(accuracies) if len(accuracies) == len(rows) else None,
        spread=stdev(accuracies) if len(accuracies) == len(rows) > 1 else None,
        over=sum(row.verdict == "over" for row in rows),
    )


def _on_front(point: TradeOff, others: list[TradeOff]) -> bool:
    if point.accuracy is None or point.cost is None:
        return False
    for other in others:
        if other is point or other.accuracy is None or other.cost is None or (other.latency is None) != (point.latency is None):
            continue
        no_worse = other.accuracy >= point.accuracy and other.cost <= point.cost
        if no_worse and (other.accuracy > point.accuracy or other.cost < point.cost):
            return False
    return True
