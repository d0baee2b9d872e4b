"""Image data sets of Hugging Face's ``datasets``: any with a column of images and one of labels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.extras import importing
from latprune.zoo.decoding import in_mode, opened
from latprune.zoo.reading.streamed import StreamedImages, image_batches

__all__ = ["DatasetImages", "huggingface_test", "huggingface_train"]

_HELD_OUT = ("test", "validation", "val", "valid")


class DatasetImages:
    """The images of a ``datasets.Dataset``: an :class:`~latprune.zoo.ImageSource`. The package itself is not imported.

    Args:
        dataset: With a length, ``column_names`` and rows that are mappings.
        image: Name of the column of images: Pillow images (``datasets.Image``), their encoded bytes, or uint8 arrays ``(h, w)`` or
            ``(h, w, c)``.
        label: Name of the column of class indices (``datasets.ClassLabel``, or integers).
        classes: Names of the classes; by default those of the ``ClassLabel``, else numbers.

    Raises:
        InvalidArgumentError: There is no such column, labels are no class indices, or the data set is empty or a stream without a length.

    Example:
        >>> source = DatasetImages(datasets.load_dataset("beans")["train"], image="image", label="labels")  # doctest: +SKIP
        >>> train = StreamedImages(source, shuffle=True, augmentation=RandomResizedCrop())  # doctest: +SKIP
    """

    def __init__(self, dataset: Any, *, image: str = "image", label: str = "label", classes: Sequence[str] | None = None) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise InvalidArgumentError(
                f"dataset (a {type(dataset).__name__}) has no length or no rows by number; load it without streaming"
            )
        columns = list(getattr(dataset, "column_names", ()) or ())
        if isinstance(dataset, Mapping):
            raise InvalidArgumentError(f"dataset holds the splits {', '.join(map(str, dataset))}; give one of them")
        for argument, name in (("image", image), ("label", label)):
            if name not in columns:
                raise InvalidArgumentError(
                    f"{argument} (={name!r}) must be a column of the data set: {', '.join(columns) or 'it has none'}"
                )
        self._dataset, self._image = dataset, image
        values = list(dataset[label])
        if not values:
            raise InvalidArgumentError("dataset holds no row; give a split that has images")
        wrong = [value for value in values if not isinstance(value, (int, np.integer)) or value < 0]
        if wrong:
            raise InvalidArgumentError(
                f"label (={label!r}) holds {wrong[0]!r:.60}; class indices must be integers of at least 0: cast the column "
                "(dataset.class_encode_column), or leave unlabelled rows out"
            )
        self.labels = np.array(values, dtype=np.int64)
        feature = getattr(dataset, "features", {}).get(label)
        names = classes if classes is not None else getattr(feature, "names", None)
        self.classes = tuple(names) if names is not None else tuple(str(number) for number in range(int(self.labels.max()) + 1))
        if int(self.labels.max()) >= len(self.classes):
            raise InvalidArgumentError(
                f"classes (={len(self.classes)}) must name all of them; the column {label!r} goes to {self.labels.max()}"
            )

    def image(self, index: int, *, mode: str, at_least: tuple[int, int] | None = None) -> Any:
        """Image ``index``, read from its row."""
        from PIL import Image

        value, name = self._dataset[index][self._image], f"row {index} of the data set"
        if isinstance(value, Image.Image):
            return in_mode(value, name, mode=mode)
        if isinstance(value, Mapping) and (value.get("bytes") is not None or value.get("path")):
            place = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
            return opened(place, name, mode=mode, at_least=at_least)
        if isinstance(value, bytes):
            return opened(io.BytesIO(value), name, mode=mode, at_least=at_least)
        try:
            pixels = np.asarray(value)
        except ValueError as error:
            raise FileFormatError(f"{name} has no image in {self._image!r}: {error}") from error
        if pixels.dtype.kind == "i" and pixels.size and pixels.min() >= 0 and pixels.max() <= 255:  # nested lists come back as int64
            pixels = pixels.astype(np.uint8)
        if pixels.dtype != np.uint8 or not pixels.size or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
            raise FileFormatError(
                f"{name} has {pixels.dtype} {list(pixels.shape)} in {self._image!r}; an image must be a Pillow image, its encoded bytes, "
                "or values 0 to 255 of shape (h, w), (h, w, 1) or (h, w, 3)"
            )
        return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).convert(mode)


def _split(path: str, *, train: bool) -> Any:
    """A split of a saved data set (``save_to_disk``), or of a named one."""
    with importing("datasets", "datasets"):
        import datasets
    found = datasets.load_from_disk(path) if Path(path).is_dir() else datasets.load_dataset(path)
    names = ("train",) if train else _HELD_OUT
    if not isinstance(found, Mapping):
        raise InvalidArgumentError(f"path (={path!r}) holds one data set without splits; save a DatasetDict with train and test")
    chosen = next((name for name in names if name in found), None)
    if chosen is None:
        raise InvalidArgumentError(f"path (={path!r}) holds the splits {', '.join(map(str, found))}; one must be {' or '.join(names)}")
    return found[chosen]


def huggingface_train(
    path: str,
    image: str = "image",
    label: str = "label",
    shape: Sequence[int] = (3, 224, 224),
    batch_size: int = 64,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    crop: float = 0.875,
    workers: int | None = None,
    augment: bool = True,
) -> StreamedImages:
    """Training batches of a data set's ``train`` split, shuffled, with random parts and mirroring.

    Args:
        path: Folder that ``DatasetDict.save_to_disk`` wrote, or a name that ``datasets.load_dataset`` knows.
        image: Name of the column of images.
        label: Name of the column of class indices.
        shape: ``(channels, height, width)`` of the network's input.
        batch_size: Images per batch.
        seed: Of order and augmentation.
        mean: By channel (one number is that of all), 0 to 1; ImageNet's for three channels, 0 for one, by default.
        std: By channel; ImageNet's for three channels, 1 for one, by default.
        crop: Share of the shorter side that is kept without augmentation.
        workers: Threads that decode; all cores, at most 8, by default.
        augment: False takes the middle of each image.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        InvalidArgumentError: There is no such split or column.
    """
    return image_batches(
        DatasetImages(_split(path, train=True), image=image, label=label),
        shape,
        train=True,
        batch_size=batch_size,
        seed=seed,
        mean=mean,
        std=std,
        crop=crop,
        workers=workers,
        augment=augment,
    )


def huggingface_test(
    path: str,
    image: str = "image",
    label: str = "label",
    shape: Sequence[int] = (3, 224, 224),
    batch_size: int = 64,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    crop: float = 0.875,
    workers: int | None = None,
    augment: bool = True,
) -> StreamedImages:
    """Batches of the ``test`` (or ``validation``) split in their order; arguments as for :func:`huggingface_train`."""
    return image_batches(
        DatasetImages(_split(path, train=False), image=image, label=label),
        shape,
        train=False,
        batch_size=batch_size,
        seed=seed,
        mean=mean,
        std=std,
        crop=crop,
        workers=workers,
        augment=augment,
    )
