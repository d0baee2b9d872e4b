"""What a caller gives besides model, data and recipe, and where checkpoints go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latprune.train.driver import Driver
from latprune.train.progress import TrainProgress
from latprune.train.teaching import KeptChannels

__all__ = ["Evaluate", "Hooks", "Loss", "Saving"]

Loss = Callable[[nn.Module, Any], torch.Tensor]
Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What the caller of :func:`~latprune.train.finetune` gave besides model, data and recipe."""

    evaluate: Evaluate | None = None
    teacher: nn.Module | None = None
    kept: Mapping[str, KeptChannels] = field(default_factory=dict)
    loss: Loss | None = None
    after_step: Callable[[nn.Module], None] | None = None
    driver: Callable[[torch.optim.Optimizer, int], Driver] | None = None
    progress: Callable[[TrainProgress], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Where checkpoints go, and the seconds between them."""

    folder: Path
    every: float
