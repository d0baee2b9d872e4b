"""Sections of docs/benchmarks.md on recovery; ``benchmark_page.py`` puts them on the page."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from page_parts import budget_words, machines, network_name, percent, read, table

__all__ = [
    "recovery",
    "recovery_comparing",
    "recovery_curves",
    "recovery_finetuning",
    "recovery_imagenet",
    "recovery_made",
    "recovery_text",
]


def _with_spread(shares: list[float]) -> str:
    """Their mean, and half of their range where there are several."""
    spread = f" ± {(max(shares) - min(shares)) / 2:.2f}" if len(shares) > 1 else ""
    return f"{mean(shares):.2f} %{spread}"


def _budget(row: dict[str, Any]) -> str:
    """The budget, and where blocks might have been removed how many were."""
    return f"{row['budget']}, {row['blocks_removed']} blocks removed" if row["blocks"] else str(row["budget"])


def recovery() -> str | None:
    """Accuracy after the cut without training."""
    found = read("recovery-cifar")
    if found is None:
        return None
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in found["rows"]:
        # One machine's tables lead to another structure than the next one's.
        key = (row["network"], row["budget"], row["blocks"], row["blocks_removed"], row["ratio"], row["channels"], row["strategy"])
        groups.setdefault(key, []).append(row)
    lines = []
    for (network, _, _, _, ratio, channels, strategy), rows in sorted(groups.items(), key=lambda item: item[0][:5]):
        lines.append(
            [
                network_name(network),
                _budget(rows[0]),
                percent(ratio),
                str(channels),
                str(strategy),
                _with_spread([row["top1"] for row in rows]),
                str(len(rows)),
                f"{mean(row.get('cpu_seconds', 0.0) for row in rows):.0f} s",
            ]
        )
    head = ["network", "budget", "delivered", "units by", "strategy", "top-1", "seeds", "CPU time"]
    dense = read("defaults")["dense"]
    known = ", ".join(f"{network_name(n)} {100 * dense[n]['top1']:.2f} %" for n in dict.fromkeys(row["network"] for row in found["rows"]))
    text = (
        "## Accuracy without training\n\nCIFAR-10, at most 2,048 unlabelled training images; the spread is half of the range over seeds of "
        "calibration images. Delivered: measured share of the latency (OpenVINO), or counted one of the multiply-adds; each machine's "
        f"tables lead to a structure of their own. The dense networks: {known}. {machines(found)}\n\n"
    )
    return text + table(head, lines) + "\n\n`benchmarks/recovery/cifar.py`"


def recovery_imagenet() -> str | None:
    """The same on ImageNet."""
    found = read("recovery-imagenet")
    if found is None:
        return None
    lines = [
        [
            network_name(row["network"]),
            _budget(row),
            str(row["method"]),
            percent(row["ratio"]),
            percent(row["macs"]),
            str(row["strategy"]),
            f"{row['top1']:.1f} % / {row['top5']:.1f} %",
            str(row["images"]),
            f"{row['cpu_seconds']:.0f} s" if "cpu_seconds" in row else "–",
            f"{row['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in row else "–",
        ]
        for row in sorted(found["rows"], key=lambda row: (row["network"], row["budget"], row["blocks"], row["method"]))
    ]
    head = ["network", "budget", "method", "delivered", "multiply-adds", "strategy", "top-1 / top-5", "images at most", "CPU time"]
    head.append("peak of the process")
    text = (
        "## Accuracy without training on ImageNet\n\nOn 1,000 evaluation images, fitted to at most 1,000 training images; [the table of "
        "defaults](#methods-and-criteria-without-any-training) has the dense networks' accuracies. Delivered: measured share of the "
        "latency (OpenVINO), or counted one of the multiply-adds. Torch-Pruning's networks (`tp_...`) are the nearest that its "
        "ratio leads to, as they come (`cut`) and with the same recovery. `mdp-earlier` is a structure that `mdp` chose before, "
        f"from `benchmarks/recovery/kept`. {machines(found)}\n\n"
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
        lines.append([network_name(network), str(budget), str(method), str(one["score_name"]), f"{one['dense']:.2f} %", *scores])
    text = (
        "## Recovery on other kinds of networks\n\nA U-Net and a detector, trained by the benchmark on made images of squares and discs, "
        f"recovered from {found['rows'][0]['images']} unlabelled images. {machines(found)}\n\n"
    )
    return text + table(["network", "budget", "method", "score", "dense", *strategies], lines) + "\n\n`benchmarks/recovery/made.py`"


def recovery_text() -> str | None:
    """The same on a network of sentences."""
    found = read("recovery-text")
    if found is None:
        return None
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for row in found["rows"]:
        groups.setdefault((row["budget"], row["method"], row["strategy"]), []).append(row)
    lines = [
        [
            str(budget),
            str(method),
            str(strategy),
            _with_spread([row["score"] for row in rows]),
            str(len(rows)),
            f"{mean(row['cpu_seconds'] for row in rows):.0f} s" if "cpu_seconds" in rows[0] else "–",
        ]
        for (budget, method, strategy), rows in groups.items()
    ]
    first = found["rows"][0]
    text = (
        f"## Recovery of a network of sentences\n\nMiniLM-L6, pretrained: of which of {first['modules']} modules of Python's standard "
        f"library is a docstring? Share of {first['asked']} told right; the dense network tells {first['dense']:.2f} %. Recovered from at "
        f"most {first['texts']:,} other docstrings, without their modules; the spread is half of the range over draws of them. "
        f"{machines(found)}\n\n"
    )
    return text + table(["budget", "method", "strategy", "told right", "seeds", "CPU time"], lines) + "\n\n`benchmarks/recovery/text.py`"


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
            network_name(network),
            budget_words(budget),
            str(variant),
            str(images),
            _with_spread([row["top1"] for row in rows]),
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
        f"the variation of the dense network's. {machines(found)}\n\n"
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
        lines.append(
            [network_name(row["network"]), budget_words(row["budget"]), row["reading"], *divergences, accuracy, " and ".join(taken) or "–"]
        )
    images = found["rows"][0]["test_images"]
    head = ["network", "budget", "reading", "divergence, cut", "divergence, recovered", "top-1, recovered", "taken by"]
    text = (
        "## How networks are compared\n\nThe networks that the readings of `mdp`'s default score lead to: Jensen-Shannon divergence of "
        "the outputs from the dense network's, on moved calibration images, right after the cut and after the short recovery that the "
        f"pruner compares by; and the accuracy after the whole recovery, on {images} test images. {machines(found)}\n\n"
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
                network_name(network),
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
        "## Fine-tuning after a recovery\n\nCIFAR-10, top-1 after a short fine-tuning at several peak learning rates: with labels (SGD, "
        "momentum 0.9, weight decay 5e-4, cosine), without a teacher or with the dense network's classes by half, or with its outputs and "
        "streams alone (`match`: the recipe `match-dense`, Adam at a rate relative to the size of each tensor; `match-absolute`: at "
        "one rate for all), from the cut, from norms measured again and from the refit (2,048 unlabelled images), with batch-norm "
        "statistics fixed or moving. Structures are those that the machine's own tables lead to. "
        f"Error left: what recovery left of the outputs' error, as a ratio of root mean squares. {machines(found)}\n\n"
    )
    return text + table(head, lines) + "\n\n`benchmarks/recovery/finetuning.py`"


def _accuracy(values: Sequence[float | None]) -> str:
    left = [value for value in values if value is not None]
    return f"{mean(left):.2f} %" if len(left) == len(values) else "diverged"
