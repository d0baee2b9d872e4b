"""Results, graphs and latency tables as short pieces of HTML, for notebooks; colours are the notebook's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from latprune.export.record import ResultRecord
from latprune.report import formatting as fmt
from latprune.report.data import compute_report

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.latency import LatencyTables

__all__ = ["graph_html", "result_html", "tables_html"]

_ROWS = 60
"""Rows of a table, at most: a cell's output is read, not searched."""


def result_html(record: ResultRecord) -> str:
    """The verdict and the before/after table of a result."""
    data = compute_report(record)
    removed = f"{len(data.blocks_removed)} of {data.blocks} removable blocks removed" if data.blocks else ""
    rows = [(row.label, row.dense, row.pruned, row.change) for row in data.comparison]
    return _shown(data.title, (f"for {data.target}", data.verdict.text, removed), ("", "dense", "pruned", "change"), rows)


def graph_html(graph: ModelGraph) -> str:
    """The channel groups of a traced model, and why the rest stays whole."""
    removable = sum(block.removable for block in graph.blocks.values())
    facts = (
        f"{len(graph.groups)} channel groups, {len(graph.kernels)} kernels, {removable} of {len(graph.blocks)} blocks removable",
        f"{fmt.count(graph.parameters(graph.dense_widths()))} parameters, {fmt.count(graph.macs(graph.dense_widths()))} multiply-adds",
    )
    rows = [
        (group.name, group.kind, f"{group.rows} × {group.columns}" if group.rows > 1 else str(group.columns), str(group.min_width))
        for group in graph.groups.values()
    ]
    reasons = [f"{item.what}: {item.reason}" for item in graph.kept_whole]
    return _shown("Traced model", facts, ("channel group", "kind", "width", "smallest"), rows, reasons)


def tables_html(tables: LatencyTables) -> str:
    """The target, the error, and the widths on offer of latency tables."""
    residual, stats = tables.residual, tables.stats
    facts = [
        f"{tables.target}, version {tables.version}",
        f"dense {fmt.milliseconds(tables.dense_ms)}, {len(tables.kernels)} kernels from {stats.networks} networks",
    ]
    if residual.networks:
        facts.append(
            f"predictions {fmt.percent(residual.mean_absolute)} off on average, {fmt.percent(residual.p95)} at the 95th percentile, on "
            f"{residual.networks} networks that had no part in the fit"
        )
    rows = [
        (name, str(dense), str(tables.step(name)), " ".join(map(str, tables.choices(name))))
        for name, dense in list(tables.widths.items())[:_ROWS]
    ]
    return _shown("Latency tables", facts, ("channel group", "dense", "step", "widths on offer"), rows, total=len(tables.widths))


def _shown(
    title: str,
    facts: Iterable[str],
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    reasons: Sequence[str] = (),
    *,
    total: int | None = None,
) -> str:
    cells = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows[:_ROWS])
    left_out = (total if total is not None else len(rows)) - min(len(rows), _ROWS)
    more = f"<p>and {left_out} more</p>" if left_out > 0 else ""
    whole = ""
    if reasons:
        items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
        verb = "stays" if len(reasons) == 1 else "stay"
        whole = f"<details><summary>{len(reasons)} {verb} whole, and why</summary><ul>{items}</ul></details>"
    lines = "".join(f"<div>{escape(fact)}</div>" for fact in facts if fact)
    return (
        f'<div><strong>{escape(title)}</strong>{lines}<div style="max-height:420px;overflow:auto;margin-top:6px">'
        f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>{more}</div>{whole}</div>"
    )
