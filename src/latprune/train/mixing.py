"""Mixup and CutMix: examples of a batch blended with others of it, the same ones in every run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latprune.errors import InvalidArgumentError
from latprune.train.recipe import Recipe

__all__ = ["Mixed", "check_mixing", "mix"]

MIX_STREAM = 2
"""First number of the random stream that mixing draws from, beside the model's and the data's."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixed:
    """A blended batch: its loss is ``share`` of the one for ``targets`` and the rest of the one for ``partners``.

    Attributes:
        inputs: ``(batch, ...)``.
        targets: ``(batch,)`` class indices of the examples themselves.
        partners: ``(batch,)`` class indices of what they were blended with.
        share: Share of the examples themselves.
    """

    inputs: Tensor
    targets: Tensor
    partners: Tensor
    share: float


def check_mixing(inputs: Any, targets: Any, recipe: Recipe) -> None:
    """Refuse what :func:`mix` would refuse, of each kind of mixing that the recipe has.

    Raises:
        InvalidArgumentError: Inputs or targets are no such tensors.
    """
    for alone in (replace(recipe, mixup=0.0), replace(recipe, cutmix=0.0)):
        mix(inputs, targets, alone, step=0)


def mix(inputs: Any, targets: Any, recipe: Recipe, *, step: int, rank: int = 0) -> Mixed | None:
    """Blend a batch as the recipe has it; None where it blends nothing.

    Args:
        inputs: ``(batch, ...)``; CutMix needs ``(batch, channels, height, width)``.
        targets: ``(batch,)`` class indices.
        recipe: Its ``mixup`` and ``cutmix`` are the strengths, its ``seed`` the draw's.
        step: Number of the batch in the whole run: the draw is a function of it, so a resumed run draws the same.
        rank: Number of the process.

    Raises:
        InvalidArgumentError: Inputs or targets are no such tensors.
    """
    if recipe.mixup == 0.0 and recipe.cutmix == 0.0:
        return None
    random = np.random.default_rng((recipe.seed, MIX_STREAM, rank, step))
    boxes = recipe.cutmix > 0.0 and (recipe.mixup == 0.0 or random.random() < 0.5)
    name, least = ("cutmix", 4) if boxes else ("mixup", 1)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim < least:
        shape = f"{inputs.dtype} {list(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
        wanted = "floating-point images (batch, channels, height, width)" if boxes else "one floating-point tensor"
        raise InvalidArgumentError(f"{name} blends {wanted}; the inputs are {shape}: set it to 0 for this data")
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise InvalidArgumentError(f"{name} needs one class index for each example; set it to 0 for this data")
    strength = recipe.cutmix if boxes else recipe.mixup
    share = float(random.beta(strength, strength))
    order = torch.from_numpy(random.permutation(len(inputs))).to(inputs.device)
    others = inputs[order]
    if not boxes:
        return Mixed(inputs=inputs * share + others * (1.0 - share), targets=targets, partners=targets[order], share=share)
    height, width = inputs.shape[-2:]
    size = (1.0 - share) ** 0.5
    row, column = random.integers(height), random.integers(width)
    rows = slice(max(0, int(row - size * height / 2)), min(height, int(row + size * height / 2)))
    columns = slice(max(0, int(column - size * width / 2)), min(width, int(column + size * width / 2)))
    blended = inputs.clone()
    blended[..., rows, columns] = others[..., rows, columns]
    area = max(0, rows.stop - rows.start) * max(0, columns.stop - columns.start)
    return Mixed(inputs=blended, targets=targets, partners=targets[order], share=1.0 - area / (height * width))
