"""Recovery on networks of other kinds, trained here on made images: a U-Net (segmentation) and a YOLO of Ultralytics (detection).

    python benchmarks/recovery/made.py -o benchmarks/results/recovery-made.json

Squares and discs on noise are segmented (score: mean intersection over union of background, square and disc) or detected (score: mAP50 of
Ultralytics' own validation; needs ``ultralytics``). Each network is cut to shares of its multiply-adds and recovered by every strategy from
unlabelled training images; ``training`` is steps of the U-Net's training and epochs of the detector's. Rows are written as they end; a row
that is there is not computed again.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from structures import ResultFile, add_counted_arguments, edits_of, print_rows, recovered
from torch import Tensor, nn

import latprune
from latprune.recovery import selection_of_edits
from latprune.surgery import replay
from latprune.zoo import unet

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))


class Task(ABC):
    """A trained network, its unlabelled images, and its score."""

    score_name: str
    example: Tensor
    dense: nn.Module

    @abstractmethod
    def images(self) -> Iterator[Tensor]:
        """Batches of training images, ``(images, 3, side, side)``."""

    @abstractmethod
    def score(self, model: nn.Module) -> float:
        """In percent, on test images."""

    def deployed(self, model: nn.Module) -> AbstractContextManager[None]:
        """While open, the model computes what counts as its outputs."""
        return nullcontext()

    def widths(self) -> latprune.WidthRules | None:
        """What must stay whole."""
        return None


class Shapes(Task):
    """A U-Net that says of each pixel whether it belongs to a square, a disc or neither."""

    score_name = "mean IoU"
    side = 64

    def __init__(self, steps: int) -> None:
        torch.manual_seed(0)
        self.example = torch.zeros(1, 3, self.side, self.side)
        self.dense = unet(width=16, depth=3, num_classes=3).train()
        optimizer = torch.optim.AdamW(self.dense.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
        for images, labels in islice(self._batches(seed=1), steps):
            optimizer.zero_grad()
            F.cross_entropy(self.dense(images), labels).backward()
            optimizer.step()
            schedule.step()
        self.dense.eval()

    def _batches(self, seed: int, size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
        """Images with one to three shapes each, and the class of every pixel."""
        generator = np.random.default_rng(seed)
        y, x = np.mgrid[: self.side, : self.side] / self.side
        while True:
            images = generator.uniform(0.0, 0.6, (size, 3, self.side, self.side))
            labels = np.zeros((size, self.side, self.side), dtype=np.int64)
            for image, label in zip(images, labels, strict=True):
                for _ in range(generator.integers(1, 4)):
                    kind, radius = int(generator.integers(1, 3)), generator.uniform(0.06, 0.2)
                    across, down = x - generator.uniform(0.1, 0.9), y - generator.uniform(0.1, 0.9)
                    inside = np.maximum(abs(across), abs(down)) < radius if kind == 1 else np.hypot(across, down) < radius
                    label[inside] = kind
                    image[:, inside] = 0.4 * image[:, inside] + generator.uniform(0.3, 0.6, (3, 1))
            yield torch.from_numpy(images).float(), torch.from_numpy(labels)

    def images(self) -> Iterator[Tensor]:
        """Endless."""
        return (images for images, _ in self._batches(seed=2))

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Over 512 images that no training saw."""
        both, either = torch.zeros(3), torch.zeros(3)
        for images, labels in islice(self._batches(seed=3), 32):
            found = model(images).argmax(1)
            for kind in range(3):
                both[kind] += ((found == kind) & (labels == kind)).sum()
                either[kind] += ((found == kind) | (labels == kind)).sum()
        return 100 * float((both / either).mean())


class Detector(Task):
    """A YOLO trained by Ultralytics' trainer, as the project's example does it."""

    score_name = "mAP50"

    def __init__(self, model: str, epochs: int) -> None:
        from support.vision import torchvision

        torchvision()
        import ultralytics_yolo as example

        self._deployed, self._raw = example.deployed, example.raw_outputs
        self._folder = tempfile.TemporaryDirectory()
        self.example = torch.zeros(1, 3, 96, 96)
        self.job = example.Job(argparse.Namespace(model=f"{model}.yaml", task=None, imgsz=96, images=256), Path(self._folder.name))
        self.dense = self.job.build()
        self.job.train(self.dense, epochs)

    def images(self) -> Iterator[Tensor]:
        """All of them."""
        return self.job.images()

    def score(self, model: nn.Module) -> float:
        """Ultralytics' own."""
        return 100 * self.job.score(model)

    @contextmanager
    def deployed(self, model: nn.Module) -> Iterator[None]:
        """Decoded predictions alone."""
        with self._deployed(model):
            yield

    def widths(self) -> latprune.WidthRules:
        """What the loss reads stays."""
        return self._raw(self.dense, self.example)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["unet", "yolov8n"], help="unet, or the name of an Ultralytics model")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--steps", type=int, default=600, help="training steps of the U-Net")
    parser.add_argument("--epochs", type=int, default=30, help="training epochs of the detector")
    add_counted_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    columns = ("network", "training", "budget", "method", "strategy", "images")
    file = ResultFile(args.output, "recovery-made", key=columns, script="benchmarks/recovery/made.py")
    for network in args.networks:
        training = args.steps if network == "unet" else args.epochs
        task: Task = Shapes(args.steps) if network == "unet" else Detector(network, args.epochs)
        dense = task.score(task.dense)
        print(f"{network}: {task.score_name} {dense:.2f} %", flush=True)
        images = list(islice(task.images(), -(-args.images // 8)))
        for method, budget in ((m, b) for m in args.methods for b in args.budgets):
            head = {"network": network, "training": training, "budget": budget, "method": method, "images": args.images}
            rest = [strategy for strategy in args.strategies if not file.has(**head, strategy=strategy)]
            if not rest:
                continue
            working = copy.deepcopy(task.dense)
            with task.deployed(working):
                pruner = latprune.Pruner(working, task.example, budget=budget, method=method, widths=task.widths(), measure_latency=False)
                edits = edits_of(pruner, images[:16])
                pruner.close()
            # The pruner chooses as for a network that is recovered; what it has recovered itself is not used.
            pruned = replay(copy.deepcopy(task.dense), edits)
            options = {"graph": pruner.graph, "selection": selection_of_edits(pruner.graph, edits), "images": args.images}
            for strategy in rest:
                row = outcome(task, pruned, strategy, images, **options)
                file.add({**head, "strategy": strategy, "score_name": task.score_name, "dense": dense, "threads": args.threads, **row})
                print(f"{network} {budget} {method} {strategy}: {task.score_name} {row['score']:.2f} %", flush=True)
    print_rows(file.rows, ("network", "budget", "method", "strategy"), accuracy="score")


def outcome(task: Task, pruned: nn.Module, strategy: str, data: list[Tensor], **options: Any) -> dict[str, Any]:
    """Recover a copy of the cut network, and score it."""
    network, dense = copy.deepcopy(pruned), copy.deepcopy(task.dense)
    row: dict[str, Any] = {}
    if strategy != "cut":
        with task.deployed(network), task.deployed(dense):
            row = recovered(network, dense, data, strategy=strategy, **options)
    return {"score": task.score(network), **row}


if __name__ == "__main__":
    main()
