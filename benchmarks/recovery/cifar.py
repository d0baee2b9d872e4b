"""Accuracy after the cut without training, on CIFAR-10: ResNet-20, ResNet-56 and a small ViT, cut and recovered by every strategy.

    python benchmarks/recovery/cifar.py --data DATA -o benchmarks/results/recovery-cifar.json
    python benchmarks/recovery/cifar.py --data DATA --networks cifar_vit --budgets flops=65% -o benchmarks/results/recovery-cifar.json

DATA holds ``cifar10_train.npz``, ``cifar10_test.npz`` and ``weights/``. Rows are written as they end; a row that is there is not computed
again, so an interrupted run goes on where it stopped. Structures are cut once and kept in the work folder.
"""

from __future__ import annotations

import argparse
from itertools import islice, product
from pathlib import Path

import torch
from structures import ResultFile, by_reconstruction, cut_network, print_rows, recovered_row

from latprune.recovery import Distil, OnePassMap, Recovery, Refit
from latprune.zoo import cifar10_test, cifar10_train

STRATEGIES: dict[str, str | Recovery | None] = {
    "cut": None,
    "norms": "norms",
    "map": OnePassMap(),
    "shift": "shift",
    "fold": "fold",
    "refit": Refit(),
    "distil": Distil(),
    "distil, 4 epochs": Distil(epochs=4),
    "distil, 12 epochs": Distil(epochs=12),
    "distil, 16 epochs": Distil(epochs=16),
    "distil, 24 epochs": Distil(epochs=24),
    "distil, a third of the rate": Distil(relative_rate=0.01),
    "distil, outputs alone": Distil(features=0.0),
    "distil, half of the steps mixed": Distil(mix=0.5),
    "distil, images as they are": Distil(mirror=False, shift=0.0),
    "distil, mirrored only": Distil(shift=0.0),
}
ONE_SEED = ("cut", "fold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet56", "resnet20"], help="or cifar_vit")
    parser.add_argument("--budgets", nargs="+", default=["flops=50%", "flops=30%"], help="such as flops=50%% or 50%% (measured latency)")
    parser.add_argument("--method", default="mdp")
    parser.add_argument("--blocks", action="store_true", help="blocks may be removed")
    parser.add_argument("--strategies", nargs="+", default=["cut", "norms", "map", "refit", "distil"], choices=list(STRATEGIES))
    parser.add_argument("--channels", nargs="+", default=["method", "reconstruction"], choices=["method", "reconstruction"])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("recovery-work"), help="folder for the structures (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Tables differ between machines, and so may structures to a share of the latency; their rows stay apart by what is gone.
    columns = ("network", "budget", "method", "blocks", "blocks_removed", "channels", "strategy", "images", "seed")
    file = ResultFile(args.output, "recovery-cifar", key=columns, script="benchmarks/recovery/cifar.py")
    test = list(cifar10_test(str(args.data)))
    for network, budget in product(args.networks, args.budgets):
        labelled = list(islice(cifar10_train(str(args.data)), 32))
        cut = cut_network(network, args.data, method=args.method, budget=budget, blocks=args.blocks, labelled=labelled, folder=args.work)
        chosen, gone = {"method": cut}, cut.blocks_removed
        if "reconstruction" in args.channels:
            chosen["reconstruction"] = by_reconstruction(cut, labelled)
        for channels, name, seed in product(args.channels, args.strategies, range(args.seeds)):
            if seed and name in ONE_SEED:
                continue
            head = dict(zip(columns, (network, budget, args.method, args.blocks, gone, channels, name, args.images, seed), strict=True))
            if any(all(row[c] == head[c] for c in columns) for row in file.rows):
                continue
            loader = cifar10_train(str(args.data), seed=seed, augment=False)
            images = [batch for batch, _ in islice(loader, -(-args.images // 128))]
            row = recovered_row(chosen[channels], STRATEGIES[name], images, test, images=args.images, seed=seed)
            file.add({**head, "ratio": cut.ratio, "macs": cut.macs, "threads": args.threads, **row})
            print(f"{network} {budget} {channels} {name} seed {seed}: {row['top1']:.2f} %", flush=True)
    print_rows(file.rows, ("network", "budget", "blocks", "channels", "strategy", "images"))


if __name__ == "__main__":
    main()
