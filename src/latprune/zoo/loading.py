"""Batches of images held in memory: order and augmentation follow from the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from latprune.argument_rules import check_flag, check_instance, check_whole
from latprune.errors import InvalidArgumentError
from latprune.zoo.image_arguments import per_channel

__all__ = [
    "CIFAR10_NORMALISATION",
    "DIGITS_NORMALISATION",
    "IMAGENET_NORMALISATION",
    "Augmentation",
    "ImageLoader",
    "Normalisation",
    "augment",
    "normalisation_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """``(x / 255 - mean) / std`` per channel, for uint8 images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise InvalidArgumentError(f"mean (={self.mean}) and std (={self.std}) must have the same length")
        if min(self.std) <= 0:
            raise InvalidArgumentError(f"std (={self.std}) must be above 0")

    def __call__(self, images: Tensor) -> Tensor:
        """``(n, c, h, w)`` uint8 -> the same shape, float32."""
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return images.float().div_(255.0).sub_(mean).div_(std)

    def __str__(self) -> str:
        """The formula with its numbers, for people."""
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"(value / 255 - mean) / std with mean {mean} and std {std}"


IMAGENET_NORMALISATION = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""ImageNet's constants; the pretrained CIFAR-10 networks were trained with them too."""
CIFAR10_NORMALISATION = Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
"""The constants of SP-LAMP's CIFAR-10 recipe."""
DIGITS_NORMALISATION = Normalisation(mean=(0.3054,), std=(0.3237,))
"""Mean and standard deviation of scikit-learn's digits, four times enlarged, on the scale 0 to 1."""


def normalisation_of(channels: int, mean: Any = None, std: Any = None, *, base: Normalisation | None = None) -> Normalisation:
    """A normalisation of which ``mean`` and ``std`` are exchanged where they are given.

    Args:
        channels: 1 or 3.
        mean: One number for all channels, or a sequence of one for each; None: that of ``base``.
        std: The same.
        base: ImageNet's constants for three channels, none (0 and 1) for one, by default.

    Raises:
        InvalidArgumentError: ``mean`` or ``std`` is something else, or ``std`` is not above 0.

    Example:
        >>> print(normalisation_of(1, std=0.5))
        (value / 255 - mean) / std with mean 0 and std 0.5
    """
    base = base or (IMAGENET_NORMALISATION if channels == 3 else Normalisation(mean=(0.0,), std=(1.0,)))
    return Normalisation(
        mean=per_channel("mean", base.mean if mean is None else mean, channels),
        std=per_channel("std", base.std if std is None else std, channels),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Random crop after zero padding, and horizontal flip (arXiv:1512.03385).

    Attributes:
        padding: Zero pixels added on each side before a crop of the original size.
        flip: Mirror left to right with probability one half (not for digits).
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        check_whole("padding", self.padding, least=0)
        check_flag("flip", self.flip)


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Crop and flip each image of a batch independently.

    Args:
        images: ``(n, c, h, w)`` before normalisation, so that the padding is black.
        augmentation: What to do.
        generator: CPU generator; the same state gives the same result on every device.

    Returns:
        A new tensor of the same shape and type.
    """
    count, channels, height, width = images.shape
    pad = augmentation.padding
    top = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * pad + 1, (count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if augmentation.flip:
        mirrored = torch.rand((count, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (pad, pad, pad, pad))
    place = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).reshape(count, 1, -1).to(images.device)
    taken = padded.reshape(count, channels, -1).gather(2, place.expand(-1, channels, -1))
    return taken.reshape(images.shape)


class ImageLoader:
    """Iterates over normalised batches ``(images, labels)`` of a set held in memory.

    Each batch depends only on ``seed``, the epoch and its index, so that a resumed run sees the same data: call :meth:`set_epoch` (without
    it the epoch advances by itself after each complete pass) and start at a later batch with :meth:`batches`.

    Args:
        images: ``(n, h, w, c)`` uint8 array.
        labels: ``(n,)`` integer array.
        batch_size: Images per batch.
        normalisation: Applied to each batch.
        shuffle: New order each epoch.
        augmentation: Random crop and flip; None for evaluation.
        seed: Of order and augmentation.
        drop_last: Leave out a last batch that is not full.

    Example:
        >>> images, labels = np.zeros((10, 8, 8, 3), np.uint8), np.arange(10)
        >>> loader = ImageLoader(images, labels, batch_size=4, normalisation=IMAGENET_NORMALISATION)
        >>> [tuple(x.shape) for x, y in loader]
        [(4, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)]
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        *,
        batch_size: int,
        normalisation: Normalisation,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if images.ndim != 4 or images.dtype != np.uint8:
            raise InvalidArgumentError(f"images (={images.dtype} array of shape {images.shape}) must be uint8 of shape (n, h, w, c)")
        if images.shape[3] != len(normalisation.mean):
            raise InvalidArgumentError(
                f"images (={images.shape[3]} channels) must have as many channels as normalisation (={len(normalisation.mean)})"
            )
        if len(images) != len(labels):
            raise InvalidArgumentError(f"labels (={len(labels)} entries) must be as many as images (={len(images)})")
        check_whole("batch_size", batch_size, least=1)
        check_whole("seed", seed)
        check_flag("shuffle", shuffle)
        check_flag("drop_last", drop_last)
        check_instance("augmentation", augmentation, (Augmentation, NoneType), "an Augmentation, or None")
        if drop_last and len(images) < batch_size:
            raise InvalidArgumentError(f"images (={len(images)}) must be at least batch_size (={batch_size}): only full batches are given")
        self.images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        self.labels = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64))
        self.batch_size = batch_size
        self.normalisation = normalisation
        self.shuffle = shuffle
        self.augmentation = augmentation
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next pass uses."""
        if epoch < 0:
            raise InvalidArgumentError(f"epoch (={epoch}) must be at least 0")
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.batches()

    def __str__(self) -> str:
        """What is done to the images, for people."""
        count, channels, height, width = self.images.shape
        done = "as they are"
        if self.augmentation is not None:
            done = f"shifted by up to {self.augmentation.padding}" + (", mirrored at random" if self.augmentation.flip else "")
        return (
            f"{count} images {width}x{height} with {channels} channel{'s' if channels > 1 else ''} in batches of {self.batch_size}, "
            f"{done}, {self.normalisation}"
        )

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the current epoch from index ``start`` on, without preparing the earlier ones."""
        epoch = self.epoch
        if self.shuffle:
            order = torch.randperm(len(self.labels), generator=_generator(self.seed, epoch, 0))
        else:
            order = torch.arange(len(self.labels))
        for index in range(start, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            images = self.images[chosen]
            if self.augmentation is not None:
                images = augment(images, self.augmentation, _generator(self.seed, epoch, index + 1))
            yield self.normalisation(images), self.labels[chosen]
        self.epoch = epoch + 1


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    mixed = np.random.SeedSequence((seed & 0xFFFFFFFF, epoch, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
