"""Sections of docs/benchmarks.md on methods, recovery, counted budgets and masks; ``benchmark_page.py`` puts them on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from page_parts import machine, percent, read, table

__all__ = [
    "counted",
    "defaults",
    "explorer",
    "methods",
    "recovery",
    "recovery_comparing",
    "recovery_imagenet",
    "recovery_made",
    "recovery_finetuning",
    "soft_masks",
    "trajectories",
]

_NAMES = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "unet": "U-Net",
    "yolov8n": "YOLOv8n",
    "vit": "small ViT",
    "vit_b_16": "ViT-B/16",
}


def _name(network: str) -> str:
    return _NAMES.get(network, network)


def recovery() -> str | None:
    """Accuracy after the cut without training."""
    found = read("recovery-cifar")
    if found is None:
        return None
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in found["rows"]:
        key = (row["network"], row["budget"], row["blocks"], row["blocks_removed"], row["channels"], row["strategy"])
        groups.setdefault(key, []).append(row)
    lines = []
    for (network, budget, removable, blocks, channels, strategy), rows in sorted(groups.items(), key=lambda item: item[0][:4]):
        top1 = [row["top1"] for row in rows]
        spread = f" ± {(max(top1) - min(top1)) / 2:.2f}" if len(top1) > 1 else ""
        lines.append(
            [
                _name(network),
                f"{budget}, {blocks} blocks removed" if removable else str(budget),
                str(channels),
                str(strategy),
                f"{mean(top1):.2f} %{spread}",
                str(len(rows)),
                f"{mean(row.get('cpu_seconds', 0.0) for row in rows):.0f} s",
            ]
        )
    head = ["network", "budget", "units by", "strategy", "top-1", "seeds", "CPU time"]
    text = (
        "## Accuracy without training\n\nCIFAR-10, at most 2,048 unlabelled training images; the spread is half of the range over seeds of "
        f"calibration images. The dense networks have 91.73 % (ResNet-20) and 93.39 % (ResNet-56). {_machines(found)}\n\n"
    )
    return text + table(head, lines) + "\n\n`benchmarks/recovery/cifar.py`"


def recovery_imagenet() -> str | None:
    """The same on ImageNet."""
    found = read("recovery-imagenet")
    if found is None:
        return None
    lines = [
        [
            _name(row["network"]),
            str(row["budget"]),
            str(row["method"]),
            str(row["strategy"]),
            f"{row['top1']:.1f} % / {row['top5']:.1f} %",
            str(row["images"]),
            f"{row['cpu_seconds']:.0f} s" if "cpu_seconds" in row else "–",
            f"{row['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in row else "–",
        ]
        for row in found["rows"]
    ]
    head = ["network", "budget", "method", "strategy", "top-1 / top-5", "images at most", "CPU time", "peak of the process"]
    text = (
        "## Accuracy without training on ImageNet\n\nOn 1,000 evaluation images, fitted to at most 1,000 training images; [the table of "
        f"defaults](#methods-and-criteria-without-any-training) has the dense networks' accuracies. {_machines(found)}\n\n"
    )
    return text + table(head, lines) + "\n\n`benchmarks/recovery/imagenet.py`"


def recovery_made() -> str | None:
    """The same on networks of other kinds."""
    found = read("recovery-made")
    if found is None:
        return None
    strategies = list(dict.fromkeys(row["strategy"] for row in found["rows"]))
    lines = []
    for network, budget, method in dict.fromkeys((row["network"], row["budget"], row["method"]) for row in found["rows"]):
        rows = {
            row["strategy"]: row for row in found["rows"] if (row["network"], row["budget"], row["method"]) == (network, budget, method)
        }
        one = next(iter(rows.values()))
        scores = [f"{rows[name]['score']:.2f} %" if name in rows else "–" for name in strategies]
        lines.append([_name(network), str(budget), str(method), str(one["score_name"]), f"{one['dense']:.2f} %", *scores])
    text = (
        "## Recovery on other kinds of networks\n\nA U-Net and a detector, trained by the benchmark on made images of squares and discs, "
        f"recovered from {found['rows'][0]['images']} unlabelled images. {_machines(found)}\n\n"
    )
    return text + table(["network", "budget", "method", "score", "dense", *strategies], lines) + "\n\n`benchmarks/recovery/made.py`"


def recovery_curves() -> str | None:
    """What is behind the defaults of the refit."""
    found = read("recovery-curves")
    if found is None:
        return None
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in found["rows"]:
        groups.setdefault((row["network"], row["budget"], row["variant"], row["images"]), []).append(row)
    lines = [
        [
            _name(network),
            _budget(budget),
            str(variant),
            str(images),
            f"{mean(row['top1'] for row in rows):.2f} % ± {(max(row['top1'] for row in rows) - min(row['top1'] for row in rows)) / 2:.2f}",
            f"{mean(row['logit_error'] for row in rows):.4f}",
            str(len(rows)),
            f"{mean(row['cpu_seconds'] for row in rows):.0f} s",
        ]
        for (network, budget, variant, images), rows in sorted(groups.items(), key=lambda item: item[0][2] != "default")
    ]
    head = ["network", "budget", "refit", "images", "top-1", "error of the logits", "seeds", "CPU time"]
    text = (
        "## What is behind the defaults of the refit\n\nCIFAR-10, accuracy without training by the number of unlabelled images and by "
        "option; the spread is half of the range over seeds of images. The error of the logits is squared, on test images, relative to "
        f"the variation of the dense network's. {_machines(found)}\n\n"
    )
    return text + table(head, lines) + "\n\n`benchmarks/recovery/curves.py`"


def recovery_comparing() -> str | None:
    """Which of several networks for one budget comes out best."""
    found = read("recovery-comparing")
    if found is None:
        return None
    lines = []
    for row in found["rows"]:
        taken = [word for key, word in (("taken", "recovered"), ("taken_as_cut", "cut")) if row[key]]
        divergences = (f"{row['cut']:.4f}", f"{row['recovered']:.4f}")
        accuracy = f"{row['top1']:.2f} %"
        lines.append([_name(row["network"]), _budget(row["budget"]), row["reading"], *divergences, accuracy, " and ".join(taken) or "–"])
    images = found["rows"][0]["test_images"]
    head = ["network", "budget", "reading", "divergence, cut", "divergence, recovered", "top-1, recovered", "taken by"]
    text = (
        "## How networks are compared\n\nThe networks that the readings of `mdp`'s default score lead to: Jensen-Shannon divergence of "
        "the outputs from the dense network's, on moved calibration images, right after the cut and after the short recovery that the "
        f"pruner compares by; and the accuracy after the whole recovery, on {images} test images. {_machines(found)}\n\n"
    )
    return text + table(head, lines) + "\n\n`benchmarks/recovery/comparing.py`"


def recovery_finetuning() -> str | None:
    """Learning rates after a recovery."""
    found = read("recovery-finetuning")
    if found is None:
        return None
    rates = sorted({row["rate"] for row in found["rows"]})
    groups: dict[tuple[Any, ...], dict[float, list[Any]]] = {}
    for row in found["rows"]:
        key = (row["network"], row["budget"], row["start"], row["norms"], row["teacher"], row["epochs"], row["train_images"])
        groups.setdefault(key, {}).setdefault(row["rate"], []).append(row)
    lines = []
    for (network, budget, start, norms, teacher, epochs, images), by_rate in groups.items():
        rows = [row for same in by_rate.values() for row in same]
        lines.append(
            [
                _name(network),
                str(budget),
                str(start),
                str(norms),
                str(teacher),
                f"{epochs} x {images}",
                f"{mean(row['before'] for row in rows):.2f} %",
                f"{mean(row['error_left'] for row in rows):.2f}",
                *(_accuracy([row["top1"] for row in by_rate[rate]]) if rate in by_rate else "–" for rate in rates),
            ]
        )
    head = ["network", "budget", "start", "norms", "teacher", "images", "before", "error left", *(f"rate {rate:g}" for rate in rates)]
    text = (
        "## Fine-tuning after a recovery\n\nCIFAR-10, top-1 after a short fine-tuning with labels at several peak learning rates (SGD, "
        "momentum 0.9, weight decay 5e-4, cosine), from the cut, from norms measured again and from the refit (2,048 unlabelled images), "
        "with batch-norm statistics fixed or moving. "
        f"Error left: what recovery left of the outputs' error, as a ratio of root mean squares. {_machines(found)}\n\n"
    )
    return text + table(head, lines) + "\n\n`benchmarks/recovery/finetuning.py`"


def _accuracy(values: Sequence[float | None]) -> str:
    left = [value for value in values if value is not None]
    return f"{mean(left):.2f} %" if len(left) == len(values) else "diverged"


def _machines(found: Any) -> str:
    names = dict.fromkeys(str(row["machine"]) for row in found["rows"] if row.get("machine"))
    return "; ".join(names) + "." if names else ""


def defaults() -> str | None:
    """Criteria and methods without any training."""
    found = read("defaults")
    if found is None:
        return None
    parts = []
    for network, dense in found["dense"].items():
        rows = [row for row in found["rows"] if row["network"] == network]
        budgets = list(dict.fromkeys(row["budget"] for row in rows))
        values = {(row["method"], row["budget"]): row for row in rows}
        lines = [
            [method, *(percent(values.get((method, budget), {}).get("top1"), 2) for budget in budgets)]
            for method in dict.fromkeys(row["method"] for row in rows)
        ]
        head = [f"{_name(network)} (dense {percent(dense['top1'], 2)}, {dense['images']:,} images)", *map(_budget, budgets)]
        parts.append(table(head, lines))
    text = (
        "## Methods and criteria without any training\n\nTop-1 after the cut with norms measured again on "
        f"{_said_calibration(found)} training images, by budget; `mdp` is the default. {_machines(found)}\n\n"
    )
    return text + "\n\n".join(parts) + "\n\n`benchmarks/defaults.py`"


def _budget(text: str) -> str:
    """A budget as the head of a column."""
    return f"{text.removeprefix('flops=')} of multiply-adds" if text.startswith("flops=") else f"{text} of measured latency"


def _said_calibration(found: Any) -> str:
    counts = sorted({dense["calibration_images"] for dense in found["dense"].values()})
    return " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))


def methods() -> str | None:
    """Every method at the same budgets."""
    parts = []
    for network in ("resnet20", "vit"):
        found = read(f"methods-{network}")
        if found is None:
            continue
        head = ["method", "budget", "delivered", "cut", "norms again", "recovered", "trained"]
        head += ["blocks gone", "stages", "status", "CPU time"]
        parts.append(
            f"### {_name(network)}, {found['test_images']:,} test images\n\n" + table(head, [_method(row) for row in found["rows"]])
        )
    if not parts:
        return None
    text = (
        "## Every method at the same budget\n\nAccuracy on CIFAR-10: as cut, with norms measured again, recovered from 2,048 unlabelled "
        "images, and, where it was run, after training; `delivered` is the share of the budget that the network uses.\n\n"
    )
    return text + "\n\n".join(parts) + "\n\n`benchmarks/methods.py`"


def _method(row: Any) -> Sequence[str]:
    if "refused" in row:
        return [row["method"], row["budget"], f"refused: {row['refused']}", *[""] * 8]
    shares = [percent(row.get(key), 2) for key in ("cut", "norms", "recovered", "trained")]
    return [
        row["method"],
        row["budget"],
        percent(row.get("share_of_budget")),
        *shares,
        str(row["blocks_removed"]),
        str(row["stages"]),
        str(row["status"]),
        f"{row.get('cpu_seconds', row.get('seconds', 0)):.0f} s",
    ]


def counted() -> str | None:
    """Budgets on what is counted."""
    found = read("counted")
    if found is None:
        return None

    def cells() -> Iterator[Sequence[str]]:
        for name, row in found.items():
            parts = name.split(" | ")
            network, what = parts[0], " | ".join(parts[1:])
            if "proven" in row:
                continue
            gap = f", gap {row['gap']:.1g}" if row.get("gap") else ""
            status = f"{row.get('status') or row.get('answer', '')}{gap}"
            solve = row.get("solve_seconds") if "answer" in row else row["seconds"]
            whole = f"{row['seconds']:.1f} s" if "answer" in row else "–"
            yield [_name(network), what, status, f"{solve:.2f} s" if solve else "–", whole, percent(row.get("delivered"))]

    text = (
        "## Budgets on what is counted\n\nEvery width is a choice; half of the dense value. Processor seconds of the solver and of the "
        "whole call of `prune` (tracing, scoring, checking). Several limits at once: the solver alone.\n\n"
    )
    return (
        text
        + table(["network", "method, resource", "solver's status", "solving", "in all", "delivered"], cells())
        + _every_limit(found)
        + "\n\n`benchmarks/counted.py`"
    )


def _every_limit(found: Mapping[str, Any]) -> str:
    """The rows that solve one problem at many limits."""
    rows = {tuple(name.split(" | ")): row for name, row in found.items() if "proven" in row}
    if not rows:
        return ""
    cells = (
        [
            _name(network),
            resource,
            f"{row['proven']} of {row['limits']}",
            f"{row['gap']:.1g}",
            f"{row['seconds']:.2f} s",
            f"{row['most_seconds']:.2f} s",
        ]
        for (network, _, resource), row in rows.items()
    )
    head = ["network", "resource", "proven", "largest gap", "median", "most"]
    return "\n\nThe same with magnitude's scores, from 4 to 96 % of the dense value, each limit solved alone:\n\n" + table(head, cells)


def explorer() -> str | None:
    """Every budget at once."""
    found = read("explorer")
    if found is None:
        return None

    def cells() -> Iterator[Sequence[str]]:
        for name, row in found.items():
            network, resource = name.split(" | ")
            solving = f"{row['solving']:.1f} s" if "solving" in row else "–"
            move = f"{row['move_ms']:.1f} ms" if row.get("move_ms") is not None else "–"
            counts = [
                str(row["groups"]),
                str(row["networks"]),
                str(row["proven"]),
                str(row["budgets"]),
                f"{row['page_bytes'] / 1e3:.0f} kB",
            ]
            yield [_name(network), resource, *counts, solving, move]

    text = (
        "## Every budget at once\n\nRandom weights scored by magnitude. Networks: different ones along the frontier, and those of them "
        "that are proven best; budgets: problems solved to find them. A move is one step of the page's slider in headless Chromium, "
        "timed beside other work where no solving time stands.\n\n"
    )
    head = ["network", "resource", "groups", "networks", "proven", "budgets", "page", "solving", "a move"]
    return text + table(head, cells()) + "\n\n`benchmarks/explorer.py`"


def soft_masks() -> str | None:
    """What masks cost a training step."""
    found = read("soft_masks")
    if found is None:
        return None
    lines = [
        [
            row["precision"],
            f"{row['plain_ms']:.1f} ms",
            f"{row['soft_ms']:.1f} ms",
            f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]",
        ]
        for row in found["rows"]
    ]
    text = (
        "## A training step under soft masks\n\nResNet-56, half of the channels masked, gradients straight through, against a plain step, "
        f"in turns in one process. {machine(found)}.\n\n"
    )
    return text + table(["precision", "plain", "masked", "ratio, 95 % interval"], lines) + "\n\n`benchmarks/soft_masks.py`"


def trajectories() -> str | None:
    """How methods go to their budget."""
    found = read("trajectories")
    if found is None:
        return None
    rows = {row["name"]: row for row in found["rows"] if row["budget"] == "flops=50%"}
    staged, training = rows["sp_lamp, 10 stages"], rows["smcp"]
    steps = [row for name, row in rows.items() if name.startswith("mdp")]
    text = (
        "## Ways to a budget\n\nHalf of the multiply-adds, counted. Nothing was fine-tuned, but for SMCP's training under masks: the "
        f"figures show what is chosen. {_machines(found)}\n\n"
        "![SP-LAMP's widths by stage, MDP's by number of steps, SMCP's masks in training](images/trajectories.svg)\n\n"
        f"SP-LAMP on {_name(staged['network'])} in {len(staged['stages'])} stages (its figure 3): channels kept in the stem and in each "
        "layer, those that it adds to the stream included; accuracy with norms measured again, on the first "
        f"{staged['stages'][0]['images']:,} test images:\n\n"
    )
    parts = ("layer1", "layer2", "layer3")
    text += table(
        ["stage", "limit", "multiply-adds", "stem", *parts, "accuracy"],
        (
            [
                str(number),
                percent(entry["limit"]),
                percent(entry["macs"]),
                _channels(staged, entry, "conv1"),
                *(_channels(staged, entry, f"{part}.") for part in parts),
                percent(entry["accuracy"]),
            ]
            for number, entry in enumerate(staged["stages"], 1)
        ),
    )
    text += (
        f"\n\nMDP on {_name(steps[0]['network'])} with blocks, each step scored anew by its Taylor score on the network that is left:\n\n"
    )
    text += table(
        ["steps", "multiply-adds", "parameters", "channels", "blocks gone", "cut", "norms again"],
        (
            [
                str(len(row["stages"])),
                percent(row["stages"][-1]["macs"]),
                f"{row['parameters'] / 1e3:.0f}K",
                f"{sum(row['stages'][-1]['widths'].values())} of {sum(group['dense'] for group in row['groups'].values())}",
                ", ".join(row["stages"][-1]["removed_blocks"]) or "none",
                percent(row["cut"], 2),
                percent(row["norms"], 2),
            ]
            for row in steps
        ),
    )
    text += (
        f"\n\nSMCP on {_name(training['network'])}, {training['train_batches']} batches of {training['batch']} images; accuracy after "
        f"the cut {percent(training['cut'], 2)}, norms measured again {percent(training['norms'], 2)}. At each solution, channels that "
        "went and that came back:\n\n"
    )
    text += table(
        ["step", "limit", "went", "came back", "masked"],
        (
            [str(entry["step"]), percent(entry["limit"]), *(str(entry[key]) for key in ("went", "returned", "masked"))]
            for entry in training["training"]
        ),
    )
    return text + "\n\n`benchmarks/trajectories.py`"


def _channels(row: Any, entry: Any, prefix: str) -> str:
    """Channels kept in the groups whose name begins so, of the dense ones."""
    dense = sum(group["dense"] for name, group in row["groups"].items() if name.startswith(prefix))
    return f"{sum(width for name, width in entry['widths'].items() if name.startswith(prefix))} of {dense}"
