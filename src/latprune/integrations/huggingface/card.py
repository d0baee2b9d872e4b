"""The model card: what was measured, on what, against which budget, in the form that the Hub reads (YAML front matter and Markdown)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from latprune.errors import InvalidArgumentError
from latprune.export.record import LatencyRecord, NetworkRecord, ResultRecord
from latprune.report import formatting as fmt
from latprune.report.data import compute_verdict

__all__ = ["model_card"]


def model_card(
    record: ResultRecord,
    *,
    loads_with: str = "latprune",
    model_class: str | None = None,
    repository: str = "FOLDER",
    metadata: Mapping[str, Any] | None = None,
    introduction: str = "",
) -> str:
    """The model card of a result, as Markdown with a YAML header. What was not measured is said to be so; nothing is estimated.

    Args:
        record: The result's record.
        loads_with: ``"transformers"`` where its own ``from_pretrained`` loads the folder, else ``"latprune"``.
        model_class: Name of the model's class, for the lines that load it.
        repository: Folder or repository to name in the lines that load it.
        metadata: Further entries of the header (``license``, ``base_model``, ``datasets``, ``language``): JSON values.
        introduction: Text of your own below the title.

    Raises:
        InvalidArgumentError: ``loads_with`` is neither, or an entry of ``metadata`` is no JSON value.

    Example:
        >>> print(model_card(result.record, metadata={"license": "apache-2.0"}))  # doctest: +SKIP
    """
    if loads_with not in ("transformers", "latprune"):
        raise InvalidArgumentError(f"loads_with (={loads_with!r}) must be 'transformers' or 'latprune'")
    header: dict[str, Any] = {"library_name": loads_with, "tags": ["pruned", "latprune"], **dict(metadata or {})}
    header["tags"] = list(dict.fromkeys([*header["tags"], "pruned", "latprune"]))
    parts = [
        _front_matter(header),
        f"# {record.model.name}, pruned to {record.budget.text}",
        introduction.strip(),
        f"{compute_verdict(record).text}.",
        _table(record),
        _conditions(record),
        _loading(record, loads_with, model_class, repository),
        _notes(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(header: Mapping[str, Any]) -> str:
    """JSON values are YAML, one entry a line."""
    lines = []
    for name, value in header.items():
        try:
            lines.append(f"{name}: {json.dumps(value, allow_nan=False)}")
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"metadata[{name!r}] (={value!r}) must be a JSON value: {error}") from error
    return "\n".join(["---", *lines, "---"])


def _table(record: ResultRecord) -> str:
    dense, pruned = record.dense, record.pruned
    rows = [
        ("latency", _latency(dense.latency), _latency(pruned.latency)),
        ("of the dense latency", "", _ratio(pruned.latency)),
        ("accuracy", _accuracy(dense), _accuracy(pruned)),
        ("multiply-adds", fmt.count(dense.macs), fmt.count(pruned.macs)),
        ("parameters", fmt.count(dense.parameters), fmt.count(pruned.parameters)),
    ]
    lines = ["| | dense | pruned |", "|---|---:|---:|"]
    return "\n".join(lines + [f"| {label} | {before} | {after} |" for label, before, after in rows if before or after])


def _latency(found: LatencyRecord | None) -> str:
    return "not measured" if found is None else f"{fmt.milliseconds(found.ms)} ({fmt.interval(found.low, found.high)})"


def _ratio(found: LatencyRecord | None) -> str:
    if found is None or found.ratio is None:
        return ""
    between = ""
    if found.ratio_low is not None and found.ratio_high is not None:
        between = f" ({found.ratio_low * 100:.1f} – {found.ratio_high * 100:.1f})"
    return fmt.percent(found.ratio) + between


def _accuracy(network: NetworkRecord) -> str:
    return "not measured" if network.accuracy is None else fmt.percent(network.accuracy, 2)


def _conditions(record: ResultRecord) -> str:
    where, budget = record.provenance, record.budget
    inputs = ", ".join(f"{entry.name or 'input'} {fmt.shape(entry.shape)} {entry.dtype}" for entry in record.model.inputs)
    versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    asked = "; ".join(entry.text for entry in (budget, *record.further_budgets))
    measured = record.pruned.latency is not None
    lines = [
        f"- Budget: {asked}",
        f"- {'Measured on' if measured else 'Asked for on (not measured)'}: {record.target}",
        f"- Processor: {where.processor}" if where.processor else "",
        f"- Inputs: {inputs}" if inputs else "",
        f"- Method: {record.method.name}",
        f"- Made: {where.created}" + (f", with {versions}" if versions else ""),
    ]
    if measured:
        lines.append("- Latencies are medians with their 95 % intervals, in milliseconds; dense and pruned network were run in turns.")
    return "## How it was measured\n\n" + "\n".join(line for line in lines if line)


def _loading(record: ResultRecord, loads_with: str, model_class: str | None, repository: str) -> str:
    if loads_with == "transformers":
        name = model_class or "AutoModel"
        code = f"from transformers import {name}\n\nmodel = {name}.from_pretrained({json.dumps(repository)})"
    else:
        module = "latprune.integrations.huggingface"
        code = f"from {module} import from_pretrained\n\nmodel = from_pretrained({json.dumps(repository)})"
    return f"## How to load it\n\n```python\n{code}\n```"


def _notes(record: ResultRecord) -> str:
    return "## Remarks\n\n" + "\n".join(f"- {note}" for note in record.notes) if record.notes else ""
