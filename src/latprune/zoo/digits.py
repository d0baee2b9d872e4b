"""The handwritten digits that ship with scikit-learn, and a small residual network for them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from latprune.errors import InvalidArgumentError
from latprune.extras import importing
from latprune.zoo.cifar_resnet import CifarResNet

__all__ = ["digits", "digits_resnet"]

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def digits(*, upscale: int = 4, test_share: float = 0.2, seed: int = 0) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """The 1,797 handwritten digits of scikit-learn (8x8, 17 grey levels), enlarged and split by class.

    Args:
        upscale: Factor of the bilinear enlargement: 4 gives 32x32 images.
        test_share: Share of each class that is held out.
        seed: Chooses the held-out images.

    Returns:
        ``(train images, train labels), (test images, test labels)``; images ``(n, 8 * upscale, 8 * upscale, 1)`` uint8, labels int64.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    if upscale < 1:
        raise InvalidArgumentError(f"upscale (={upscale}) must be at least 1")
    if not 0.0 < test_share < 1.0:
        raise InvalidArgumentError(f"test_share (={test_share}) must lie between 0 and 1")
    with importing("scikit-learn", "demo", module="sklearn"):
        from sklearn.datasets import load_digits
    data = load_digits()
    small = torch.from_numpy(np.ascontiguousarray(data.images, dtype=np.float32))[:, None] * (255.0 / 16.0)
    large = F.interpolate(small, scale_factor=upscale, mode="bilinear", align_corners=False) if upscale > 1 else small
    images = large.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    labels = data.target.astype(np.int64)
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        held_out[places[: round(test_share * len(places))]] = True
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])


def digits_resnet(blocks: int = 3, widths: tuple[int, int, int] = (48, 96, 192), num_classes: int = 10) -> CifarResNet:
    """A residual network for the enlarged digits: one input channel, three stages of ``blocks`` blocks, convolution shortcuts.

    Args:
        blocks: Residual blocks per stage.
        widths: Channels of the three stages.
        num_classes: Number of outputs.
    """
    if blocks < 1:
        raise InvalidArgumentError(f"blocks (={blocks}) must be at least 1")
    if min(widths) < 1:
        raise InvalidArgumentError(f"widths (={widths}) must be at least 1 each")
    return CifarResNet(blocks, shortcut="B", num_classes=num_classes, widths=widths, channels=1)
