"""SP-LAMP, appendix A: the bound on what a filter's removal does to the output (eq. 17), beside what it does.

    python benchmarks/papers/sp_lamp_appendix_a.py --data DATA --picture docs/images/papers/sp-lamp-appendix-a.png

The paper derives, for fully connected layers with ReLU and inputs of norm 1, that the output moves by at most ``|W_{i,q}| |W_{i+1,q}|``
times the norms of all other layers when filter ``q`` of layer ``i`` goes, ranks filters by the two factors, and measures nothing. Here:

- ``chain``: the network of the proof (three layers of 256 without biases, trained on CIFAR-10 for ``--chain-batches`` batches). For every
  filter the bound, the largest distortion over test images scaled to norm 1, and the largest that gradient steps on the input find.
  Such a network is homogeneous, so scaling images loses nothing.
- ``resnet20``, ``resnet56`` (pretrained; norms, shortcuts, coupled layers: the proof says nothing of them): the root mean square change of
  the logits, relative to their variation, as each channel goes alone, beside the products of the score (eq. 2), with and without the scale
  of the following batch norm, and the filter's norm alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ResultFile, network, parser, said, short, timed
from scipy.stats import spearmanr
from torch import Tensor, nn

from latprune.graph import Selection, trace
from latprune.importance import SpLampConfig, score
from latprune.importance.sp_lamp import sp_lamp_products
from latprune.report import new_figure, save_figure
from latprune.report.figures import ACCENT, KEPT, SOFT
from latprune.surgery import TrainingMask
from latprune.train import Recipe, evaluate, finetune
from latprune.train.batches import FirstBatches
from latprune.zoo import cifar10_test, cifar10_train

WIDTH = 256
STEPS = 30
"""Gradient steps from the worst image."""


def main() -> None:
    made = parser(__doc__, "sp-lamp-appendix-a")
    made.add_argument("--data", type=Path, required=True, help="folder with cifar10_train.npz, cifar10_test.npz and weights/")
    made.add_argument("--networks", nargs="+", default=["chain", "resnet20"], help="of chain, resnet20, resnet56 (default: %(default)s)")
    made.add_argument("--images", type=int, default=256, help="test images (default: %(default)s)")
    made.add_argument(
        "--chain-batches", type=int, default=390, help="batches of 128 that the chain trains for, an epoch at most (default: it)"
    )
    made.add_argument("--picture", type=Path)
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    file = ResultFile(args.output, "papers-sp-lamp-appendix-a", key=("network", "images"), published=[])
    for name in args.networks:
        if not file.has(network=name, images=args.images):
            with timed() as took:
                found = chain(args) if name == "chain" else residual(args, name)
            file.add({"network": name, "images": args.images, **found, "summary": summary(name, found["groups"]), **took})
        print(text(next(row for row in file.rows if row["network"] == name)), flush=True)
    if args.picture:
        print(f"wrote {draw(file.rows, args.picture)}")


def chain(args: argparse.Namespace) -> dict[str, Any]:
    """The network of the proof: bound, distortion on images, distortion on the worst input found, per filter."""
    torch.manual_seed(0)
    sizes = (3072, WIDTH, WIDTH, WIDTH, 10)
    layers = [nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False)]
    model = nn.Sequential(nn.Flatten(), *[part for layer in layers for part in (layer, nn.ReLU())][:-1])
    train, test = cifar10_train(str(args.data)), cifar10_test(str(args.data))
    finetune(model, FirstBatches(train, args.chain_batches), Recipe(epochs=1, learning_rate=0.02, weight_decay=5e-4))
    accuracy = evaluate(model.eval(), FirstBatches(test, 4))
    x = next(iter(test))[0][: args.images].flatten(1)
    weights = [layer.weight.detach() for layer in layers]
    return {"accuracy": accuracy, "groups": [filters(weights, index, x) for index in range(len(weights) - 1)]}


def bound(weights: list[Tensor], layer: int) -> Tensor:
    """``(filters,)``: eq. 17 for each filter of ``layer``; ``weights`` are ``(outputs, inputs)``, in order."""
    others = torch.tensor([float(weight.norm()) for index, weight in enumerate(weights) if index not in (layer, layer + 1)])
    return weights[layer].norm(dim=1) * weights[layer + 1].norm(dim=0) * others.prod()


def distortion(weights: list[Tensor], layer: int, unit: int, x: Tensor) -> Tensor:
    """``(n, outputs)``: what the output of a bias-free ReLU network moves by when ``unit`` of ``layer`` goes; ``x`` is ``(n, inputs)``."""
    for weight in weights[: layer + 1]:
        x = torch.relu(x @ weight.T)
    without = x.clone()
    without[:, unit] = 0.0
    for index, weight in enumerate(weights[layer + 1 :], layer + 1):
        x, without = x @ weight.T, without @ weight.T
        if index < len(weights) - 1:
            x, without = torch.relu(x), torch.relu(without)
    return x - without


def filters(weights: list[Tensor], layer: int, x: Tensor) -> dict[str, Any]:
    """One layer: per filter the bound and the distortions per unit of the input's norm."""
    bounds, images, worst, means = bound(weights, layer).tolist(), [], [], []
    for unit in range(len(weights[layer])):
        with torch.no_grad():
            ratio = distortion(weights, layer, unit, x).norm(dim=1) / x.norm(dim=1)
        images.append(float(ratio.max()))
        means.append(float(ratio.mean()))
        at, best = x[int(ratio.argmax())][None].clone(), float(ratio.max())
        for _ in range(STEPS):
            at = (at / at.norm()).requires_grad_(True)
            size = distortion(weights, layer, unit, at).norm()
            (slope,) = torch.autograd.grad(size, at)
            best = max(best, float(size.detach()))
            # On a linear piece of the network this is a step of the power iteration.
            at = slope if float(slope.norm()) else at.detach()
        worst.append(best)
    found = {"bound": bounds, "images": images, "worst": worst, "mean": means}
    return {"group": f"layer {layer + 1}", **{key: short(values) for key, values in found.items()}}


