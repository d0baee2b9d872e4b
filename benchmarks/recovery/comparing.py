"""Which of several networks for one budget comes out best: judged as they are cut, and as they are after a short recovery.

    python benchmarks/recovery/comparing.py --data DATA -o benchmarks/results/recovery-comparing.json

The default method reads one measurement in several ways, each leads to a network, and one is taken. For each of them: the divergence of its
outputs right after the cut (norms by the statistics of the batch), the same after the short recovery that the pruner compares by, and the
accuracy after the whole recovery from 2,048 unlabelled images, which is what the choice is for. Rows are written as they end.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from structures import ResultFile, dense_network

import latprune
from latprune.methods import MDP
from latprune.pruning import proposing
from latprune.pruning.state import selection_to_dict
from latprune.recovery import Refit, recover
from latprune.train import evaluate
from latprune.train.batches import FirstBatches
from latprune.zoo import cifar10_test, cifar10_train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet20"], help="resnet20, resnet56")
    parser.add_argument("--budgets", nargs="+", default=["flops=50%", "flops=30%", "flops=20%"])
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = ResultFile(args.output, "recovery-comparing", key=("network", "budget", "reading"))
    for network in args.networks:
        for budget in args.budgets:
            if not results.has(network=network, budget=budget):
                for row in rows(args, network, budget):
                    results.add(row)
    print_table(results.rows)


def rows(args: argparse.Namespace, network: str, budget: str) -> list[dict[str, Any]]:
    """A row for every network that the readings lead to."""
    model, example = dense_network(network, args.data)
    calibration = list(FirstBatches(cifar10_train(args.data), 16))
    test = FirstBatches(cifar10_test(args.data), -(-args.test_images // 500))
    pruner = latprune.Pruner(copy.deepcopy(model), example, budget=budget, method=MDP(), measure_latency=False)
    judged: dict[str, dict[str, Any]] = {}
    plain = proposing.ProposalSearch.least_divergent

    def both(self: Any, readings: Any, leads_to: Any, since: Any) -> Any:
        """Judge every network both ways, and let the pruner choose."""
        selections = {}
        for name, importance in readings.importances.items():
            selection = leads_to(importance)
            key = json.dumps(selection_to_dict(selection))
            if key in selections:
                judged[selections[key]]["readings"].append(name)
                continue
            selections[key] = name
            short = readings.divergences(selection, self.judge.recovered(readings, selection))
            judged[name] = {
                "readings": [name],
                "selection": selection,
                "cut": float(readings.divergences(selection).mean()),
                "recovered": float(short.mean()),
            }
        taken, importance = plain(self, readings, leads_to, since)
        self.judge.strategy = None
        judged_cut, _ = plain(self, readings, leads_to, since)
        for name, row in judged.items():
            row |= {"taken": taken in row["readings"], "taken_as_cut": judged_cut in row["readings"], "name": name}
        return taken, importance

    proposing.ProposalSearch.least_divergent = both  # type: ignore[method-assign]
    try:
        pruner.propose(data=calibration)
    finally:
        proposing.ProposalSearch.least_divergent = plain  # type: ignore[method-assign]
    return [finished(args, pruner, model, network, budget, row, calibration, test) for row in judged.values()]


def finished(
    args: argparse.Namespace, pruner: latprune.Pruner, model: Any, network: str, budget: str, row: Mapping[str, Any], data: Any, test: Any
) -> dict[str, Any]:
    """The row with the accuracy after the whole recovery."""
    selection = row["selection"]
    cut = pruner._search.network(selection)
    recover(cut, model, data, graph=pruner.graph, selection=selection, strategy=Refit(), images=2048)
    return {
        "network": network,
        "budget": budget,
        "reading": ", ".join(row["readings"]),
        "cut": row["cut"],
        "recovered": row["recovered"],
        "taken": row["taken"],
        "taken_as_cut": row["taken_as_cut"],
        "blocks_removed": len(selection.removed_blocks),
        "top1": 100 * evaluate(cut.eval(), test),
        "test_images": args.test_images,
    }


def print_table(found: list[dict[str, Any]]) -> None:
    print(f"{'network':10} {'budget':10} {'reading':36} {'cut':>7} {'recovered':>9} {'blocks':>6} {'top-1':>6}  taken")
    for row in found:
        taken = ", ".join(word for key, word in (("taken", "as recovered"), ("taken_as_cut", "as cut")) if row[key])
        numbers = f"{row['cut']:7.4f} {row['recovered']:9.4f} {row['blocks_removed']:6d} {row['top1']:6.2f}"
        print(f"{row['network']:10} {row['budget']:10} {row['reading']:36} {numbers}  {taken}")


if __name__ == "__main__":
    main()
