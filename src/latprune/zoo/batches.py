"""Ready batches of the reference data sets: what ``--data`` and ``--test-data`` of the command line name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from latprune.argument_rules import check_flag
from latprune.errors import InvalidArgumentError
from latprune.zoo.digits import digits
from latprune.zoo.images import cifar10
from latprune.zoo.loading import (
    CIFAR10_NORMALISATION,
    DIGITS_NORMALISATION,
    IMAGENET_NORMALISATION,
    Augmentation,
    ImageLoader,
    Normalisation,
    normalisation_of,
)

__all__ = ["cifar10_test", "cifar10_train", "digits_test", "digits_train"]


def _decoded() -> Path:
    """Folder of decoded images: ``LATPRUNE_CACHE``, else the user's cache folder."""
    home = os.environ.get("LATPRUNE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latprune"
    return Path(home) / "images"


_NAMED = {"imagenet": IMAGENET_NORMALISATION, "cifar10": CIFAR10_NORMALISATION}


def _normalisation(given: Normalisation | str) -> Normalisation:
    """A normalisation, or the one of that name (what a command line can say)."""
    if isinstance(given, Normalisation):
        return given
    if given not in _NAMED:
        raise InvalidArgumentError(f"normalisation (={given!r}) must be {' or '.join(_NAMED)}, or a Normalisation")
    return _NAMED[given]


def cifar10_train(
    root: str,
    batch_size: int = 128,
    seed: int = 0,
    normalisation: Normalisation | str = IMAGENET_NORMALISATION,
    augment: bool = True,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> ImageLoader:
    """Training batches of CIFAR-10, shuffled, with random crops and flips.

    Args:
        root: Folder with the official binary files (``data_batch_1.bin`` and so on), or with ``cifar10_train.npz`` and
            ``cifar10_test.npz``.
        batch_size: Images per batch.
        seed: Of order and augmentation.
        normalisation: ``imagenet`` (its constants, which the pretrained CIFAR-10 networks use), ``cifar10`` (SP-LAMP's), or one of your
            own.
        augment: False leaves the images as they are.
        mean: By channel (one number is that of all), 0 to 1, in the place of the normalisation's.
        std: By channel, in the place of the normalisation's.
    """
    check_flag("augment", augment)
    constants = normalisation_of(3, mean, std, base=_normalisation(normalisation))
    (images, labels), _ = cifar10(root, cache_dir=_decoded())
    augmentation = Augmentation() if augment else None
    return ImageLoader(
        images,
        labels,
        batch_size=batch_size,
        normalisation=constants,
        shuffle=True,
        augmentation=augmentation,
        seed=seed,
        drop_last=True,
    )


def cifar10_test(
    root: str,
    batch_size: int = 500,
    normalisation: Normalisation | str = IMAGENET_NORMALISATION,
    seed: int = 0,
    augment: bool = True,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> ImageLoader:
    """Test batches of CIFAR-10 in their order, as they are; arguments as for :func:`cifar10_train`, so that both can be given the same."""
    constants = normalisation_of(3, mean, std, base=_normalisation(normalisation))
    _, (images, labels) = cifar10(root, cache_dir=_decoded())
    return ImageLoader(images, labels, batch_size=batch_size, normalisation=constants)


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
