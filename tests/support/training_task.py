"""A small task that trains in a second: used in this process and, as a script, in processes that get killed."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from latprune.train import SGD, Cosine, Recipe, TrainReport, finetune

RECIPE = Recipe(epochs=3, learning_rate=0.1, optimizer=SGD(nesterov=True), schedule=Cosine(), warmup_epochs=0.5, weight_decay=1e-3)


class NoisyPoints(Dataset[tuple[torch.Tensor, int]]):
    """Two classes in the plane; every look adds fresh noise from all three generators, as augmentations do."""

    def __init__(self, size: int = 96) -> None:
        generator = torch.Generator().manual_seed(7)
        self.points = torch.randn(size, 2, generator=generator)
        self.labels = (self.points.prod(dim=1) > 0).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = 0.01 * (torch.randn(2) + torch.tensor([random.gauss(0, 1), np.random.standard_normal()], dtype=torch.float32))
        return self.points[index] + noise, int(self.labels[index])


def loader(size: int = 96, batch_size: int = 16) -> DataLoader[tuple[torch.Tensor, int]]:
    return DataLoader(NoisyPoints(size), batch_size=batch_size, shuffle=True)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))


def train(
    folder: Path | None, *, checkpoint_seconds: float = 0.0, recipe: Recipe = RECIPE, pause: float = 0.0
) -> tuple[nn.Module, TrainReport]:
    """Train a fresh network; ``pause`` seconds after each step leave time to interrupt it."""
    model = network()
    points = NoisyPoints()
    report = finetune(
        model,
        loader(),
        recipe,
        evaluate=[(points.points, points.labels)],
        checkpoint_dir=folder,
        checkpoint_seconds=checkpoint_seconds,
        after_step=lambda network: time.sleep(pause),
    )
    return model, report


def outcome(model: nn.Module, report: TrainReport) -> dict[str, object]:
    """What two runs are compared by."""
    digest = {name: value.double().sum().item() for name, value in model.state_dict().items()}
    return {"digest": digest, "steps": report.steps, "resumed_from": report.resumed_from}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(outcome(*train(Path(sys.argv[1]), pause=float(sys.argv[2])))))
