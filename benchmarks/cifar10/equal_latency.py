"""Who wins on CIFAR-10 at equal measured latency: our methods, Torch-Pruning's, uniform width, the pruned structure from scratch.

    python benchmarks/cifar10/equal_latency.py --data DATA --output benchmarks/results/cifar10-equal-latency.json
    python benchmarks/cifar10/equal_latency.py --data DATA --networks resnet56 --engine openvino --budgets 50% --output ...

Every network is cut to the same share of the dense network's latency, measured beside it, and then trained by the same recipe on as many
images, the peak learning rate chosen of ``--rates`` (``--adamw-rates`` for a network that trains with AdamW, which the rates of SGD
destroy) on the first seed; accuracy is that of the last epoch. A method's name with
``+recover`` gets the library's recovery without training before; ours always do, Torch-Pruning's networks come both ways. Torch-Pruning's
widths move in steps, and its network may lie well below the budget: ``best=tp_taylor`` is ours at the latency that its was measured at.
A budget may be one network's (``resnet56:=resnet20``), a batch size one engine's (``onnxruntime:64``).
Rows are written as they end and not computed again; structures are kept in the work folder and trained at every rate.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from latprune.latency import Store, Target

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "latency"))
from bench import Bench
from measuring import Budget
from networks import NETWORKS
from ours import OURS
from result_file import ResultFile
from rivals import RIVALS
from rows import KEY, completed, print_table

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
BUDGET = rf"(flops=)?[0-9.]+%|=({'|'.join(NETWORKS)})"
GPU: dict[str, Any] = dict(
    networks=["resnet20-conv", "resnet20", "resnet56-conv", "resnet56", "mobilenet_v1", "mobilenet_v2", "vit"],
    engine=["onnxruntime", "openvino"],
    batch=["1", "onnxruntime:64"],
    budgets=["50%", "25%", "flops=50%", "flops=38.9%", "resnet56:=resnet20"],
    seeds=3,
    rates=[0.01, 0.03, 0.1],
    adamw_rates=[1e-4, 3e-4, 1e-3],
    epochs=200,
    device="cuda",
)
"""What ``--gpu`` sets; an option that is given beside it wins. Training runs on the GPU, latency is that of the machine's processor."""
GPU_SAID = ", ".join(
    f"{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in GPU.items()
).replace("%", "%%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10_train.npz, cifar10_test.npz and weights/")
    parser.add_argument("--networks", nargs="+", default=["resnet20-conv"], choices=list(NETWORKS))
    parser.add_argument("--engine", nargs="+", default=["onnxruntime"])
    parser.add_argument("--batch", nargs="+", default=["1"], help="batch sizes that latency is measured at; ENGINE:64 for one engine alone")
    budgets = "shares of latency, flops=50%%, =resnet20; NETWORK:BUDGET for one network alone"
    parser.add_argument("--budgets", nargs="+", default=["50%", "25%"], help=budgets)
    parser.add_argument("--methods", nargs="+", default=METHODS, help="ours, from_scratch, tp_best, or tp_IMPORTANCE[_SCOPE][_8]; +recover")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.01, 0.03], help="peak learning rates to choose from")
    parser.add_argument("--scratch-rates", nargs="+", type=float, default=[0.1], help="the same for fresh weights")
    parser.add_argument(
        "--adamw-rates",
        nargs="+",
        type=float,
        default=[1e-4, 3e-4, 1e-3],
        help="the same for trainings by AdamW, all weights: of transformers, and with --teacher match-absolute",
    )
    match = "the same with --teacher match, as shares of the size of each tensor, all weights"
    parser.add_argument("--match-rates", nargs="+", type=float, default=[0.03], help=match)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--train-images", type=int, default=50_000, help="images of an epoch")
    parser.add_argument("--test-images", type=int, default=10_000)
    teacher = "the dense network teaches, every method alike: its classes by half, or the recipe match-dense at --match-rates, or "
    teacher += "(match-absolute) at --adamw-rates, each for all tensors alike"
    parser.add_argument("--teacher", choices=["no", "classes", "match", "match-absolute"], default="no", help=teacher)
    parser.add_argument("--prepare-epochs", type=int, default=2, help="training of shortcuts that were made convolutions")
    parser.add_argument("--dense-epochs", type=int, default=200, help="training of networks that no weights are given of")
    parser.add_argument("--threads", type=int, default=1, help="threads of training; latency is always measured on one")
    parser.add_argument("--device", default="cpu", help="where training and evaluation run")
    parser.add_argument("--engine-device", default="cpu", help="what latency is measured on, in the engine's words")
    parser.add_argument("--gpu", action="store_true", help=f"full recipes, training on a GPU, latency on the processor: {GPU_SAID}")
    parser.add_argument("--work", type=Path, default=Path("runs/cifar10"), help="folder for structures and measurements")
    parser.add_argument("--output", type=Path, required=True)
    first = parser.parse_args()
    args = parser.parse_args(namespace=argparse.Namespace(**vars(first) | GPU)) if first.gpu else first
    known = {*OURS, *RIVALS, "from_scratch", "tp_best"}
    unknown = [name for name in args.methods if not known >= set(filter(None, name.removesuffix("+recover").split("=")))]
    if unknown:
        parser.error(f"unknown methods: {', '.join(unknown)}")
    engines = list(dict.fromkeys([*args.engine, *GPU["engine"]]))  # --gpu --engine openvino leaves a batch of the other one
    forms = ("--budgets", args.budgets, NETWORKS, BUDGET), ("--batch", args.batch, engines, "[1-9][0-9]*")
    for option, values, scopes, form in forms:
        for value in values:
            scope, _, bare = value.rpartition(":")
            if (scope and scope not in scopes) or not re.fullmatch(form, bare):
                parser.error(f"{option} (={value!r}) must be a value of it, alone or behind one of {', '.join(scopes)} and a colon")
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    file = ResultFile(args.output, "cifar10-equal-latency", key=KEY, completed=completed, script="benchmarks/cifar10/equal_latency.py")
    with Store(args.work / "latency.sqlite") as store:
        for name, target in product(args.networks, targets(args)):
            bench = Bench.of(args, name, target, store)
            for seed, budget, method in product(range(args.seeds), applying(args.budgets, name), args.methods):
                bench.cell(file, Budget.of(budget, bench.share_of), method, seed)
    print_table(file.rows)


def applying(values: Iterable[str], scope: str) -> list[str]:
    """The values that stand alone, and those behind this scope and a colon."""
    return [value.rpartition(":")[2] for value in values if ":" not in value or value.rpartition(":")[0] == scope]


def targets(args: argparse.Namespace) -> list[Target]:
    """Every engine at its batch sizes, on one thread."""
    return [
        Target(engine=engine, device=args.engine_device, threads=1, batch=int(batch))
        for engine in args.engine
        for batch in applying(args.batch, engine)
    ]


if __name__ == "__main__":
    main()
