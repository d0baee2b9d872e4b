"""A training under masks that takes seconds: used in this process and, as a script, in processes that get killed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import latprune
from latprune.methods import SMCP, Method, SoftMasks
from latprune.pruning import MaskedTraining, driver_of
from latprune.train import SGD, Cosine, Recipe, TrainReport, finetune
from latprune.zoo import digits_resnet

X = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(2))
RECIPE = Recipe(epochs=2, learning_rate=0.05, optimizer=SGD(nesterov=True), schedule=Cosine(), weight_decay=1e-3)
METHOD = SMCP(masks=SoftMasks(every=2, warmup=0.1, cooldown=0.4))


class NoisyImages(Dataset[tuple[torch.Tensor, int]]):
    """Made-up images; every look adds fresh noise, as augmentations do."""

    def __init__(self, size: int = 96) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images = torch.randn(size, 1, 16, 16, generator=generator)
        self.labels = torch.randint(0, 10, (size,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index] + 0.1 * torch.randn(1, 16, 16), int(self.labels[index])


def loader(size: int = 96) -> DataLoader[tuple[torch.Tensor, int]]:
    return DataLoader(NoisyImages(size), batch_size=16, shuffle=True)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = digits_resnet(blocks=2, widths=(8, 16, 16))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def pruner_of(method: Method = METHOD, *, seed: int = 0, budget: str = "flops=50%", **options: Any) -> latprune.Pruner:
    return latprune.Pruner(network(seed), X, budget=budget, method=method, measure_latency=False, **options)


def train(
    folder: Path | None,
    pruner: latprune.Pruner,
    *,
    recipe: Recipe = RECIPE,
    size: int = 96,
    after_step: Callable[[nn.Module], None] | None = None,
) -> tuple[TrainReport, MaskedTraining]:
    """Train under masks; what was solved on the way is the driver's."""
    drivers = []

    def driver(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        drivers.append(driver_of(pruner, optimizer, steps))
        return drivers[0]

    report = finetune(
        pruner.model, loader(size), recipe, driver=driver, checkpoint_dir=folder, checkpoint_seconds=0.0, after_step=after_step
    )
    return report, drivers[0]


def outcome(folder: Path, pause: float = 0.0) -> dict[str, Any]:
    """Train, with a pause after each step, and cut: what two runs are compared by."""
    pruner = pruner_of()
    report, training = train(folder, pruner, after_step=lambda model: time.sleep(pause))
    pruner.step()
    digest = {name: value.double().sum().item() for name, value in pruner.model.state_dict().items()}
    changes = [[change.step, change.masked, change.returned] for change in training.changes]
    return {"digest": digest, "changes": changes, "widths": pruner.widths, "resumed_from": report.resumed_from}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(outcome(Path(sys.argv[1]), float(sys.argv[2]))))