def residual(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """A pretrained residual network: products of the score, and the change of the logits as each channel goes alone."""
    model, example = network(name, args.data)
    graph = trace(model, example)
    x = next(iter(cifar10_test(str(args.data), batch_size=args.images)))[0]
    mask = TrainingMask(model, graph)
    ratios = score(model, graph, SpLampConfig(count_layers=False)).units
    measured: dict[str, list[float]] = {}
    with torch.no_grad():
        dense = model(x)
        scale = float((dense - dense.mean(dim=0)).square().sum(dim=1).mean().sqrt())
        for group in graph.groups.values():
            values = measured.setdefault(group.name, [])
            for unit in range(group.units):
                mask.set(Selection(kept={group.name: np.delete(np.arange(group.units), unit)}))
                values.append(float((model(x) - dense).square().sum(dim=1).mean().sqrt()) / scale)
        mask.set(None)
    groups = []
    for group in graph.groups.values():
        plain, makers = sp_lamp_products(model, graph, group, SpLampConfig())
        folded, _ = sp_lamp_products(model, graph, group, SpLampConfig(fold_norm=True))
        groups.append(
            {
                "group": group.name,
                "product": short(np.sqrt(plain)),
                "folded": short(np.sqrt(folded)),
                "filter": short(np.sqrt(np.sum([squares for _, squares in makers], axis=0))),
                "score": short(ratios[group.name]),
                "mean": short(measured[group.name]),
            }
        )
    return {"groups": groups}


def summary(name: str, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page shows: how far the bound lies above each layer's distortions, and how well each number ranks the filters."""
    found: dict[str, Any] = {"filters": sum(len(group["mean"]) for group in groups)}
    keys, goal = (("bound",), "images") if name == "chain" else (("filter", "product", "folded", "score"), "mean")
    found["ranks"] = {key: agreement(groups, key, goal) for key in keys}
    if name == "chain":
        found["slack"] = {group["group"]: {key: slack(group, key) for key in ("images", "worst")} for group in groups}
    return found


def agreement(groups: list[dict[str, Any]], key: str, goal: str) -> list[float]:
    """Rank correlation (Spearman) of ``key`` with the measured distortion: mean over the groups, and over all filters at once."""
    inside = [float(spearmanr(group[key], group[goal]).statistic) for group in groups]
    whole = spearmanr([v for group in groups for v in group[key]], [v for group in groups for v in group[goal]]).statistic
    return [float(np.mean(inside)), float(whole)]


def slack(group: dict[str, Any], key: str) -> list[float]:
    """Bound over distortion: the smallest and the median over the filters whose removal changes anything."""
    ratios = [b / d for b, d in zip(group["bound"], group[key], strict=True) if d > 0.0]
    return [min(ratios), float(np.median(ratios))]


def text(row: dict[str, Any]) -> str:
    """A row in lines."""
    found = row["summary"]
    lines = [[key, *(f"{value:.2f}" for value in pair)] for key, pair in found["ranks"].items()]
    told = said([f"{row['network']}, {found['filters']} filters: rank correlation of", "within groups", "over all"], lines)
    if "slack" in found:
        lines = [[layer, *(f"{value:.3g}" for key in ("images", "worst") for value in two[key])] for layer, two in found["slack"].items()]
        told += "\n" + said(["bound over distortion", "images: least", "median", "worst input: least", "median"], lines)
    return f"{told}\n{row['cpu_seconds']:.0f} CPU s"


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """A panel for each network: every filter's bound (or product) against what its removal does."""
    figure = new_figure(4.6 * len(rows), 4.0)
    for axes, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        alone = row["network"] == "chain"
        across, up = (("bound", "bound"), ("images", "worst")) if alone else (("product", "folded"), ("mean", "mean"))
        labels = ("images of norm 1", "worst input found") if alone else ("weights as stored", "norms folded in")
        for x, y, colour, label in zip(across, up, (KEPT, ACCENT), labels, strict=True):
            at = [(a, b) for group in row["groups"] for a, b in zip(group[x], group[y], strict=True) if a > 0 and b > 0]
            axes.loglog(*zip(*at, strict=True), ".", color=colour, markersize=2.5, label=label)
        if alone:
            ends = [value for group in row["groups"] for value in group["bound"]]
            axes.loglog([min(ends), max(ends)], [min(ends), max(ends)], color=SOFT, linewidth=0.8, label="the bound")
        axes.set_xlabel("bound (eq. 17)" if alone else "product of norms (eq. 2)", fontsize=8)
        axes.set_ylabel("distortion of the output", fontsize=8)
        title = "network of the proof" if alone else row["network"].replace("resnet", "ResNet-")
        axes.set_title(title, fontsize=9, loc="left")
        axes.legend(fontsize=7, frameon=False)
        axes.tick_params(labelsize=7)
    return save_figure(figure, path)


if __name__ == "__main__":
    main()
