r"""Which peak learning rate is right after a recovery: short fine-tuning on CIFAR-10 from the cut and from what recovery made of it.

    python benchmarks/recovery/finetuning.py --data DATA -o benchmarks/results/recovery-finetuning.json
    python benchmarks/recovery/finetuning.py --data DATA --networks resnet56 --budgets 50% --blocks --epochs 3 \
        --norms moving --teacher no -o ...
    python benchmarks/recovery/finetuning.py --data DATA --starts refit --norms fixed --teacher match --rates 0.03 -o ...

Every start (the cut, norms measured again, the refit) is trained on the same images, once per rate, with batch-norm statistics that move
and with fixed ones, without and with the dense network teaching (``yes``: labels and its classes by half; ``match``: the recipe
``match-dense``, its outputs and streams without labels, whose rate is relative to the size of each tensor; ``match-absolute`` with one
rate for all tensors). Each row has the share of the outputs' error that the start left, so that the rate of ``Recipe.after_recovering``
(the rate that is best from the cut times the share) can be compared with the best one. Rows are written as they end; a row that is there
is not computed again.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from structures import ResultFile, cut_network, print_rows, top
from teaching import match_dense, matching  # on the path by structures

from latprune.errors import TrainingError
from latprune.recovery import recover
from latprune.train import SGD, Distillation, ProgressPrinter, Recipe, finetune
from latprune.train.batches import FirstBatches
from latprune.train.precision import native_precision
from latprune.zoo import cifar10_test, cifar10_train

STARTS = {"cut": None, "norms": "norms", "refit": "refit"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["resnet20"])
    parser.add_argument("--budgets", nargs="+", default=["flops=50%"])
    parser.add_argument("--method", default="mdp")
    parser.add_argument("--blocks", action="store_true", help="blocks may be removed")
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.001, 0.003, 0.01, 0.03])
    parser.add_argument("--teacher", nargs="+", default=["no", "yes"], choices=["no", "yes", "match", "match-absolute"])
    parser.add_argument("--norms", nargs="+", default=["fixed", "moving"], choices=["fixed", "moving"], help="statistics in training")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--train-images", type=int, default=50_000, help="labelled images of an epoch (default: %(default)s)")
    parser.add_argument("--images", type=int, default=2048, help="unlabelled images of the recovery (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("recovery-work"), help="folder for the structures (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = ("network", "budget", "method", "blocks", "start", "norms", "teacher", "epochs", "train_images", "images", "rate", "seed")
    file = ResultFile(args.output, "recovery-finetuning", key=columns, script="benchmarks/recovery/finetuning.py")
    test = list(cifar10_test(str(args.data)))
    for network, budget, start, seed in product(args.networks, args.budgets, args.starts, range(args.seeds)):
        fixed = dict(network=network, budget=budget, method=args.method, blocks=args.blocks, start=start, epochs=args.epochs)
        fixed |= dict(train_images=args.train_images, images=args.images, seed=seed)
        heads = [
            {**fixed, "norms": norms, "teacher": teacher, "rate": rate}
            for norms, teacher, rate in product(args.norms, args.teacher, args.rates)
        ]
        heads = [head for head in heads if not any(all(row[c] == head[c] for c in columns) for row in file.rows)]
        if not heads:
            continue
        labelled = list(islice(cifar10_train(str(args.data)), 32))
        cut = cut_network(network, args.data, method=args.method, budget=budget, blocks=args.blocks, labelled=labelled, folder=args.work)
        begun, share, strategy = copy.deepcopy(cut.pruned), 1.0, STARTS[start]
        if strategy is not None:
            images = [batch for batch, _ in islice(cifar10_train(str(args.data), seed=seed, augment=False), -(-args.images // 128))]
            report = recover(
                begun, cut.dense, images, graph=cut.graph, selection=cut.selection, strategy=strategy, images=args.images, seed=seed
            )
            share = report.error_left or share
        before = top(begun, test)[0]
        batches = FirstBatches(cifar10_train(str(args.data), seed=100 + seed), -(-args.train_images // 128))  # new crops in each epoch
        for head in heads:
            trained = copy.deepcopy(begun)
            recipe, kept = recipe_of(head), None
            if recipe.distillation is not None and recipe.distillation.features:
                recipe, kept = matching(recipe, cut.dense, cut.graph, cut.selection, labelled[0][0][:2])
            try:
                teacher = cut.dense if recipe.distillation is not None else None
                finetune(trained, batches, recipe, teacher=teacher, kept=kept, progress=ProgressPrinter())
                accuracy = top(trained, test)[0]
            except TrainingError:  # diverged
                accuracy = None
            file.add({**head, "error_left": share, "before": before, "top1": accuracy, "threads": args.threads})
            how = f"norms {head['norms']} teacher {head['teacher']} rate {head['rate']}"
            print(
                f"{network} {budget} {start} {how}: {before:.2f} -> {'diverged' if accuracy is None else f'{accuracy:.2f} %'}", flush=True
            )
    print_rows(
        [row for row in file.rows if row["top1"] is not None], ("network", "budget", "start", "norms", "teacher", "train_images", "rate")
    )


def recipe_of(head: dict[str, Any]) -> Recipe:
    """The recipe of a row; ``features="streams"`` are still to be found."""
    if head["teacher"].startswith("match"):
        recipe = match_dense(head["epochs"], head["rate"], absolute=head["teacher"] == "match-absolute")
    else:
        recipe = Recipe(
            epochs=head["epochs"],
            learning_rate=head["rate"],
            optimizer=SGD(momentum=0.9),
            weight_decay=5e-4,
            distillation=Distillation() if head["teacher"] == "yes" else None,
        )
    return replace(recipe, fixed_norms=head["norms"] == "fixed", channels_last=True, precision=native_precision(), seed=head["seed"])


if __name__ == "__main__":
    main()
