"""The curves behind the defaults of the refit: images, ridge, clamp, order of steps, on ResNet-20 at half the multiply-adds.

    python benchmarks/recovery/curves.py --data DATA -o benchmarks/results/recovery-curves.json

DATA holds ``cifar10_train.npz``, ``cifar10_test.npz`` and ``weights/``. Rows are written as they end; a row that is there is not computed
again. Each row says how far the logits are from the dense network's on test images too, which varies less than the accuracy.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from structures import ResultFile, cut_network, print_rows, recovered_row

from latprune.recovery import Refit
from latprune.zoo import cifar10_test, cifar10_train

VARIANTS = {
    "default": Refit(),  # strengths of the ridge from 1e-2, 60 rows per input, one sweep
    "no correction at sums": Refit(corrected=False),
    "not ahead of removed blocks": Refit(ahead=False),
    "clamp ignored": Refit(rounds=0),
    "nothing kept beyond the clamp": Refit(keep=0.0),
    "ridge 1e-2 throughout": Refit(pulls=1),
    "ridge from 1e-4": Refit(ridge=1e-4, pulls=6),
    "ridge from 1e-3": Refit(ridge=1e-3, pulls=5),
    "ridge from 1e-1": Refit(ridge=1e-1, pulls=3),
    "two sweeps": Refit(sweeps=2),
    "200 rows per input": Refit(rows=200),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", default="resnet20", help="resnet20 or resnet56 (default: %(default)s)")
    parser.add_argument("--images", type=int, nargs="*", default=[64, 128, 256, 512, 1024, 2048, 4096, 8192], help="the curve of images")
    parser.add_argument("--fixed", type=int, default=512, help="images of the variants (default: %(default)s)")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="flops=50%")
    parser.add_argument("--blocks", action="store_true", help="blocks may be removed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("recovery-work"), help="folder for the structures (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = ("network", "budget", "blocks", "variant", "images", "seed")
    file = ResultFile(args.output, "recovery-curves", key=columns, script="benchmarks/recovery/curves.py")
    test = list(cifar10_test(str(args.data)))
    labelled = list(islice(cifar10_train(str(args.data)), 32))
    cut = cut_network(args.network, args.data, method="mdp", budget=args.budget, blocks=args.blocks, labelled=labelled, folder=args.work)
    runs = [("default", count) for count in args.images] + [(name, args.fixed) for name in args.variants]
    for name, count in runs:
        for seed in range(args.seeds):
            head = dict(zip(columns, (args.network, args.budget, args.blocks, name, count, seed), strict=True))
            if any(all(row[c] == head[c] for c in columns) for row in file.rows):
                continue
            loader = cifar10_train(str(args.data), seed=seed, augment=False)
            images = [batch for batch, _ in islice(loader, -(-count // 128))]
            row = recovered_row(cut, VARIANTS[name], images, test, images=count, seed=seed)
            file.add({**head, "threads": args.threads, **row})
            print(f"{name} {count} images seed {seed}: {row['top1']:.2f} %", flush=True)
    print_rows(file.rows, ("network", "budget", "blocks", "variant", "images"))


if __name__ == "__main__":
    main()
