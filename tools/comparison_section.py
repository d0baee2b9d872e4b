"""The section of docs/benchmarks.md on CIFAR-10 at equal measured latency; ``benchmark_page.py`` puts it on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from page_parts import duration, machine, percent, read, table

__all__ = ["equal_latency"]

_SETTING = ("network", "engine", "device", "batch", "epochs", "train_images", "teacher", "test_images")
_ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_NETWORKS = {
    "resnet20": "ResNet-20",
    "resnet20-conv": "ResNet-20 with convolution shortcuts",
    "resnet56": "ResNet-56",
    "resnet56-conv": "ResNet-56 with convolution shortcuts",
    "vit": "small ViT",
}
_TAUGHT = {
    "no": "",
    "classes": ", the dense network's classes teaching by half",
    "match": " to the dense network's outputs and streams, without labels (the recipe `match-dense`)",
    "match-absolute": " to the dense network's outputs and streams, without labels (the recipe `match-dense`, one rate for all tensors)",
}
_HOW = {"no": "", "classes": ", taught", "match": " without labels", "match-absolute": " without labels, one rate"}
"""How the images of a heading are trained on."""
_MARGINS = {"50%": 0.5, "25%": 1.0}
"""Points by which ours is to be ahead of Torch-Pruning's best, by budget."""

PUBLISHED = (
    ("ResNet-56", "1.9x", "94.16 %", "CHIP", "400 epochs"),
    ("ResNet-56", "2.0x", "93.89 %", "OCSPruner", "best epoch, trained from scratch"),
    ("ResNet-56", "2.57x", "93.64 %", "DepGraph", "not stated"),
    ("ResNet-56", "about 4x", "93.22 %", "–", "not stated"),
)
"""Figures that others published: network, fewer multiply-adds, accuracy, source, recipe."""

_APART = 0.03
"""How far the latencies of two networks may lie apart, relatively, to be compared: the width of the band that ours are accepted in."""
_RESNET20 = 91.73
_TEST_IMAGES = 10_000

Row = Mapping[str, Any]
Cell = tuple[str, str]
"""Budget and method."""


def equal_latency() -> str | None:
    """Who wins at equal measured latency."""
    found = read("cifar10-equal-latency")
    if found is None:
        return None
    parts = []
    rows_known = [{"device": "cpu", **row} for row in found["rows"]]  # the first rows did not say it
    for setting in dict.fromkeys(tuple(row[name] for name in _SETTING) for row in rows_known):
        rows = [row for row in rows_known if tuple(row[name] for name in _SETTING) == setting]
        parts.append(_setting(rows))
    text = (
        "## CIFAR-10 at equal measured latency\n\nEvery network is cut to the same share of the dense network's latency, measured "
        "beside it on one thread, and trained by the same recipe, on as many images in all. The peak rate is, of those tried, the one with "
        "which a method's network of the first seed is best on the test images, for every method alike. Accuracy of the last epoch. `best` "
        "is `mdp` with its channels chosen by reconstruction; ours are recovered without training first, as the library does by default. "
        "Torch-Pruning 1.6.1 (`tp_...`) searches its ratio until the measured latency is within 1.5 % of the budget (or just below, where "
        "its widths leave nothing nearer); `+recover` is its network with our recovery. Networks whose latencies lie more than 3 % apart "
        "are not compared, unless one is faster and more accurate. `tp_best` is the variant, of ten, that is best on training images once "
        "recovered.\n\n"
    )
    source = "`benchmarks/cifar10/equal_latency.py`; with `--gpu` the whole comparison by full recipes, on a GPU"
    return text + "\n\n".join([*parts, _published(), source])


def _setting(rows: Sequence[Row]) -> str:
    """One network under one setting: a table and what it says of the bars."""
    first = rows[0]
    taught = _TAUGHT[first["teacher"]]
    taught += "" if first["test_images"] == _TEST_IMAGES else f"; accuracy on the first {first['test_images']:,} test images"
    device = "" if first["device"] == "cpu" else f" on {first['device']}"
    head = (
        f"### {_NETWORKS.get(first['network'], first['network'])}, {_ENGINES.get(first['engine'], first['engine'])}{device}, batch "
        f"{first['batch']}: {first['epochs']} x {first['train_images']:,} images{_HOW[first['teacher']]}\n\n"
        f"Dense {percent(first['dense_accuracy'], 2)} ({first['dense']}); {first['epochs']} x "
        f"{first['train_images']:,} images of training{taught}. {duration(_seconds(rows))} of machine time: structures, recovery, "
        f"training at every rate. {machine({'rows': rows})}.\n\n"
    )
    lines, values, ratios = [], {}, {}
    for budget, method in dict.fromkeys((row["budget"], row["method"]) for row in rows):
        same = [row for row in rows if (row["budget"], row["method"]) == (budget, method)]
        chosen = _chosen(same)
        if not chosen:
            lines.append([budget, method, *["–"] * 6, _reason(same[0])])
            continue
        trained = [100 * row["trained"] for row in chosen]
        values[budget, method] = mean(trained)
        ratios[budget, method] = mean(row["ratio"] for row in chosen)
        spread = f" ± {stdev(trained):.2f}" if len(trained) > 1 else ""
        one = chosen[0]
        lines.append(
            [
                budget,
                method,
                percent(ratios[budget, method]),
                percent(one["macs"]),
                percent(one["cut"], 2),
                percent(one.get("recovered"), 2),
                f"{mean(trained):.2f} %{spread}",
                f"{one['rate']:g}",
                ", ".join(
                    [
                        *([f"{len(one['blocks_removed'])} blocks gone"] if one["blocks_removed"] else []),
                        *([one["variant"]] if one.get("variant", method) != method else []),
                    ]
                ),
            ]
        )
    columns = ["budget", "method", "latency", "multiply-adds", "cut", "recovered", "trained", "rate", ""]
    said = _bars(rows, values, ratios)
    return head + table(columns, lines) + (f"\n\n{said}" if said else "")


