"""Who wins on CIFAR-10 at equal measured latency: our methods, Torch-Pruning's, uniform width, the pruned structure from scratch.

    python benchmarks/cifar10/equal_latency.py --data DATA --output benchmarks/results/cifar10-equal-latency.json
    python benchmarks/cifar10/equal_latency.py --data DATA --networks resnet56 --engine openvino --budgets 50% --output ...

Every network is cut to the same share of the dense network's latency, measured beside it, and then trained by the same recipe on as many
images, the peak learning rate chosen for each of ``--rates`` on the first seed; accuracy is that of the last epoch. A method's name with
``+recover`` gets the library's recovery without training before; ours always do, Torch-Pruning's networks come both ways. Torch-Pruning's
widths move in steps, and its network may lie well below the budget: ``best=tp_taylor`` is ours at the latency that its was measured at.
Rows are written as they end and not computed again; structures are kept in the work folder and trained at every rate.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

from latprune.latency import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "latency"))
from bench import Bench
from measuring import Budget
from networks import NETWORKS
from ours import OURS
from result_file import ResultFile
from rivals import RIVALS
from rows import KEY, print_table

METHODS = [
    "best",
    "tp_best",
    "tp_best+recover",
    "tp_taylor",
    "tp_magnitude",
    "uniform",
    "from_scratch",
    "mdp",
    "best_taylor",
    "sp_lamp",
    "halp",
    "smcp",
    "lamp",
]
GPU: dict[str, Any] = dict(
    networks=["resnet20-conv", "resnet20", "resnet56-conv", "resnet56", "mobilenet_v1", "mobilenet_v2", "vit"],
    budgets=["50%", "25%", "flops=50%", "flops=38.9%"],
    seeds=3,
    rates=[0.01, 0.03, 0.1],
    epochs=200,
    device="cuda",
)
"""What ``--gpu`` sets; an option that is given beside it wins."""
GPU_SAID = ", ".join(f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in GPU.items()).replace(
    "%", "%%"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_train.npz, cifar10_test.npz and weights/")
    parser.add_argument("--networks", nargs="+", default=["resnet20-conv"], choices=list(NETWORKS))
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--batch", type=int, default=1, help="batch size that latency is measured at")
    parser.add_argument("--budgets", nargs="+", default=["50%", "25%"], help="shares of latency, flops=50%%, =resnet20")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="ours, from_scratch, tp_best, or tp_IMPORTANCE[_SCOPE][_8]; +recover")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.01, 0.03], help="peak learning rates to choose from")
    parser.add_argument("--scratch-rates", nargs="+", type=float, default=[0.1], help="the same for fresh weights")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--train-images", type=int, default=50_000, help="images of an epoch")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--distill", action="store_true", help="the dense network teaches, every method alike")
    parser.add_argument("--prepare-epochs", type=int, default=2, help="training of shortcuts that were made convolutions")
    parser.add_argument("--dense-epochs", type=int, default=200, help="training of networks that no weights are given of")
    parser.add_argument("--threads", type=int, default=1, help="threads of training; latency is always measured on one")
    parser.add_argument("--device", default="cpu", help="where training and evaluation run")
    parser.add_argument("--engine-device", default="cpu", help="what latency is measured on, in the engine's words")
    parser.add_argument("--gpu", action="store_true", help=f"full recipes, training on a GPU: {GPU_SAID}")
    parser.add_argument("--work", type=Path, default=Path("runs/cifar10"), help="folder for structures and measurements")
    parser.add_argument("--output", type=Path, required=True)
    first = parser.parse_args()
    args = parser.parse_args(namespace=argparse.Namespace(**vars(first) | GPU)) if first.gpu else first
    known = {*OURS, *RIVALS, "from_scratch", "tp_best"}
    unknown = [name for name in args.methods if not known >= set(filter(None, name.removesuffix("+recover").split("=")))]
    if unknown:
        parser.error(f"unknown methods: {', '.join(unknown)}")
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    file = ResultFile(args.output, "cifar10-equal-latency", key=KEY, script="benchmarks/cifar10/equal_latency.py")
    with Store(args.work / "latency.sqlite") as store:
        for name in args.networks:
            bench = Bench.of(args, name, store)
            for seed, budget, method in product(range(args.seeds), args.budgets, args.methods):
                bench.cell(file, Budget.of(budget, bench.share_of), method, seed)
    print_table(file.rows)


if __name__ == "__main__":
    main()
