"""Ready batches of the reference data sets: what ``--data`` and ``--test-data`` of the command line name."""

from __future__ import annotations

import os
from pathlib import Path

from latprune.zoo.digits import digits
from latprune.zoo.images import cifar10
from latprune.zoo.loading import DIGITS_NORMALISATION, IMAGENET_NORMALISATION, Augmentation, ImageLoader, Normalisation

__all__ = ["cifar10_test", "cifar10_train", "digits_test", "digits_train"]


def _decoded() -> Path:
    """Folder of decoded images: ``LATPRUNE_CACHE``, else the user's cache folder."""
    home = os.environ.get("LATPRUNE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latprune"
    return Path(home) / "images"


def cifar10_train(
    root: str, batch_size: int = 128, seed: int = 0, normalisation: Normalisation = IMAGENET_NORMALISATION, augment: bool = True
) -> ImageLoader:
    """Training batches of CIFAR-10, shuffled, with random crops and flips.

    Args:
        root: Folder with the official binary files (``data_batch_1.bin`` and so on), or with ``cifar10_train.npz`` and
            ``cifar10_test.npz``.
        batch_size: Images per batch.
        seed: Of order and augmentation.
        normalisation: ImageNet's constants by default, which the pretrained CIFAR-10 networks use.
        augment: False leaves the images as they are.
    """
    (images, labels), _ = cifar10(root, cache_dir=_decoded())
    augmentation = Augmentation() if augment else None
    return ImageLoader(
        images,
        labels,
        batch_size=batch_size,
        normalisation=normalisation,
        shuffle=True,
        augmentation=augmentation,
        seed=seed,
        drop_last=True,
    )


def cifar10_test(root: str, batch_size: int = 500, normalisation: Normalisation = IMAGENET_NORMALISATION) -> ImageLoader:
    """Test batches of CIFAR-10 in their order; arguments as for :func:`cifar10_train`."""
    _, (images, labels) = cifar10(root, cache_dir=_decoded())
    return ImageLoader(images, labels, batch_size=batch_size, normalisation=normalisation)


def digits_train(batch_size: int = 64, seed: int = 0, upscale: int = 4) -> ImageLoader:
    """Training batches of scikit-learn's digits, shuffled and shifted at random by up to a sixteenth of their size.

    Args:
        batch_size: Images per batch.
        seed: Of order and shifts.
        upscale: Enlargement of the 8x8 images: 4 gives 32x32 (see :func:`digits`).
    """
    (images, labels), _ = digits(upscale=upscale)
    return ImageLoader(
        images,
        labels,
        batch_size=batch_size,
        normalisation=DIGITS_NORMALISATION,
        shuffle=True,
        augmentation=Augmentation(padding=upscale // 2, flip=False),
        seed=seed,
        drop_last=True,
    )


def digits_test(batch_size: int = 360, upscale: int = 4) -> ImageLoader:
    """Held-out digits in their order; arguments as for :func:`digits_train`."""
    _, (images, labels) = digits(upscale=upscale)
    return ImageLoader(images, labels, batch_size=batch_size, normalisation=DIGITS_NORMALISATION)
