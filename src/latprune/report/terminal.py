"""The result as tables for a terminal."""

from __future__ import annotations

import io
from itertools import zip_longest
from typing import TYPE_CHECKING

from latprune.block_names import shown_block
from latprune.export.record import ResultRecord
from latprune.report import formatting as fmt
from latprune.report.data import ReportData, compute_report

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_summary", "summary_text"]

_MARK = {"met": "[green]✓[/green]", "over": "[red]✗[/red]", "unknown": "·"}
_WARNS = "[yellow]![/yellow]"
"""In place of the tick where the budget is met by a network that should not be used as it is."""
_BAR = 24


def print_summary(record: ResultRecord, console: Console | None = None) -> None:
    """Print the before/after table, the widths, the blocks and the seconds of each stage.

    Args:
        record: The result.
        console: A rich console; None takes stdout.
    """
    from rich.console import Console

    data = compute_report(record)
    console = console if console is not None else Console()
    _comparison(data, console)
    _widths(data, console)
    _details(data, console)


def summary_text(record: ResultRecord, *, width: int = 100) -> str:
    """What :func:`print_summary` prints, as plain text of at most ``width`` columns.

    Example:
        >>> print(summary_text(result.record))  # doctest: +SKIP
    """
    from rich.console import Console

    buffer = io.StringIO()
    print_summary(record, Console(file=buffer, width=width, color_system=None, force_terminal=False, legacy_windows=False))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _comparison(data: ReportData, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{escape(data.title)}[/bold]  ({escape(data.target)})", highlight=False)
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("pruned", justify="right")
    table.add_column("change", justify="right")
    for row in data.comparison:
        table.add_row(row.label, row.dense, row.pruned, row.change)
        for before, after in zip_longest(row.detail_dense, row.detail_pruned, fillvalue=""):
            table.add_row("", f"[dim]{before}[/dim]", f"[dim]{after}[/dim]", "")
    console.print(table)
    warns = data.advice is not None and data.advice.warns and data.verdict.outcome == "met"
    console.print(f"{_WARNS if warns else _MARK[data.verdict.outcome]} {escape(data.verdict.text)}", highlight=False)
    if data.advice is not None:
        style = "yellow" if data.advice.warns else "default"
        console.print(f"[{style}]next: {escape(data.advice.text)}[/{style}]", highlight=False)


def _widths(data: ReportData, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not data.widths:
        return
    console.print()
    table = Table(title="Widths per layer", title_justify="left", show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("channel group", overflow="fold")
    table.add_column("dense", justify="right")
    table.add_column("kept", justify="right")
    table.add_column("", no_wrap=True)
    for row in data.widths:
        if row.removed:
            table.add_row(f"[dim]{escape(row.name)}[/dim]", str(row.dense), "–", "[dim]removed with its block[/dim]")
        else:
            full = round(_BAR * row.share)
            table.add_row(escape(row.name), str(row.dense), str(row.kept), "█" * full + f"[dim]{'░' * (_BAR - full)}[/dim]")
    console.print(table)


def _details(data: ReportData, console: Console) -> None:
    from rich.markup import escape

    console.print()
    lines = []
    if data.blocks:
        names = ", ".join(map(shown_block, data.blocks_removed)) or "none"
        lines.append(f"blocks removed: {names} ({len(data.blocks_removed)} of {data.blocks} removable)")
    if data.solver is not None:
        gap = f", gap {data.solver.gap:.2g}" if data.solver.gap is not None else ""
        took = f", {fmt.seconds(data.solver.seconds)}" if data.solver.seconds is not None else ""
        lines.append(f"solver: {data.solver.name}, {data.solver.status}{gap}{took}")
    if data.latency is not None and data.latency.predicted:
        error = data.latency.pruned.ms / data.latency.predicted - 1.0
        lines.append(
            f"predicted {fmt.milliseconds(data.latency.predicted)}, measured {fmt.milliseconds(data.latency.pruned.ms)} ({error:+.1%})"
        )
    if data.accuracies:
        lines.append("accuracy: " + ", ".join(f"{point.label} {fmt.percent(point.accuracy, 2)}" for point in data.accuracies))
    if data.recovery is not None:
        lines.append(f"recovery without training: {data.recovery.summary}")
        lines += [f"  left alone: {', '.join(names)}: {reason}" for reason, names in data.recovery.left.items()]
        noted = {layer.remark for layer in data.recovery.layers if layer.action and layer.remark}
        lines += [
            f"  {', '.join(layer.name for layer in data.recovery.layers if layer.action and layer.remark == remark)}: {remark}"
            for remark in sorted(noted)
        ]
    if data.record.stages:
        lines.append("seconds: " + ", ".join(f"{stage.name} {stage.seconds:.1f}" for stage in data.record.stages))
    lines += [f"note: {note}" for note in data.record.notes]
    for line in lines:
        console.print(escape(line), highlight=False)
