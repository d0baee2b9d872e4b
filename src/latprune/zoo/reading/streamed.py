"""Batches of labelled images that are decoded as they are needed, by a bounded number of threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import NoneType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latprune.argument_rules import check_flag, check_instance
from latprune.errors import InvalidArgumentError
from latprune.extras import importing
from latprune.zoo.image_arguments import check_batching, check_crop, image_shape
from latprune.zoo.loading import Normalisation, normalisation_of
from latprune.zoo.reading.crops import Part, RandomResizedCrop, middle, taken

__all__ = ["ImageSource", "StreamedImages", "image_batches"]

_AHEAD = 2
"""Batches that are read while the network works on one."""


class ImageSource(Protocol):
    """Labelled images that can be read one by one, by several threads at once.

    Attributes:
        labels: ``(n,)`` int64 class of each image.
        classes: Names of the classes, by label.
    """

    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def image(self, index: int, *, mode: str, at_least: tuple[int, int] | None = None) -> Any:
        """Image ``index`` as a Pillow image of ``mode``; where it may be coarser, no smaller than ``at_least`` (width, height).

        Raises:
            FileFormatError: It cannot be read as one (:func:`~latprune.zoo.decoding.opened`).
        """


class StreamedImages:
    """Iterates over normalised batches ``(images, labels)`` of an :class:`ImageSource`; nothing but the batches at work is in memory.

    Order, parts and mirroring of a batch depend on ``seed``, the epoch and its index alone, whatever the number of threads, so that a
    resumed run sees the same data.

    Args:
        source: Where the images come from.
        shape: ``(channels, height, width)`` of a network's input, with 1 or 3 channels.
        batch_size: Images per batch.
        normalisation: Applied to each batch; that of ImageNet for three channels, none for one, by default.
        shuffle: New order each epoch.
        augmentation: Which part of an image is taken, and whether it is mirrored; None takes the middle.
        crop: Share of the shorter side that the middle has.
        workers: Threads that decode; 0 decodes in the thread that asks. All cores, at most 8, by default.
        seed: Of order and augmentation.
        drop_last: Leave out a last batch that is not full.

    Raises:
        MissingExtraError: Pillow is not installed.
        InvalidArgumentError: An argument breaks its rule, or there is no image.
    """

    def __init__(
        self,
        source: ImageSource,
        shape: tuple[int, int, int] = (3, 224, 224),
        *,
        batch_size: int = 64,
        normalisation: Normalisation | None = None,
        shuffle: bool = False,
        augmentation: RandomResizedCrop | None = None,
        crop: float = 0.875,
        workers: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        with importing("pillow", "images", module="PIL"):
            import PIL  # noqa: F401
        self.shape = image_shape(shape)
        check_batching(batch_size, workers, seed)
        check_crop(crop)
        check_flag("shuffle", shuffle)
        check_flag("drop_last", drop_last)
        check_instance("augmentation", augmentation, (RandomResizedCrop, NoneType), "a RandomResizedCrop, or None")
        if len(source.labels) < (batch_size if drop_last else 1):
            raise InvalidArgumentError(f"the source has {len(source.labels)} images; one batch takes {batch_size if drop_last else 1}")
        self.source = source
        self.batch_size = batch_size
        self.normalisation = normalisation or normalisation_of(self.shape[0])
        if len(self.normalisation.mean) != self.shape[0]:
            raise InvalidArgumentError(
                f"normalisation (={len(self.normalisation.mean)} channels) must have as many channels as shape (={self.shape})"
            )
        self.shuffle, self.augmentation, self.crop = shuffle, augmentation, crop
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers
        self.seed, self.drop_last = seed, drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next pass uses."""
        if epoch < 0:
            raise InvalidArgumentError(f"epoch (={epoch}) must be at least 0")
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self.source.labels), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass."""
        yield from self.batches()

    def batches(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the current epoch from index ``start`` on, without reading the earlier ones."""
        epoch, count = self.epoch, len(self.source.labels)
        order = np.random.default_rng((self.seed & 0xFFFFFFFF, epoch, 0)).permutation(count) if self.shuffle else np.arange(count)
        waiting: deque[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], list[Future[Any]] | list[tuple[int, Any]]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="images") if self.workers else None
        try:
            for index in range(start, len(self)):
                chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
                draws, mirrored = self._draws(epoch, index, len(chosen))
                todo = [(int(k), None if draws is None else draws[at]) for at, k in enumerate(chosen)]
                waiting.append((chosen, mirrored, [pool.submit(self._pixels, *item) for item in todo] if pool is not None else todo))
                if pool is None or len(waiting) > _AHEAD:
                    yield self._batch(*waiting.popleft())
            while waiting:
                yield self._batch(*waiting.popleft())
        finally:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self.epoch = epoch + 1

    def _draws(self, epoch: int, index: int, count: int) -> tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.bool_]]:
        if self.augmentation is None:
            return None, np.zeros(count, dtype=bool)
        random = np.random.default_rng((self.seed & 0xFFFFFFFF, epoch, index + 1))
        draws = self.augmentation.draws(random, count)
        return draws, random.random(count) < 0.5 if self.augmentation.flip else np.zeros(count, dtype=bool)

    def _batch(self, chosen: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_], parts: Any) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.stack([part.result() if isinstance(part, Future) else self._pixels(*part) for part in parts]))
        if mirrored.any():
            pixels = torch.where(torch.from_numpy(mirrored).view(-1, 1, 1, 1), pixels.flip(3), pixels)
        return self.normalisation(pixels), torch.from_numpy(np.ascontiguousarray(self.source.labels[chosen], dtype=np.int64))

    def _pixels(self, index: int, draws: npt.NDArray[np.float64] | None) -> npt.NDArray[np.uint8]:
        """An image's part: ``(channels, height, width)``."""
        channels, height, width = self.shape
        mode = "RGB" if channels == 3 else "L"
        # A part may cover little of an image, so a coarser reading is asked for only as far as the smallest part allows.
        least = None
        if self.augmentation is not None:
            factor = (self.augmentation.ratio / self.augmentation.least) ** 0.5
            least = (int(width * factor), int(height * factor))
        image = self.source.image(index, mode=mode, at_least=least)
        part: Part
        if self.augmentation is not None and draws is not None:
            part = self.augmentation.part(image.width, image.height, draws)
        else:
            part = middle(image.width, image.height, width / height, self.crop)
        pixels = np.asarray(taken(image, part, width, height), dtype=np.uint8)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if channels == 3 else pixels[None])

    def __str__(self) -> str:
        """What is done to the images, for people."""
        channels, height, width = self.shape
        done = "the middle" if self.augmentation is None else "random parts" + (", mirrored at random," if self.augmentation.flip else "")
        return (
            f"{len(self.source.labels)} images of {len(self.source.classes)} classes in batches of {self.batch_size}: {done} scaled to "
            f"{width}x{height}, {channels} channel{'s' if channels > 1 else ''}, {self.normalisation}"
        )


def image_batches(
    source: ImageSource,
    shape: Sequence[int],
    *,
    train: bool,
    batch_size: int,
    seed: int,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    crop: float,
    workers: int | None,
    augment: bool,
) -> StreamedImages:
    """Batches to train on (shuffled, whole ones only, of random parts where ``augment``), or held-out ones in their order.

    Raises:
        InvalidArgumentError: An argument breaks its rule, or there is no whole batch.
    """
    given = image_shape(shape)
    check_flag("augment", augment)
    return StreamedImages(
        source,
        given,
        batch_size=batch_size,
        normalisation=normalisation_of(given[0], mean, std),
        shuffle=train,
        augmentation=RandomResizedCrop() if train and augment else None,
        crop=crop,
        workers=workers,
        seed=seed,
        drop_last=train,
    )
