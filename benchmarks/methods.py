"""Every method and ablation at the same budgets: delivered value, accuracy cut, recovered and trained; CPU seconds and status.

    python benchmarks/methods.py --network resnet20 --data DATA --output benchmarks/results/methods-resnet20.json
    python benchmarks/methods.py --network vit --data DATA --output benchmarks/results/methods-vit.json

Budgets by default: half of the multiply-adds, counted, and 50 and 25 % of the latency measured on ONNX Runtime (one thread, batch 1). Each
row is written as it ends, and a row that is there, trained on as many images, is not run again. Two rows of SP-LAMP have latency budgets
alone: whole networks timed width by width, and a predictor in place of tables, trained on a minute of random networks.
``--train-images`` trains for that many images (an epoch has 50,000) after the cut and its recovery; methods that train under masks do so
for as many images before the cut, and are recovered after it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import latprune
from latprune.errors import BudgetInfeasibleError, LatpruneError
from latprune.importance import MagnitudeConfig, SpLampConfig, TaylorConfig, get_criterion
from latprune.latency import KernelPredictor, machine_name, sweep_kernels, target_context, train_predictor
from latprune.methods import HALP, MDP, SMCP, SPLAMP, FromScratch, GlobalThreshold, Greedy, Lamp, Method, RandomChoice, SoftMasks, Uniform
from latprune.pruning import driver_of, training_threads
from latprune.storage import decode_tensors, write_atomic
from latprune.train import AdamW, Recipe, evaluate, recalibrate_batch_norm
from latprune.train.batches import FirstBatches
from latprune.train.precision import native_precision
from latprune.zoo import cifar10_test, cifar10_train, cifar_resnet, cifar_vit
from train_vit import WEIGHTS, WIDTH

METHODS: dict[str, Callable[[], Method]] = {
    "mdp": MDP,
    "mdp, by Taylor per layer": lambda: MDP(score=TaylorConfig()),
    "mdp, by Taylor split over layers": lambda: MDP(score=TaylorConfig(reduction="split")),
    "mdp, by Taylor per group": lambda: MDP(score=TaylorConfig(reduction="per_group")),
    "mdp, by SP-LAMP's score": lambda: MDP(score=SpLampConfig()),
    "mdp, channels only": lambda: MDP(blocks=False),
    "mdp, blocks only": lambda: MDP(channels=False),
    "mdp, linear latency": lambda: MDP(bilayer=False),
    "mdp, 10 steps": lambda: MDP(stages=10, score=TaylorConfig()),
    "mdp, 30 steps": lambda: MDP(stages=30, score=TaylorConfig()),
    "mdp, soft masks": lambda: MDP(score=TaylorConfig(), soft_masks=SoftMasks()),
    "sp_lamp, 1 stage": lambda: SPLAMP(stages=1),
    "sp_lamp, 3 stages": lambda: SPLAMP(stages=3),
    "sp_lamp, 10 stages, masked": lambda: SPLAMP(stages=10, between="mask"),
    "sp_lamp, 1 stage, whole networks timed": lambda: SPLAMP(stages=1, contributions="whole-network"),
    "sp_lamp, 3 stages, by a predictor": lambda: SPLAMP(stages=3),
    "halp": HALP,
    "halp, stem whole, floor 10 %": lambda: HALP(protect_stem=True, floor=0.1),
    "smcp": SMCP,
    "smcp, norms scaled": lambda: SMCP(masks=SoftMasks(norm_scaling=True)),
    "lamp": Lamp,
    "global, L1": lambda: GlobalThreshold(score=get_criterion("l1"), normalise="mean"),
    "global, L2": lambda: GlobalThreshold(score=MagnitudeConfig(), normalise="mean"),
    "global, BN scale": lambda: GlobalThreshold(score=get_criterion("bn_scale")),
    "global, Taylor": lambda: GlobalThreshold(score=TaylorConfig()),
    "global, FPGM": lambda: GlobalThreshold(score=get_criterion("fpgm"), normalise="mean"),
    "global, HRank": lambda: GlobalThreshold(score=get_criterion("hrank"), normalise="mean"),
    "global, CHIP": lambda: GlobalThreshold(score=get_criterion("chip"), normalise="mean"),
    "greedy": Greedy,
    "uniform": Uniform,
    "random": RandomChoice,
    "from_scratch": FromScratch,
}
BY_PREDICTOR = ("sp_lamp, 3 stages, by a predictor",)
ON_LATENCY = ("sp_lamp, 1 stage, whole networks timed", *BY_PREDICTOR)
"""Rows that differ from others in where latency comes from."""
SWEEP, SWEEP_SECONDS = 200, 60.0
"""Random networks of a predictor, as many as are measured within so many seconds."""
BUDGETS = ("flops=50%", "50%", "25%")
ESCAPED = "; ".join(METHODS).replace("%", "%%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["resnet20", "vit"], default="resnet20")
    parser.add_argument("--weights", default=WEIGHTS, help="weights of the vision transformer, from benchmarks/train_vit.py")
    parser.add_argument("--data", required=True, help="folder with cifar10_train.npz, cifar10_test.npz and weights/")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--budget", action="append", help="budgets (default: flops=50%%, 50%%, 25%%); may be repeated")
    parser.add_argument("--method", action="append", help=f"methods (default: all): {ESCAPED}")
    parser.add_argument("--train-images", type=int, default=0, help="images to train on after the cut; 0 trains none")
    parser.add_argument("--test-images", type=int, default=10000, help="of the test images, so many of the first")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of training and evaluation")
    parser.add_argument("--store", default="runs/methods.sqlite")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    output = Path(args.output)
    done = json.loads(output.read_text())["rows"] if output.exists() else []
    Path(args.store).parent.mkdir(parents=True, exist_ok=True)
    with latprune.Store(args.store) as store:
        for budget in args.budget or BUDGETS:
            for name in args.method or METHODS:
                unlike = name in ON_LATENCY and not latprune.Budget.parse(budget).on_latency
                if unlike or any(is_done(row, args, name, budget) for row in done):
                    continue
                row = {"method": name, "budget": budget, **run(args, name, budget, store)}
                done = [other for other in done if (other["method"], other["budget"]) != (name, budget)] + [row]
                write(output, args, done)
                print(line(row), flush=True)
    print_table(done)


def is_done(row: dict[str, Any], args: argparse.Namespace, name: str, budget: str) -> bool:
    """Whether a row is this one, trained as it is to be."""
    trained = not args.train_images or "refused" in row or row.get("train_images") == args.train_images
    return (row["method"], row["budget"]) == (name, budget) and trained


def network(args: argparse.Namespace) -> nn.Module:
    """The trained dense network."""
    if args.network == "resnet20":
        model: nn.Module = cifar_resnet(20)
        weights = Path(args.data) / "weights" / "cifar10_resnet20.safetensors"
    else:
        model, weights = cifar_vit(width=WIDTH), Path(args.weights)
    model.load_state_dict(decode_tensors(weights.read_bytes(), source=str(weights)))
    return model.eval()


def run(args: argparse.Namespace, name: str, budget: str, store: latprune.Store) -> dict[str, Any]:
    """One row."""
    model, method = network(args), METHODS[name]()
    test = FirstBatches(cifar10_test(args.data), -(-args.test_images // 500))
    train = cifar10_train(args.data)
    recipe = Recipe(epochs=1, learning_rate=0.01, weight_decay=5e-4, precision=native_precision(), channels_last=True)
    if args.network == "vit":
        recipe = Recipe(epochs=1, learning_rate=3e-4, optimizer=AdamW(), weight_decay=0.05, precision=native_precision())
    images = args.train_images or 6400
    few = FirstBatches(train, max(1, images // 128))
    soft = isinstance(method.schedule, SoftMasks)
    start = time.process_time()
    row: dict[str, Any] = {"network": args.network, "machine": machine_name(), "engine": args.engine}
    try:
        predictor = swept_predictor(args.engine, args.store) if name in BY_PREDICTOR else None
        pruner = latprune.Pruner(
            model, torch.randn(1, 3, 32, 32), budget=budget, target=args.engine, method=method, predictor=predictor, store=store, seed=0
        )
        try:
            if soft:
                row["train_images"] = images
                with training_threads(args.threads):
                    latprune.finetune(model, few, recipe, driver=lambda optimizer, steps: driver_of(pruner, optimizer, steps))
            while not pruner.done:
                pruner.step(train, batches=16)
            row["cpu_seconds"] = time.process_time() - start
            row |= {"stages": pruner.stage, "status": status(pruner), "cut": accuracy(args, model, test)}
            latency = pruner.limits.measured
            result = pruner.result(measured=(pruner.fresh.dense, pruner.fresh.pruned) if latency and pruner.fresh is not None else None)
            row |= {
                "share_of_budget": result.record.budget_share,
                "macs": result.record.pruned.macs / result.record.dense.macs,
                "parameters": result.record.pruned.parameters / result.record.dense.parameters,
                "ratio": result.latency_ratio,
                "blocks_removed": len(result.record.blocks_removed),
            }
            if method.keeps_weights:
                norms = recalibrated(args, model, train, test)
                row["norms"] = norms
                report = pruner.recover(train, images=2048)
                row |= {"recovered": accuracy(args, model, test), "recovery_seconds": report.seconds}
        finally:
            pruner.close()
        if args.train_images and not soft:
            with training_threads(args.threads):
                latprune.finetune(model, few, recipe)
            row |= {"trained": accuracy(args, model, test), "train_images": images}
    except BudgetInfeasibleError as error:
        row |= {"refused": str(error), "floor": error.floor}
    except LatpruneError as error:
        row |= {"refused": str(error)}
    return row


@cache
def swept_predictor(engine: str, beside: str) -> KernelPredictor:
    """A predictor that knows random networks alone, from a store of their own."""
    target = latprune.Target(engine=engine)
    with latprune.Store(Path(beside).with_suffix(".sweep.sqlite")) as store:
        sweep_kernels(target, store, SWEEP, time_limit=SWEEP_SECONDS)
        context = target_context(target)
        return train_predictor(context, store.networks(context))


def status(pruner: latprune.Pruner) -> str:
    """What the solver said at the last stage."""
    solution = pruner.reports[-1].solution
    return str(solution["status"]) if solution else "–"


def accuracy(args: argparse.Namespace, model: nn.Module, test: Any) -> float:
    with training_threads(args.threads):
        return evaluate(model.eval(), test)


def recalibrated(args: argparse.Namespace, model: nn.Module, train: Any, test: Any) -> float:
    """Accuracy with norms measured again; the model is as before afterwards."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recalibrate_batch_norm(model, train, batches=16)
    found = accuracy(args, model, test)
    model.load_state_dict(before)
    return found


def write(output: Path, args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": "methods", "network": args.network, "test_images": args.test_images, "rows": rows}
    write_atomic(output, json.dumps(document, indent=1) + "\n")


def line(row: dict[str, Any]) -> str:
    """One row as text."""

    def share(key: str) -> str:
        return f"{100 * row[key]:6.2f}" if row.get(key) is not None else "     –"

    head = f"{row['method']:30} {row['budget']:10}"
    if "refused" in row:
        return f"{head} refused: {row['refused'][:110]}"
    values = "  ".join(f"{label} {share(key)}" for label, key in COLUMNS)
    return f"{head} {values}  {row['blocks_removed']} blocks  {row['stages']} stages  {row['status']:9} {row['cpu_seconds']:.0f} CPU s"


COLUMNS = (
    ("budget", "share_of_budget"),
    ("macs", "macs"),
    ("cut", "cut"),
    ("norms", "norms"),
    ("recovered", "recovered"),
    ("trained", "trained"),
)


def print_table(rows: list[dict[str, Any]]) -> None:
    print()
    for row in rows:
        print(line(row))


if __name__ == "__main__":
    main()
