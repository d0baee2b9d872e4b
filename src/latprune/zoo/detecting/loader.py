"""Batches for a detector: images of one size with the boxes, classes and difficulty of their objects."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latprune.argument_rules import check_flag, check_instance
from latprune.errors import InvalidArgumentError
from latprune.extras import importing
from latprune.zoo.detecting.augmentation import DetectionAugmentation, View, change_colours, in_view, seen
from latprune.zoo.detecting.precision import Objects
from latprune.zoo.image_arguments import check_batching, image_size
from latprune.zoo.loading import IMAGENET_NORMALISATION, Normalisation
from latprune.zoo.reading.voc import VOCFolder

__all__ = ["Batch", "DetectionLoader"]

Batch = tuple[Tensor, dict[str, Tensor]]
"""Images ``(n, 3, h, w)``, and by name ``boxes`` ``(n, most, 4)``, ``labels`` and ``difficult`` ``(n, most)``."""


class DetectionLoader:
    """Iterates over ``(images, {"boxes": (n, most, 4), "labels": (n, most), "difficult": (n, most)})``.

    Boxes are left, top, right, bottom as shares of the image; rows with fewer objects than the fullest end in labels of -1. An image is
    scaled to the network's size without keeping its shape, as SSD does. Order and augmentation of a batch depend on ``seed``, the epoch and
    its index alone, so that a resumed run sees the same data.

    Args:
        source: Images and objects.
        size: Height and width of the network's input.
        batch_size: Images per batch.
        normalisation: Applied to each batch; that of ImageNet, on which the backbone was trained, by default.
        shuffle: New order each epoch.
        augmentation: None shows each image whole.
        workers: Threads that decode; 0 decodes in the thread that asks. All cores, at most 8, by default.
        seed: Of order and augmentation.
        drop_last: Leave out a last batch that is not full.

    Raises:
        MissingExtraError: Pillow is not installed.
        InvalidArgumentError: An argument breaks its rule, or there is no image.
        FileFormatError: In a pass: an image is broken, or of another size than its annotation says.
    """

    def __init__(
        self,
        source: VOCFolder,
        size: tuple[int, int] = (512, 512),
        *,
        batch_size: int = 32,
        normalisation: Normalisation = IMAGENET_NORMALISATION,
        shuffle: bool = False,
        augmentation: DetectionAugmentation | None = None,
        workers: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        with importing("pillow", "images", module="PIL"):
            import PIL  # noqa: F401
        self.size = image_size(size)
        check_batching(batch_size, workers, seed)
        check_flag("shuffle", shuffle)
        check_flag("drop_last", drop_last)
        check_instance("augmentation", augmentation, (DetectionAugmentation, NoneType), "a DetectionAugmentation, or None")
        if len(normalisation.mean) != 3:
            raise InvalidArgumentError(
                f"normalisation (={len(normalisation.mean)} channels) must have 3 channels: images are read in colour"
            )
        if len(source) < (batch_size if drop_last else 1):
            raise InvalidArgumentError(f"the source has {len(source)} images; one batch takes {batch_size if drop_last else 1}")
        self.source, self.batch_size, self.normalisation = source, batch_size, normalisation
        self.shuffle, self.augmentation, self.seed, self.drop_last = shuffle, augmentation, seed, drop_last
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order and augmentation the next pass uses."""
        if epoch < 0:
            raise InvalidArgumentError(f"epoch (={epoch}) must be at least 0")
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self.source), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        yield from self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches of the current epoch from index ``start`` on, without reading the earlier ones."""
        epoch, count = self.epoch, len(self.source)
        order = np.random.default_rng((self.seed & 0xFFFFFFFF, epoch, 0)).permutation(count) if self.shuffle else np.arange(count)
        waiting: deque[tuple[int, npt.NDArray[np.int64], list[Any]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="detection") if self.workers else None
        try:
            for index in range(start, len(self)):
                chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
                seeds = [(self.seed & 0xFFFFFFFF, epoch, index + 1, place) for place in range(len(chosen))]
                todo: list[Any] = [(int(k), seed) for k, seed in zip(chosen, seeds, strict=True)]
                waiting.append((index, chosen, [pool.submit(self._read, *item) for item in todo] if pool is not None else todo))
                if pool is None or len(waiting) > 2:
                    yield self._batch(epoch, *waiting.popleft())
            while waiting:
                yield self._batch(epoch, *waiting.popleft())
        finally:
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self.epoch = epoch + 1

    def objects(self) -> list[Objects]:
        """The objects of all images in their order, boxes in pixels: what detections are judged by."""
        return [
            Objects(boxes=torch.from_numpy(one.boxes), labels=torch.from_numpy(one.labels), difficult=torch.from_numpy(one.difficult))
            for one in self.source.annotations
        ]

    def _batch(self, epoch: int, index: int, chosen: npt.NDArray[np.int64], parts: list[Any]) -> Batch:
        read = [part.result() if isinstance(part, Future) else self._read(*part) for part in parts]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _, _ in read]))
        if self.augmentation is not None and self.augmentation.colours:
            mixed = np.random.SeedSequence((self.seed & 0xFFFFFFFF, epoch, index + 1, 1 << 20)).generate_state(1, np.uint64)[0]
            pixels = change_colours(pixels, self.augmentation.colours, torch.Generator().manual_seed(int(mixed >> np.uint64(1))))
        most = max(1, *(len(boxes) for _, boxes, _ in read))
        boxes, labels = torch.zeros(len(read), most, 4), torch.full((len(read), most), -1, dtype=torch.long)
        difficult = torch.zeros(len(read), most, dtype=torch.bool)
        for row, (_, found, kept) in enumerate(read):
            annotation = self.source.annotations[chosen[row]]
            boxes[row, : len(found)] = torch.from_numpy(found).float()
            labels[row, : len(found)] = torch.from_numpy(annotation.labels[kept])
            difficult[row, : len(found)] = torch.from_numpy(annotation.difficult[kept])
        return self.normalisation(pixels), {"boxes": boxes, "labels": labels, "difficult": difficult}

    def _read(self, index: int, seed: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """An image's pixels ``(3, h, w)``, its boxes as shares of what is seen, and the places of the objects that stay."""
        annotation = self.source.annotations[index]
        image = self.source.image(index)
        boxes = annotation.boxes / np.array([*annotation.size, *annotation.size])
        view: View = (0.0, 0.0, 1.0, 1.0)
        mirrored = False
        if self.augmentation is not None:
            random = np.random.default_rng(seed)
            view = self.augmentation.view(boxes, random)
            mirrored = self.augmentation.flip and bool(random.random() < 0.5)
        kept = np.flatnonzero(seen(boxes, view)) if view != (0.0, 0.0, 1.0, 1.0) else np.arange(len(boxes))
        pixels, boxes = self._seen(image, view), in_view(boxes[kept], view)
        if mirrored:
            pixels, boxes = pixels[:, ::-1], np.stack((1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]), axis=1)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), boxes, kept

    def _seen(self, image: Any, view: View) -> npt.NDArray[np.uint8]:
        """``(h, w, 3)``: what a view shows, on the normalisation's mean where it goes beyond the image."""
        from PIL import Image

        height, width = self.size
        left, top, right, bottom = view
        canvas = np.empty((height, width, 3), dtype=np.uint8)
        canvas[:] = np.round(255 * np.array(self.normalisation.mean)).astype(np.uint8)
        # The part of the image that is seen, in its pixels and in the canvas's.
        x0, y0, x1, y1 = max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
        across, down = width / (right - left), height / (bottom - top)
        at = [round((x0 - left) * across), round((y0 - top) * down), round((x1 - left) * across), round((y1 - top) * down)]
        if at[2] > at[0] and at[3] > at[1]:
            box = (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
            part = image.resize((at[2] - at[0], at[3] - at[1]), Image.Resampling.BILINEAR, box=box)
            canvas[at[1] : at[3], at[0] : at[2]] = np.asarray(part, dtype=np.uint8)
        return canvas
