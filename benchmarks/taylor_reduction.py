"""Which reading of the Taylor score prunes best: ResNet-56 to half of its latency by each, then one epoch of fine-tuning.

    python benchmarks/taylor_reduction.py --data DATA --output benchmarks/results/taylor_reduction.json

Same target, budget, data, recipe and seed for all. ``per_layer``, ``split`` and ``per_group`` are those of ``TaylorConfig``; ``blocks``
removes whole blocks only. Accuracy: after fresh batch-norm statistics, and after the epoch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import latprune
from latprune.importance import TaylorConfig
from latprune.latency import Store, Target, machine_name
from latprune.pruning.finetuning import training_threads
from latprune.storage import write_atomic
from latprune.train import Recipe, evaluate, finetune, recalibrate_batch_norm
from latprune.zoo import cifar10_test, cifar10_train, cifar_resnet

METHODS = {
    "per_layer": latprune.MDP(score=TaylorConfig(reduction="per_layer")),
    "split": latprune.MDP(score=TaylorConfig(reduction="split")),
    "per_group": latprune.MDP(score=TaylorConfig(reduction="per_group")),
    "blocks": latprune.MDP(score=TaylorConfig(), channels=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--train-threads", type=int)
    parser.add_argument("--store", default="runs/taylor-reduction.sqlite")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    Path(args.store).parent.mkdir(parents=True, exist_ok=True)
    test = cifar10_test(args.data)
    recipe = Recipe(epochs=args.epochs, learning_rate=0.02, weight_decay=5e-4, precision="bf16", channels_last=True)
    rows = {}
    print(f"{'score':10} {'ratio':>7} {'blocks':>6} {'params':>8} {'recalibrated':>12} {'fine-tuned':>10}")
    for name, method in METHODS.items():
        torch.set_num_threads(1)
        model = cifar_resnet(56)
        model.load_state_dict(load_file(f"{args.data}/weights/cifar10_resnet56.safetensors"))
        train = cifar10_train(args.data)
        result = latprune.prune(
            model.eval(),
            torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
            budget="50%",
            target=Target(engine=args.engine),
            method=method,
            data=train,
            store=Store(args.store),
        )
        with training_threads(args.train_threads):
            recalibrate_batch_norm(model, cifar10_train(args.data, seed=1), batches=20)
            before = evaluate(model, test, precision="bf16")
            report = finetune(model, train, recipe, evaluate=lambda network: evaluate(network, test, precision="bf16"))
        rows[name] = {
            "ratio": result.latency_ratio,
            "blocks_removed": len(result.record.blocks_removed),
            "parameters": result.record.pruned.parameters,
            "macs": result.record.pruned.macs,
            "recalibrated": before,
            "fine_tuned": report.accuracy,
            "widths": {group.name: group.kept for group in result.record.groups},
        }
        row = rows[name]
        print(
            f"{name:10} {row['ratio']:7.4f} {row['blocks_removed']:6d} {row['parameters']:8d} {before:12.4f} {report.accuracy:10.4f}",
            flush=True,
        )
    output = {"benchmark": "taylor_reduction", "engine": args.engine, "machine": machine_name(), "epochs": args.epochs, "rows": rows}
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.output, json.dumps(output, indent=1) + "\n")


if __name__ == "__main__":
    main()
