"""One self-contained HTML page: no script, no network, no font to fetch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

from latprune.block_names import shown_block
from latprune.export.record import LatencyRecord, ResultRecord
from latprune.report import formatting as fmt
from latprune.report.data import ReportData, compute_report
from latprune.report.style import STYLE
from latprune.report.svg import accuracy_svg, latency_svg, loss_svg
from latprune.report.table_svg import pair_map_svg, scatter_svg, staircase_svg
from latprune.storage import write_atomic

__all__ = ["html_page", "write_html"]

_UNIT = re.compile(r" (%|ms\b|s\b|– |points\b)")


def write_html(record: ResultRecord, path: str | Path) -> Path:
    """Write the report of ``record`` as one HTML file that needs nothing else; replaced in one step.

    Args:
        record: A result, from ``prune()`` or read with :meth:`ResultRecord.read`.
        path: File to write; its folder is made.

    Returns:
        The path written.

    Example:
        >>> write_html(ResultRecord.read("pruned/result.json"), "report.html")  # doctest: +SKIP
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, html_page(record))
    return path


def html_page(record: ResultRecord) -> str:
    """The report of ``record`` as HTML text."""
    data = compute_report(record)
    sections = (
        _header(data),
        _tiles(data),
        _comparison(data),
        _figures(data),
        _widths(data),
        _blocks(data),
        _recovery(data),
        _tables(data),
        _solving(data),
        _running(data),
        _provenance(data),
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(data.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(value: str) -> str:
    """Escaped text in which a number stays on the line of its unit, and an interval on one line."""
    return _UNIT.sub(lambda match: "\u00a0" + match[1].replace(" ", "\u00a0"), escape(value))


def _card(title: str, content: str) -> str:
    return f'<section class="card"><h2>{_text(title)}</h2>{content}</section>'


def _figure(title: str, figure: str, caption: str) -> str:
    return _card(title, f'{figure}<p class="legend" style="margin:8px 0 0">{_text(caption)}</p>')


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already; the first cell of each row names it."""
    cells = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    body = ""
    for first, *rest in rows:
        body += f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts if value) + "</dl>"


def _header(data: ReportData) -> str:
    mark = {"met": "✓ ", "over": "✗ ", "unknown": ""}[data.verdict.outcome]
    look: str = data.verdict.outcome
    advice = ""
    if data.advice is not None:
        # A budget that is met by a network nobody can use gets no green tick.
        if data.advice.warns:
            look, mark = ("warns" if look == "met" else look), ("! " if look == "met" else mark)
        advice = f'<p class="next{" warns" if data.advice.warns else ""}">Next: {_text(data.advice.text)}.</p>'
    how = "Measured on" if data.latency is not None else "Pruned for"
    return (
        f"<header><h1>{_text(data.title)}</h1><p>{how} {_text(data.target)}</p>"
        f'<p class="verdict {look}">{mark}{_text(data.verdict.text)}</p>{advice}</header>'
    )


def _tiles(data: ReportData) -> str:
    tiles = ""
    for row in data.comparison:
        if row.label.startswith(("Accuracy", "Latency", "Parameters", "FLOPs")):
            name = row.label.partition(",")[0].partition(" (")[0]
            origin = f"from {row.dense}" + (f", {row.change}" if row.change else "")
            tiles += (
                f'<div class="tile"><div class="name">{_text(name)}</div><div class="value">{_text(row.pruned)}</div>'
                f'<div class="from">{_text(origin)}</div></div>'
            )
    return f'<div class="tiles">{tiles}</div>'


def _comparison(data: ReportData) -> str:
    def cell(value: str, details: tuple[str, ...]) -> str:
        return _text(value) + "".join(f"<small>{_text(detail)}</small>" for detail in details)

    rows = [
        (_text(row.label), cell(row.dense, row.detail_dense), cell(row.pruned, row.detail_pruned), _text(row.change))
        for row in data.comparison
    ]
    return _card("Before and after", _table(("", "dense", "pruned", "change"), rows))


def _figures(data: ReportData) -> str:
    cards = ""
    if data.latency is not None:
        caption = "Whiskers: 95 % interval of the median; both networks measured in turns."
        if data.latency.predicted is not None:
            caption += " Triangle: predicted from the tables."
        cards += _figure("Latency", latency_svg(data.latency), caption)
    if data.accuracies:
        cards += _card("Accuracy through the run", accuracy_svg(data.accuracies))
    if len(data.losses) > 1:
        cards += _card("Loss of the training", loss_svg(data.losses))
    return f'<div class="pair">{cards}</div>' if cards else ""


def _widths(data: ReportData) -> str:
    if not data.widths:
        return ""
    widest = max(row.dense for row in data.widths)
    rows = ""
    for row in data.widths:
        gone = " gone" if row.removed else ""
        full, kept = 100.0 * row.dense / widest, 0.0 if row.removed else 100.0 * row.share
        number = "removed" if row.removed else f"{row.kept} of {row.dense}"
        rows += (
            f'<div class="name{gone}">{_text(row.name)}</div>'
            f'<div class="track"><div class="full" style="width:{full:.2f}%"><div class="fill" style="width:{kept:.2f}%"></div></div></div>'
            f'<div class="number{gone}">{number}</div>'
        )
    legend = (
        '<p class="legend"><i style="background:var(--kept)"></i>kept<i style="background:var(--dense)"></i>removed; '
        "bars are as long as the dense width</p>"
    )
    return _card("Widths per layer", f'{legend}<div class="widths">{rows}</div>')


def _blocks(data: ReportData) -> str:
    if not data.blocks:
        return ""
    title = f"Blocks removed: {len(data.blocks_removed)} of {data.blocks} removable"
    if not data.blocks_removed:
        return _card(title, "<p>All blocks stayed.</p>")
    return _card(title, '<ul class="chips">' + "".join(f"<li>{_text(shown_block(name))}</li>" for name in data.blocks_removed) + "</ul>")


def _tables(data: ReportData) -> str:
    tables, cards = data.record.tables, ""
    if tables is None:
        return ""
    if data.predictions is not None:
        found = data.predictions
        caption = (
            f"Dots: the last {len(found.measured)} of {tables.networks} width-varied networks, each predicted before it joined the fit; "
            f"{fmt.percent(found.mean_absolute)} off on average, {fmt.percent(found.within_10, 0)} inside the shaded ±10 %."
        )
        if found.delivered is not None:
            caption += " Ring: the delivered network."
        cards += _figure("Latency tables: predicted and measured", scatter_svg(found), caption)
    if tables.pair_map is not None:
        caption = "Time over both sizes that the table is read with; the fuller the colour, the longer."
        if tables.pair_map.kept is not None:
            caption += f" Ring: delivered, {tables.pair_map.kept[0]} in and {tables.pair_map.kept[1]} out."
        cards += _figure(f"Pairs of sizes: {tables.pair_map.kernel}", pair_map_svg(tables.pair_map), caption)
    for stairs in tables.staircases:
        caption = "The table's time over one size, all others dense. Ticks: "
        caption += "sizes on offer." if stairs.offered else "right ends of the steps."
        if stairs.kept is None:
            caption += " This kernel went with its block."
        cards += _figure(f"Staircase: {stairs.kernel}", staircase_svg(stairs), caption)
    return f'<div class="pair">{cards}</div>' if cards else ""


def _recovery(data: ReportData) -> str:
    """What was done to bring accuracy back without training, layer by layer."""
    if data.recovery is None:
        return ""

    def error(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}"

    def remark(text: str) -> str:
        return f'<span class="remark">{_text(text)}</span>' if text else ""

    rows = [
        (_text(layer.name), _text(layer.action or "left alone"), layer.at, error(layer.before), error(layer.after), remark(layer.remark))
        for layer in data.recovery.layers
    ]
    head = ("layer", "done", "compared at", "error before", "after", "remark")
    return _figure(
        "Recovery without training",
        _table(head, rows),
        f"{data.recovery.summary}. Errors are on held-out inputs, relative to the variation of the dense network's result; "
        "a layer that was left alone shows what the change would have given.",
    )


def _solving(data: ReportData) -> str:
    cards = ""
    if data.solver is not None:
        solver = data.solver
        facts = [
            ("Solver", solver.name),
            ("Status", solver.status),
            ("Gap", f"{solver.gap:.3g}" if solver.gap is not None else "no bound"),
            ("Gain", f"{solver.gain:.6g}" if solver.gain is not None else ""),
            ("Upper bound", f"{solver.bound:.6g}" if solver.bound is not None else ""),
            ("Variables", str(solver.variables) if solver.variables is not None else ""),
            ("Time", fmt.seconds(solver.seconds) if solver.seconds is not None else ""),
        ]
        cards += _card("Solver", _facts(facts))
    rows = [
        (
            f"{item.first}" if item.again == 0 else f"{item.first} (+{item.again})",
            fmt.milliseconds(item.limit_ms),
            fmt.milliseconds(item.predicted_ms),
            fmt.milliseconds(item.measured_ms),
            fmt.change(item.predicted_ms, item.measured_ms),
        )
        for item in data.candidates
    ]
    if data.latency is not None and data.latency.predicted is not None:
        final = data.latency.pruned.ms
        rows.append(
            (
                "final",
                fmt.milliseconds(data.latency.limit) if data.latency.limit is not None else "–",
                fmt.milliseconds(data.latency.predicted),
                fmt.milliseconds(final),
                fmt.change(data.latency.predicted, final),
            )
        )
    if rows:
        table = _table(("round", "limit", "predicted", "measured", "error"), rows)
        if any(item.again for item in data.candidates):
            cards += _figure("Predicted and measured", table, "(+n): n later rounds led to the same network.")
        else:
            cards += _card("Predicted and measured", table)
    return f'<div class="pair">{cards}</div>' if cards else ""


def _running(data: ReportData) -> str:
    record, cards = data.record, ""
    if record.stages:
        longest = max(max(stage.seconds for stage in record.stages), 1e-9)
        total = sum(stage.seconds for stage in record.stages)
        rows = "".join(
            f"<div>{_text(stage.name)}</div>"
            f'<div class="track"><div class="fill" style="width:{100 * stage.seconds / longest:.1f}%"></div></div>'
            f'<div class="number">{fmt.seconds(stage.seconds)}</div>'
            for stage in record.stages
        )
        cards += _card(f"Time of each stage, {fmt.seconds(total)} in all", f'<div class="stages">{rows}</div>')
    checks = []
    if record.equality is not None:
        checks.append(
            (
                "Pruned network against masked network",
                f"largest difference {record.equality.max_abs_error:.1e} ({record.equality.max_rel_error:.1e} relative)",
            )
        )
    for check in record.verifications:
        ratio = f", {fmt.percent(check.pruned.ratio)} of dense" if check.pruned.ratio is not None else ""
        outcome = "budget met" if check.met else "over budget"
        checks.append((f"Verified {check.created}", f"{fmt.milliseconds(check.pruned.ms)}{ratio}: {outcome}"))
    if checks:
        cards += _card("Checks", _facts(checks))
    if record.notes:
        cards += _card("Notes", '<ul class="notes">' + "".join(f"<li>{_text(note)}</li>" for note in record.notes) + "</ul>")
    return f'<div class="pair">{cards}</div>' if cards else ""


def _precision(latency: LatencyRecord) -> str:
    """How closely the latency is known: by its ratio where it has one, since that is what was pinned down."""
    centre, low, high = latency.ratio, latency.ratio_low, latency.ratio_high
    if centre is None or low is None or high is None:
        centre, low, high = latency.ms, latency.low, latency.high
    return f"95 % interval of ±{fmt.percent((high - low) / 2 / centre)}"


def _provenance(data: ReportData) -> str:
    record = data.record
    source, latency = record.provenance, record.pruned.latency
    measured = ""
    if latency is not None:
        measured = f"{latency.runs} runs" + (f" in {latency.rounds} rounds" if latency.rounds is not None else "")
        measured += f", {_precision(latency)}"
    inputs = ", ".join(
        f"{item.name}: {fmt.shape(item.shape)} {item.dtype}" if item.name else f"{fmt.shape(item.shape)} {item.dtype}"
        for item in record.model.inputs
    )
    options = ", ".join(f"{name}={fmt.option(value)}" for name, value in record.method.options.items())
    facts = [
        ("Target", str(record.target)),
        ("Measurement", measured),
        ("Model", record.model.constructor or record.model.name),
        ("Inputs", inputs),
        ("Method", record.method.name + (f" ({options})" if options else "")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in source.versions.items())),
        ("Machine", " · ".join(text for text in (source.processor, source.platform) if text)),
        ("Seed", str(source.seed) if source.seed is not None else ""),
        ("Command", source.command or ""),
        ("Weights, SHA-256", source.weights_sha256 or ""),
    ]
    when = _text(source.created)
    return _card("Target and provenance", _facts(facts)) + f"<footer>Made by latprune, {when}. FLOPs are multiply-adds.</footer>"
