"""The explorer: one self-contained HTML page over the networks along a frontier; script and style are files of their own."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from html import escape
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

from latprune.block_names import shown_block
from latprune.errors import InvalidArgumentError
from latprune.export.exploration import CostRecord, ExplorationRecord
from latprune.report.style import STYLE
from latprune.storage import write_atomic

__all__ = ["LARGEST_PAGE", "explorer_frame", "explorer_page", "write_explorer"]

LARGEST_PAGE = 500_000
"""Bytes that a page may have."""
MOST_BESIDE = 3
"""Explorations for other targets that a page may show: as many as have colours and dashes of their own."""

_RESOURCES = {"latency": "latency", "flops": "multiply-adds", "params": "parameters"}


def write_explorer(
    record: ExplorationRecord, path: str | Path, *, file: str | None = None, beside: Sequence[ExplorationRecord] = ()
) -> Path:
    """Write the explorer of ``record`` as one HTML file that needs nothing else; replaced in one step.

    Args:
        record: An exploration, from ``explore()`` or read with :meth:`ExplorationRecord.read`.
        path: File to write; its folder is made.
        file: Where the ``explorer.json`` of it lies, as the commands on the page name it; None: beside the page, under its name.
        beside: Explorations of the same model for other targets, whose networks are shown beside it at each budget.

    Returns:
        The path written.

    Raises:
        InvalidArgumentError: The page would be larger than 500 kB, or what is beside is of another model, resource or of too many targets.

    Example:
        >>> write_explorer(ExplorationRecord.read("explorer.json"), "explorer.html")  # doctest: +SKIP
    """
    path = Path(path)
    page = explorer_page(record, file=file if file is not None else str(path.with_suffix(".json")), beside=beside)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page)
    return path


def explorer_page(record: ExplorationRecord, *, file: str = "explorer.json", beside: Sequence[ExplorationRecord] = ()) -> str:
    """The explorer of ``record`` as HTML text; its staircases get coarser where the page would be too large with them.

    Raises:
        InvalidArgumentError: Even so it would be larger than 500 kB, or what is beside it cannot be shown with it.
    """
    others = _others(record, beside)
    for cells in (None, 128, 48, 0):
        page = _page(record, {**explorer_data(record, file=file, cells=cells), **({"others": others} if others else {})})
        size = len(page.encode())
        if size <= LARGEST_PAGE:
            return page
    raise InvalidArgumentError(
        f"points (={len(record.points)}) make a page of {size} bytes for {len(record.groups)} groups, and it may have {LARGEST_PAGE}; "
        "explore with fewer points"
    )


def explorer_frame(record: ExplorationRecord) -> str:
    """The page in a frame, for notebooks: its script runs apart from the notebook's page."""
    page = escape(explorer_page(record), quote=True)
    return (
        f'<iframe title="Explorer of {escape(record.model.name)}" sandbox="allow-scripts" allow="clipboard-write" loading="lazy" '
        f'style="width:100%;height:760px;border:0" srcdoc="{page}"></iframe>'
    )


def explorer_data(record: ExplorationRecord, *, file: str, cells: int | None = None) -> dict[str, Any]:
    """What the page's script reads: the record without what only a later run needs, and the texts that lead to its networks.

    Args:
        record: The exploration.
        file: Where its ``explorer.json`` lies.
        cells: Entries that a layer's cost table may have; None leaves them as they are.
    """
    data = record.to_dict()
    data["model"] = {"name": record.model.name}
    for name in ("provenance", "settings", "seconds", "method"):
        data.pop(name, None)
    for block in data.get("blocks", ()):
        block["name"] = shown_block(block["name"])
    if cells is not None:
        for layer, entry in zip(record.layers, data["layers"], strict=True):
            costs = [cost for cost in layer.costs if cost.coefficient is not None or cells]
            entry["costs"] = [_thinned(cost, cells).model_dump(mode="json", exclude_defaults=True) for cost in costs]
    data["file"] = file
    data["command"] = f"latprune prune {shlex.join(record.command)}" if record.command else ""
    data["python"] = _python(record)
    data["words"] = _RESOURCES[record.resource]
    data["target_name"] = str(record.target)
    return data


def _others(record: ExplorationRecord, beside: Sequence[ExplorationRecord]) -> list[dict[str, Any]]:
    """What the page shows of explorations for other targets: their networks, by the names of their targets."""
    check_beside(str(record.target), record.resource, _groups(record), [block.name for block in record.blocks], beside)
    found = []
    for other in beside:
        known = {"value", "low", "high", "gain", "macs", "widths", "removed"}
        points = [point.model_dump(mode="json", exclude_defaults=True, include=known) for point in other.points]
        dense = other.dense.model_dump(mode="json", exclude_defaults=True, include=known)
        found.append({"name": str(other.target), "worth": other.worth, "dense": dense, "points": points})
    return found


