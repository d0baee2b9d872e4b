"""Does folding the batch norms into the SP-LAMP score help? Accuracy right after pruning to uniform widths, without any fine-tuning.

    python benchmarks/importance_folding.py --data DATA -o benchmarks/results/importance_folding.json

DATA holds the CIFAR-10 test set and the pretrained ResNet-20 and ResNet-56 (``cifar10_test.npz``, ``weights/cifar10_resnet20.safetensors``,
...). Per network, criterion and share of the width kept: once in the groups inside the residual blocks, once in all groups.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from latprune.graph import ModelGraph, Selection, trace
from latprune.importance import MagnitudeConfig, SpLampConfig, best_units, score
from latprune.storage import write_atomic
from latprune.surgery import prune
from latprune.zoo import IMAGENET_NORMALISATION, ImageLoader, cifar_resnet, load_image_set

CRITERIA = {
    "SP-LAMP, as printed": SpLampConfig(fold_norm=False),
    "SP-LAMP, norms folded": SpLampConfig(fold_norm=True),
    "L2 magnitude": MagnitudeConfig(),
}
SHARES = (0.9, 0.8, 0.7)


def accuracy(model: nn.Module, batches: list[Any]) -> float:
    with torch.no_grad():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    return right / sum(len(labels) for _, labels in batches)


def narrowed(model: nn.Module, graph: ModelGraph, config: object, share: float, inside: bool) -> nn.Module:
    importance = score(model, graph, config)
    kept = {
        name: best_units(group, importance.units[name], max(group.min_width, round(share * group.columns)))
        for name, group in graph.groups.items()
        if not inside or all(member.blocks for member in group.members)
    }
    pruned = copy.deepcopy(model)
    prune(pruned, graph, Selection(kept=kept))
    return pruned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000, help="test images (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    images, labels = load_image_set(args.data / "cifar10_test.npz")
    loader = ImageLoader(images[: args.images], labels[: args.images], batch_size=250, normalisation=IMAGENET_NORMALISATION)
    batches = list(loader)
    rows = []
    print(f"{'network':10s} {'criterion':24s} {'groups':14s}" + "".join(f"{share:>8.0%}" for share in SHARES))
    for depth in (20, 56):
        model = cifar_resnet(depth)
        model.load_state_dict(load_file(args.data / f"weights/cifar10_resnet{depth}.safetensors"))
        model.eval()
        graph = trace(model, torch.zeros(1, 3, 32, 32))
        print(f"resnet{depth:<4d} {'dense':24s} {'':14s}{accuracy(model, batches):8.1%}", flush=True)
        for name, config in CRITERIA.items():
            for inside in (True, False):
                found = [accuracy(narrowed(model, graph, config, share, inside), batches) for share in SHARES]
                groups = "inside blocks" if inside else "all"
                print(f"resnet{depth:<4d} {name:24s} {groups:14s}" + "".join(f"{value:8.1%}" for value in found), flush=True)
                rows.append(
                    {
                        "network": f"resnet{depth}",
                        "criterion": name,
                        "groups": groups,
                        "accuracy": dict(zip(map(str, SHARES), found, strict=True)),
                    }
                )
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, json.dumps({"images": args.images, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