def _seconds(rows: Sequence[Row]) -> float:
    """What the rows took: a structure once, recovered or not, its recovery once for all rates, each training for itself."""
    structures = {(row["budget"], row["method"].removesuffix("+recover"), row["seed"]): row.get("structure_seconds") or 0.0 for row in rows}
    recoveries = {(row["budget"], row["method"], row["seed"]): row.get("recovery_seconds") or 0.0 for row in rows}
    made = sum(structures.values()) + sum(recoveries.values())
    return made + sum(row.get("training_seconds") or 0.0 for row in rows)


def _reason(row: Row) -> str:
    """Why a method has no accuracy."""
    floor = f" (lowest seen: {percent(row['floor'])})" if row.get("floor") is not None else ""
    return f"refused: {row['refused'].split('; ')[0].split('. ')[0]}{floor}" if "refused" in row else "diverged at every rate"


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """Rows of all seeds at the rate that is best on the first."""
    left = [row for row in rows if row.get("trained") is not None]
    first = [row for row in left if row["seed"] == 0]
    if not first:
        return []
    rate = max(first, key=lambda row: row["trained"])["rate"]
    return [row for row in left if row["rate"] == rate]


def _bars(rows: Sequence[Row], values: Mapping[Cell, float], ratios: Mapping[Cell, float]) -> str:
    """What was to be reached, and what was."""
    said = []
    network = rows[0]["network"]
    for budget in dict.fromkeys(row["budget"] for row in rows):
        own = (budget, "best")
        if own in values:
            for recovered, label in ((False, "as it comes"), (True, "with our recovery")):
                rivals = [m for b, m in values if b == budget and m.startswith("tp_") and m.endswith("+recover") == recovered]
                if rivals:
                    rival = max(rivals, key=lambda m: values[budget, m])
                    bar = None if recovered else _MARGINS.get(budget)
                    name = f"the best of Torch-Pruning's variants in the table {label} (`{rival}`)"
                    said.append(_margin(own, (budget, rival), name, values, ratios, bar))
            for ours in [m for b, m in values if b == budget and m.startswith("best=")]:
                rival = ours.partition("=")[2]
                for other, label, bar in ((rival, "", _MARGINS.get(budget)), (f"{rival}+recover", " with our recovery", None)):
                    if (budget, other) in values:
                        said.append(_margin((budget, ours), (budget, other), f"`{rival}`{label} at its latency", values, ratios, bar))
            others = [other for other in ("from_scratch", "uniform", "halp") if (budget, other) in values]
            said += [_margin(own, (budget, other), f"`{other}`", values, ratios) for other in others]
            if budget == "=resnet20":
                said.append(f"- {budget}: {values[own]:.2f} % against the {_RESNET20} % of the dense ResNet-20 whose latency it has.")
        if network == "resnet20" and budget == "25%" and {(budget, "mdp"), (budget, "halp")} <= values.keys():
            said.append(_margin((budget, "mdp"), (budget, "halp"), "`halp`", values, ratios, 0.0, who="`mdp`"))
    return "\n".join(said)


def _margin(
    own: Cell,
    other: Cell,
    label: str,
    values: Mapping[Cell, float],
    ratios: Mapping[Cell, float],
    bar: float | None = None,
    who: str = "ours",
) -> str:
    """Points ahead; said only of networks of the same latency, or of one that is faster and more accurate."""
    margin, apart = values[own] - values[other], ratios[own] / ratios[other] - 1.0
    if abs(apart) > _APART and not (apart < 0 < margin):
        return f"- {own[0]}: {who} and {label} are not compared: {percent(ratios[own])} and {percent(ratios[other])} of the latency."
    faster = f", at {percent(ratios[own])} of the latency against {percent(ratios[other])}" if abs(apart) > _APART else ""
    met = "" if bar is None else f"; asked for: {bar:+g} points, {'met' if margin >= bar else 'missed'}"
    return f"- {own[0]}: {who} {margin:+.2f} points against {label}{faster}{met}."


def _published() -> str:
    """Figures of others, apart from ours."""
    text = (
        "Published by others for fewer multiply-adds, with other recipes and base networks, which makes them no comparison of methods:\n\n"
    )
    return text + table(["network", "multiply-adds", "top-1", "source", "recipe"], [list(row) for row in PUBLISHED])
