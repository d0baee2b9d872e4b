"""Plain image files as batches of a network's inputs, without labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latprune.argument_rules import check_flag, check_whole
from latprune.errors import InvalidArgumentError
from latprune.extras import importing
from latprune.zoo.decoding import opened
from latprune.zoo.image_arguments import check_crop, image_shape
from latprune.zoo.loading import normalisation_of

__all__ = ["IMAGE_ENDINGS", "ImageFolder"]

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".gif"})


class ImageFolder:
    """The images of a folder and its sub-folders as batches ``(n, channels, height, width)``, in an order that ``seed`` shuffles once.

    An image is scaled (bilinear) until its shorter sides cover the input's by ``1 / crop``, and cut in the middle; its values become
    ``(value / 255 - mean) / std``, channel by channel. Grey values of 16 bits are scaled to 0 to 255 first, an alpha channel is dropped,
    and files of floating-point or 32-bit values are refused. Nothing is kept: each pass reads the files again.

    Args:
        folder: Where the images are.
        shape: ``(channels, height, width)`` of the network's input, with 1 or 3 channels.
        mean: Mean of each channel (one number is that of all), on a scale from 0 to 1; those of ImageNet for three channels, 0 for one, by
            default.
        std: Deviation of each channel; those of ImageNet for three channels, 1 for one, by default.
        batch: Images in a batch; what is left at the end makes a smaller one, unless ``whole``.
        crop: Share of the scaled image's shorter side that is kept.
        limit: Images at most.
        whole: Leave out a last batch that is not full, for a network that runs at one batch size alone.
        seed: Seed of the order.
        dtype: Floating-point type of the batches, the network's input's.

    Raises:
        MissingExtraError: Pillow is not installed.
        InvalidArgumentError: There is no such folder, it holds no image, or an argument breaks its rule.
        FileFormatError: In a pass: a file is no image, broken, or has values of no known range.

    Example:
        >>> images = ImageFolder("photos", (3, 224, 224))  # doctest: +SKIP
        >>> next(iter(images)).shape  # doctest: +SKIP
        torch.Size([32, 3, 224, 224])
    """

    def __init__(
        self,
        folder: str | Path,
        shape: Sequence[int],
        *,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        batch: int = 32,
        crop: float = 0.875,
        limit: int | None = None,
        whole: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        with importing("pillow", "images", module="PIL"):
            import PIL  # noqa: F401
        self.shape = image_shape(shape)
        check_whole("batch", batch, least=1)
        check_crop(crop)
        if limit is not None:
            check_whole("limit", limit, least=1, instead=", or None for all")
        check_flag("whole", whole)
        check_whole("seed", seed, least=0)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InvalidArgumentError(f"dtype (={dtype!r}) must be a floating-point type: normalised values are fractions")
        constants = normalisation_of(self.shape[0], mean, std)
        self.mean, self.std = constants.mean, constants.std
        root = Path(folder)
        if not root.is_dir():
            raise InvalidArgumentError(f"folder (={str(folder)!r}) must be a folder with images; there is none")
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())
        if not found:
            raise InvalidArgumentError(f"folder (={str(folder)!r}) holds no image ({', '.join(sorted(IMAGE_ENDINGS))})")
        order = np.random.default_rng(seed).permutation(len(found))
        self.paths = [found[k] for k in order][:limit]
        self._batch, self._crop, self._dtype = batch, crop, dtype
        self._stop = len(self.paths) // batch * batch if whole else len(self.paths)
        if self._stop == 0:
            raise InvalidArgumentError(f"folder (={str(folder)!r}) holds {len(self.paths)} images; one batch takes {batch}")

    def __len__(self) -> int:
        """Batches in a pass."""
        return math.ceil(self._stop / self._batch)

    def __iter__(self) -> Iterator[Tensor]:
        """One pass over the images."""
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        for start in range(0, self._stop, self._batch):
            pixels = np.stack([self._read(path) for path in self.paths[start : min(start + self._batch, self._stop)]])
            yield ((torch.from_numpy(pixels).float() / 255.0 - mean) / std).to(self._dtype)

    def _read(self, path: Path) -> Any:
        """An image's pixels ``(channels, height, width)``, 0 to 255."""
        from PIL import Image

        channels, height, width = self.shape
        image = opened(path, str(path), mode="RGB" if channels == 3 else "L")
        scale = max(width / image.width, height / image.height) / self._crop
        size = max(round(image.width * scale), width), max(round(image.height * scale), height)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]

    def __str__(self) -> str:
        """What is done to the images, for people."""
        numbers = [", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std)]
        channels, height, width = self.shape
        return (
            f"{len(self.paths)} images, scaled and cut in the middle ({self._crop:g} of the shorter side) to {width}x{height}, {channels} "
            f"channel{'s' if channels > 1 else ''}, (value / 255 - mean) / std with mean {numbers[0]} and std {numbers[1]}"
        )