def check_beside(
    target: str, resource: str, groups: Sequence[tuple[str, int, int]], blocks: Sequence[str], beside: Sequence[ExplorationRecord]
) -> None:
    """Refuse explorations that no page can show beside one of ``target``, by ``resource``, with these groups and blocks.

    Args:
        target: The target in words.
        resource: What is explored.
        groups: Name, rows and dense width of each channel group.
        blocks: Names of the residual blocks.
        beside: The explorations for other targets.

    Raises:
        InvalidArgumentError: One is of another model or resource, a target is there twice, or they are too many.
    """
    if len(beside) > MOST_BESIDE:
        raise InvalidArgumentError(
            f"beside (={len(beside)} explorations) must be at most {MOST_BESIDE}: more cannot be told apart on one page"
        )
    for other in beside:
        if other.resource != resource:
            raise InvalidArgumentError(
                f"beside holds an exploration by {_RESOURCES[other.resource]}, and this one is by {_RESOURCES[resource]}; explore both "
                "by the same resource"
            )
        if differs := _difference(groups, blocks, other):
            raise InvalidArgumentError(
                f"beside holds an exploration of another model, with {differs}; explore the same model for both targets"
            )
    names = [target, *(str(other.target) for other in beside)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidArgumentError(f"beside holds {twice} twice; give explorations for different targets")


def _groups(record: ExplorationRecord) -> list[tuple[str, int, int]]:
    return [(group.name, group.rows, group.dense) for group in record.groups]


def _difference(groups: Sequence[tuple[str, int, int]], blocks: Sequence[str], other: ExplorationRecord) -> str:
    """The first difference between models; empty where there is none."""
    for mine, theirs in zip_longest(groups, _groups(other)):
        if mine != theirs:
            shown = ["none" if group is None else f"{group[0]!r} of {group[2]}" for group in (theirs, mine)]
            return f"a group {shown[0]} where this one has {shown[1]}"
    return "other blocks" if list(blocks) != [block.name for block in other.blocks] else ""


def _thinned(cost: CostRecord, cells: int) -> CostRecord:
    """The same table at fewer sizes, the largest ones among them."""
    if len(cost.values) <= cells:
        return cost
    most = max(2, int(cells ** (1.0 / len(cost.sizes))))
    kept = []
    for sizes in cost.sizes:
        count = len(sizes)
        kept.append(
            sorted({round(place * (count - 1) / (min(most, count) - 1)) for place in range(min(most, count))}) if count > 1 else [0]
        )
    values: list[int] = [0]
    for places, sizes in zip(kept, cost.sizes, strict=True):
        values = [start * len(sizes) + place for start in values for place in places]
    return cost.model_copy(
        update={
            "sizes": tuple(tuple(sizes[place] for place in places) for places, sizes in zip(kept, cost.sizes, strict=True)),
            "values": tuple(cost.values[place] for place in values),
        }
    )


def _python(record: ExplorationRecord) -> str:
    """Lines that cut a network; the script puts file and share where the braces are."""
    target = record.target
    return (
        "import latprune\n\n"
        "found = latprune.Exploration.load({file})\n"
        "result = latprune.prune(\n"
        "    model,\n"
        "    example_inputs,\n"
        "    pick=found.pick({pick}),\n"
        f"    method={json.dumps(record.method.name)},\n"
        "    target=latprune.Target(\n"
        f"        engine={json.dumps(target.engine)},\n"
        f"        device={json.dumps(target.device)},\n"
        f"        threads={target.threads},\n"
        f"        batch={target.batch},\n"
        f"        precision={json.dumps(target.precision)},\n"
        "    ),\n"
        "    data=batches,\n"
        ")"
    )


def _page(record: ExplorationRecord, data: dict[str, Any]) -> str:
    script, style, body = _resource("explorer.js"), STYLE + _resource("explorer.css"), _resource("explorer.body.html")
    # In a script element no name from the model may end it.
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    proven = sum(point.proven for point in record.points)
    budgets = "; ".join(f"{entry.text} holds for all" for entry in record.further_budgets)
    about = ", ".join(
        text
        for text in (
            f"By {_RESOURCES[record.resource]}; {record.method.name.upper().replace('_', '-')} for {record.target}",
            f"{len(record.points)} networks from the smallest to the dense one, {'all' if proven == len(record.points) else proven} proven",
            budgets,
        )
        if text
    )
    source = record.provenance
    notes = [*record.notes, f"Made by latprune, {source.created}. FLOPs are multiply-adds."]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(record.model.name)}: every budget</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escape(record.model.name)}: every budget</h1><p>{escape(about)}</p></header>\n"
        f"{body}\n<footer>{''.join(f'<p>{escape(note)}</p>' for note in notes)}</footer>\n</main>\n"
        f'<script type="application/json" id="data">{embedded}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )


def _resource(name: str) -> str:
    return resources.files("latprune.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The text as a content security policy names it, so that nothing else runs or draws."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
