"""Images and labels as arrays in ``.npz`` files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.argument_rules import check_flag
from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.zoo.loading import Augmentation, ImageLoader, normalisation_of

__all__ = ["load_arrays", "npz_test", "npz_train"]

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_HELD_OUT = ("test", "val", "validation")


def load_arrays(path: str | os.PathLike[str], *, images: str = "images", labels: str = "labels") -> tuple[Images, Labels]:
    """Images and labels from an ``.npz`` file.

    Args:
        path: The file; arrays of Python objects are pickled, and refused.
        images: Name of the array of images: uint8 ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)`` with 1 or 3 channels.
        labels: Name of the array of class indices, ``(n,)`` or ``(n, 1)``.

    Returns:
        ``(n, h, w, c)`` uint8 and ``(n,)`` int64.

    Raises:
        InvalidArgumentError: There is no such file.
        FileFormatError: It is no ``.npz``, lacks an array, or an array is of another type or shape.

    Example:
        >>> images, labels = load_arrays("digits.npz", images="x_train", labels="y_train")  # doctest: +SKIP
    """
    place = Path(path)
    if not place.is_file():
        raise InvalidArgumentError(f"path (={str(place)!r}) must be an .npz file; there is none")
    try:
        with open(place, "rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise FileFormatError(f"{place} holds one array; an .npz file holds images and labels by name")
            missing = [name for name in (images, labels) if name not in archive]
            if missing:
                raise FileFormatError(
                    f"{place} has no array {missing[0]!r}; it holds {', '.join(archive.files) or 'none'}. Name them by images= and labels="
                )
            pixels, classes = archive[images], archive[labels]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{place} cannot be read as an .npz file without pickled objects: {error}") from error
    return _images(pixels, f"{place}: {images!r}"), _labels(classes, len(pixels), f"{place}: {labels!r}")


def _images(pixels: npt.NDArray[Any], what: str) -> Images:
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        raise FileFormatError(
            f"{what} is {pixels.dtype} {list(pixels.shape)}; images must be uint8 (n, h, w), (n, h, w, c) or (n, c, h, w)"
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.shape[3] not in (1, 3) and pixels.shape[1] in (1, 3):
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.shape[3] not in (1, 3) or not len(pixels):
        raise FileFormatError(f"{what} is uint8 {list(pixels.shape)}; there must be at least one image, of 1 or 3 channels")
    return np.ascontiguousarray(pixels)


def _labels(classes: npt.NDArray[Any], count: int, what: str) -> Labels:
    if classes.ndim == 2 and classes.shape[1] == 1:
        classes = classes[:, 0]
    if classes.dtype.kind not in "iu" or classes.shape != (count,):
        raise FileFormatError(f"{what} is {classes.dtype} {list(classes.shape)}; labels must be integers, one for each of {count} images")
    if classes.min() < 0:
        raise FileFormatError(f"{what} holds {classes.min()}; labels must be at least 0")
    if int(classes.max()) > np.iinfo(np.int64).max:
        raise FileFormatError(f"{what} holds {classes.max()}; labels must be class indices, which no network has so many of")
    return classes.astype(np.int64)


def _of(root: str, images: str, labels: str, *, train: bool) -> tuple[Images, Labels]:
    """Training or held-out arrays of a folder with a file for each, or of one file with both."""
    place = Path(root)
    if place.is_file():
        suffix = "_train" if train else "_test"
        return load_arrays(place, images=images + suffix, labels=labels + suffix)
    names = ("train",) if train else _HELD_OUT
    found = next((place / f"{name}.npz" for name in names if (place / f"{name}.npz").is_file()), None)
    if found is None:
        raise InvalidArgumentError(
            f"root (={root!r}) must be one .npz file with {images}_train, {labels}_train, {images}_test and {labels}_test, or a folder "
            f"with train.npz and test.npz; there is no {' or '.join(f'{name}.npz' for name in names)}"
        )
    return load_arrays(found, images=images, labels=labels)


def npz_train(
    root: str,
    images: str = "images",
    labels: str = "labels",
    batch_size: int = 128,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    padding: int = 4,
    flip: bool = True,
    augment: bool = True,
) -> ImageLoader:
    """Training batches of arrays, shuffled, with random crops and flips.

    Args:
        root: A folder with ``train.npz`` and ``test.npz`` (or ``val.npz``), or one file whose arrays end in ``_train`` and ``_test``
            (``images="x", labels="y"`` reads ``x_train`` and so on).
        images: Name of the array of images.
        labels: Name of the array of labels.
        batch_size: Images per batch.
        seed: Of order and augmentation.
        mean: By channel (one number is that of all), 0 to 1; ImageNet's for three channels, 0 for one, by default.
        std: By channel; ImageNet's for three channels, 1 for one, by default.
        padding: Pixels that a crop may be shifted by.
        flip: Whether images are mirrored at random (not for digits and text).
        augment: False leaves the images as they are.

    Raises:
        InvalidArgumentError: There is no such file, or it has fewer images than one batch takes.
        FileFormatError: It does not hold such arrays.
    """
    check_flag("augment", augment)
    pixels, classes = _of(root, images, labels, train=True)
    return ImageLoader(
        pixels,
        classes,
        batch_size=batch_size,
        normalisation=normalisation_of(pixels.shape[3], mean, std),
        shuffle=True,
        augmentation=Augmentation(padding=padding, flip=flip) if augment else None,
        seed=seed,
        drop_last=True,
    )


def npz_test(
    root: str,
    images: str = "images",
    labels: str = "labels",
    batch_size: int = 500,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    padding: int = 4,
    flip: bool = True,
    augment: bool = True,
) -> ImageLoader:
    """Held-out batches of arrays in their order; arguments as for :func:`npz_train`."""
    pixels, classes = _of(root, images, labels, train=False)
    return ImageLoader(pixels, classes, batch_size=batch_size, normalisation=normalisation_of(pixels.shape[3], mean, std))
