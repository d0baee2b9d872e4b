"""The job that interruption tests run through the command line: a small residual network and made-up images."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from latprune.zoo import DIGITS_NORMALISATION, ImageLoader, digits_resnet


def network() -> nn.Module:
    torch.manual_seed(0)
    return digits_resnet(blocks=1, widths=(16, 32, 64))


def _images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 1), dtype=np.uint8), rng.integers(0, 10, count)


def train() -> ImageLoader:
    return ImageLoader(*_images(512, 0), batch_size=16, normalisation=DIGITS_NORMALISATION, shuffle=True)


def test_images() -> ImageLoader:
    return ImageLoader(*_images(64, 1), batch_size=64, normalisation=DIGITS_NORMALISATION)
