"""Image folders in ImageNet's layout: a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latprune.errors import InvalidArgumentError
from latprune.zoo.decoding import opened
from latprune.zoo.image_folder import IMAGE_ENDINGS
from latprune.zoo.reading.streamed import StreamedImages, image_batches

__all__ = ["LabelledFolder", "image_folders_test", "image_folders_train"]

_HELD_OUT = ("val", "validation", "test")


class LabelledFolder:
    """The images of ``folder/CLASS/...``: an :class:`~latprune.zoo.ImageSource`. A class's label is its place among the sorted names.

    Args:
        folder: Holds a folder for each class, with image files at any depth.
        classes: Names of the classes by label, those of the training images, say; by default those that are there.

    Raises:
        InvalidArgumentError: There is no such folder, no class with images, or a class that ``classes`` does not name.

    Example:
        >>> train = StreamedImages(LabelledFolder("imagenet/train"), shuffle=True, augmentation=RandomResizedCrop())  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, *, classes: Sequence[str] | None = None) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise InvalidArgumentError(f"folder (={str(folder)!r}) must be a folder that holds one for each class; there is none")
        found: dict[str, list[Path]] = {}
        for name in class_names(root):
            found[name] = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())
        if not any(found.values()):
            loose = sum(path.suffix.lower() in IMAGE_ENDINGS for path in root.iterdir())
            why = f"it holds {loose} images without a class; put those of a class into a folder of its name" if loose else "it holds none"
            raise InvalidArgumentError(f"folder (={str(folder)!r}) must hold a folder of images for each class; {why}")
        self.classes = tuple(found) if classes is None else tuple(classes)
        if not self.classes:
            raise InvalidArgumentError("classes (=()) must name at least one class, or be None for the folders that are there")
        unknown = sorted({name for name, images in found.items() if images} - set(self.classes))
        if unknown:
            raise InvalidArgumentError(
                f"folder (={str(folder)!r}) holds the class {unknown[0]!r}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}, which "
                f"is none of the {len(self.classes)} given (such as {self.classes[0]!r}); name the folders alike"
            )
        number = {name: label for label, name in enumerate(self.classes)}
        self.paths = [path for images in found.values() for path in images]
        self.labels = np.array([number[name] for name, images in found.items() for _ in images], dtype=np.int64)

    def image(self, index: int, *, mode: str, at_least: tuple[int, int] | None = None) -> Any:
        """Image ``index``, read from its file (:func:`~latprune.zoo.decoding.opened`): 16 bits become 8, an alpha channel is dropped."""
        return opened(self.paths[index], str(self.paths[index]), mode=mode, at_least=at_least)


def class_names(folder: Path) -> list[str]:
    """Names of the folders that are classes, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _folders(root: str | Path) -> tuple[Path, Path]:
    """The folders of training and of held-out images."""
    place = Path(root)
    held_out = [place / name for name in _HELD_OUT if (place / name).is_dir()]
    if not (place / "train").is_dir() or not held_out:
        raise InvalidArgumentError(
            f"root (={str(root)!r}) must hold the folders train and {' or '.join(_HELD_OUT)}, with one for each class"
        )
    return place / "train", held_out[0]


def image_folders_train(
    root: str,
    shape: Sequence[int] = (3, 224, 224),
    batch_size: int = 64,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    crop: float = 0.875,
    workers: int | None = None,
    augment: bool = True,
) -> StreamedImages:
    """Training batches of ``root/train/CLASS/...``, shuffled, with random parts and mirroring.

    Args:
        root: Folder with ``train`` and ``val`` (or ``validation``, ``test``).
        shape: ``(channels, height, width)`` of the network's input.
        batch_size: Images per batch.
        seed: Of order and augmentation.
        mean: By channel (one number is that of all), 0 to 1; ImageNet's for three channels, 0 for one, by default.
        std: By channel; ImageNet's for three channels, 1 for one, by default.
        crop: Share of the shorter side that is kept without augmentation.
        workers: Threads that decode; all cores, at most 8, by default.
        augment: False takes the middle of each image.
    """
    return image_batches(
        LabelledFolder(_folders(root)[0]),
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


def image_folders_test(
    root: str,
    shape: Sequence[int] = (3, 224, 224),
    batch_size: int = 64,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    crop: float = 0.875,
    workers: int | None = None,
    augment: bool = True,
) -> StreamedImages:
    """Held-out batches in their order, the middle of each image; arguments as for :func:`image_folders_train`, whose labels they have."""
    train, held_out = _folders(root)
    return image_batches(
        LabelledFolder(held_out, classes=class_names(train)),
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
