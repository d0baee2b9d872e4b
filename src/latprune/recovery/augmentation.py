"""Random variants of unlabelled images: what both networks see in place of the images themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latprune.argument_rules import check_flag, check_share

__all__ = ["ImageVariants"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageVariants:
    """Mirrors, shifts and mixes a batch of images; inputs of any other kind stay as they are.

    The dense network sees the same variants, so nothing is assumed about what an image shows: a mirrored digit need not be a digit, the
    pruned network must do with it what the dense one does.

    Attributes:
        mirror: Whether each image is mirrored left to right with probability one half.
        shift: Each image moves by up to this share of its height and width, zeros (the mean colour of normalised images) move in.
        mix: Share of batches whose images are each mixed with another one of the batch, by weights drawn evenly from 0 to 1.
    """

    mirror: bool = True
    shift: float = 0.125
    mix: float = 0.0

    def __post_init__(self) -> None:
        check_flag("mirror", self.mirror)
        check_share("shift", self.shift)
        check_share("mix", self.mix)

    def __str__(self) -> str:
        parts = [
            "mirrored" if self.mirror else "",
            f"shifted by up to {self.shift:.3g} of their size" if self.shift else "",
            f"mixed in {self.mix:.3g} of the steps" if self.mix else "",
        ]
        return ", ".join(part for part in parts if part) or "as they are"

    def apply_to(self, inputs: Any) -> bool:
        """Whether inputs are images: one floating-point tensor, ``(images, channels, height, width)``."""
        return isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.is_floating_point()

    def __call__(self, inputs: Any, generator: torch.Generator) -> Any:
        """A variant of each image of a batch; the generator (on the CPU) decides."""
        if not self.apply_to(inputs):
            return inputs
        images: Tensor = inputs
        count = images.shape[0]
        last = images.is_contiguous(memory_format=torch.channels_last)
        if self.mirror:
            turned = (torch.rand(count, generator=generator) < 0.5).to(images.device)
            images = torch.where(turned[:, None, None, None], images.flip(3), images)
        if self.shift:
            images = _shifted(images, self.shift, generator)
        if self.mix and float(torch.rand((), generator=generator)) < self.mix:
            weights = torch.rand((count, 1, 1, 1), generator=generator).to(images)
            images = torch.lerp(images[torch.randperm(count, generator=generator).to(images.device)], images, weights)
        # Which convolutions run faster on: gathering lays images out anew.
        return images.contiguous(memory_format=torch.channels_last) if last else images


def _shifted(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """``(images, channels, height, width)``, each moved by a random whole number of pixels down and to the right."""
    count, channels, height, width = images.shape
    down, right = round(share * height), round(share * width)
    padded = F.pad(images, (right, right, down, down))
    rows = torch.randint(0, 2 * down + 1, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 2 * right + 1, (count, 1), generator=generator) + torch.arange(width)
    which = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[which[0], which[1], rows[:, None, :, None], columns[:, None, None, :]]
