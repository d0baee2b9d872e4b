"""Write docs/gallery.md: measured networks at a glance, each with the way to its full table, and pictures of what there is to see.

python tools/gallery_page.py             # rewrites the page
python tools/gallery_page.py --check     # exits with 1 if the page is not what the results say
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from page_parts import ROOT, percent, read, table, write_or_check

PAGE = ROOT / "docs" / "gallery.md"
ENGINES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
PICTURES = (
    ("Every budget on one page", "images/explorer-wide-light.png", "The explorer of a ResNet-50", "how-to/explore.md"),
    (
        "The same page on a phone",
        "images/explorer-phone-dark.png",
        "The explorer of a ResNet-50 on a phone, in dark colours",
        "how-to/explore.md",
    ),
    (
        "Methods at one latency",
        "images/resnet56.svg",
        "Accuracy against measured latency of a ResNet-56 by method, and the widths that MDP chose",
        "benchmarks.md#resnet-56-on-cifar-10-to-half-of-its-measured-latency",
    ),
    (
        "Staircases of an engine",
        "images/papers/sp-lamp-figure-7.svg",
        "Latency of a convolution against its channels",
        "papers.md#sp-lamp-figure-7-convolution-norm-and-relu-over-both-widths",
    ),
    (
        "What is left of each layer",
        "images/papers/mdp-appendix-c.svg",
        "Width of every group, dense and kept",
        "papers.md#mdp-appendix-c-the-structure-of-the-pruned-network",
    ),
    (
        "Ways to a budget",
        "images/trajectories.svg",
        "Widths by stage of SP-LAMP, by number of steps of MDP, and masks of SMCP in training",
        "benchmarks.md#ways-to-a-budget",
    ),
)
"""Heading, file, what it shows in words, and the page that says more."""


def by_latency() -> Iterator[Sequence[str]]:
    """ResNet-56 to half of its measured latency, with fine-tuning."""
    for engine, name in ENGINES.items():
        found = read(f"resnet56-{engine}")
        row = found["rows"]["mdp+distill"]
        low, high = row["ratio_interval"]
        yield (
            "ResNet-56, CIFAR-10",
            f"{found['budget']} of the latency on {name}",
            f"{percent(row['ratio'])} [{percent(low)}, {percent(high)}]",
            percent(row["accuracies"][0]["accuracy"], 2),
            percent(row["accuracies"][-1]["accuracy"], 2),
            f"{found['epochs']} epochs, the dense network as teacher",
            "[table](benchmarks.md#resnet-56-on-cifar-10-to-half-of-its-measured-latency)",
        )


def without_training() -> Iterator[Sequence[str]]:
    """Networks recovered on images without labels."""
    wanted = {"network": "mobilenet_v2", "budget": "flops=80%", "method": "mdp", "strategy": "refit"}
    mobilenet = [row for row in read("recovery-imagenet")["rows"] if wanted.items() <= row.items()]
    dense = read("defaults")["dense"]["mobilenet_v2"]["top1"]
    yield _recovered(mobilenet, "MobileNetV2, ImageNet", dense, "#accuracy-without-training-on-imagenet")
    wanted = {"network": "resnet56", "budget": "flops=50%", "channels": "reconstruction", "strategy": "refit"}
    resnet56 = [row for row in read("recovery-cifar")["rows"] if wanted.items() <= row.items()]
    dense = read("resnet56-openvino")["rows"]["mdp"]["accuracies"][0]["accuracy"]
    yield _recovered(resnet56, "ResNet-56, CIFAR-10", dense, "#accuracy-without-training")


def _recovered(rows: Sequence[Any], title: str, dense: float, place: str) -> Sequence[str]:
    """A line of rows that differ in their seeds alone."""
    first = rows[0]
    return (
        title,
        f"{first['budget'].removeprefix('flops=')} of the multiply-adds",
        percent(first["ratio"]),
        percent(dense, 2),
        f"{mean(row['top1'] for row in rows):.2f} %",
        f"none: refitted on {first['images']:,} images",
        f"[table](benchmarks.md{place})",
    )


def page() -> str:
    """The whole page."""
    zoo, files = (list(read(name)["rows"].values()) for name in ("zoo", "onnx_in"))
    head = ["network", "budget", "delivered", "dense", "pruned", "training", "more"]
    passed = [sum(bool(row["passed"]) for row in rows) for rows in (zoo, files)]
    parts = [
        "# Gallery",
        "Written by `tools/gallery_page.py` from `benchmarks/results/`; [the benchmarks](benchmarks.md) have every method, seed, machine "
        "and script. Accuracies are top-1 on test images. Latencies are shares of the dense network's, measured in turns with it, with "
        "their 95 % interval.",
        table(head, [*by_latency(), *without_training()]),
        f"{passed[0]} of {len(zoo)} networks were traced, cut, compared with their masked selves, exported and reloaded "
        f"([which](benchmarks.md#any-model)); {passed[1]} of {len(files)} ONNX files came back smaller "
        "([which](benchmarks.md#onnx-in-onnx-out)).",
        *(f"## {title}\n\n![{words}]({file})\n\n[More]({more})" for title, file, words, more in PICTURES),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write or check the page."""
    write_or_check(PAGE, page, __doc__)


if __name__ == "__main__":
    main()
