"""Pascal VOC's layout: images, a list of them for each split, and an XML file of objects for each image."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.zoo.decoding import opened

__all__ = ["VOC_CLASSES", "Annotation", "VOCFolder", "read_annotation"]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes, by label."""

_LARGEST = 4_000_000
"""Bytes of an annotation at most; an official one has a few thousand."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotation:
    """What an image shows.

    Attributes:
        size: Width and height in pixels.
        boxes: ``(n, 4)`` float64 left, top, right, bottom edges in pixels from 0: the file's first pixel less one to its last.
        labels: ``(n,)`` int64.
        difficult: ``(n,)`` bool.
    """

    size: tuple[int, int]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    difficult: npt.NDArray[np.bool_]


def read_annotation(path: str | Path, classes: tuple[str, ...] = VOC_CLASSES) -> Annotation:
    """Read an annotation file. Documents with a type or entities of their own are refused: those can read files and fill the memory.

    Raises:
        FileFormatError: The file is no annotation, or names a class that ``classes`` lacks.
    """
    place = Path(path)
    try:
        raw = place.read_bytes()
        # Another encoding could hide what is looked for, so the text that is searched is the text that is parsed.
        text = raw.decode("utf-8") if len(raw) <= _LARGEST else ""
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{place} cannot be read as an annotation: {error}") from error
    if not text:
        raise FileFormatError(f"{place} has {len(raw)} bytes; an annotation has between 1 and {_LARGEST}")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise FileFormatError(f"{place} declares a document type or entities, which an annotation has no need of; remove them")
    try:
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise FileFormatError(f"{place} is no XML: {error}") from error
    width, height = _number(root, "size/width", place), _number(root, "size/height", place)
    if width < 1 or height < 1:
        raise FileFormatError(f"{place} says that the image is {width:g}x{height:g}; both must be at least 1")
    boxes, labels, difficult = [], [], []
    for entry in root.iter("object"):
        name = (entry.findtext("name") or "").strip()
        if name not in classes:
            raise FileFormatError(f"{place} has an object {name!r}, which is none of the {len(classes)} classes; give classes=")
        left, top, right, bottom = (_number(entry, f"bndbox/{edge}", place) for edge in ("xmin", "ymin", "xmax", "ymax"))
        # Files of other sources may count from 0, or go a pixel too far.
        box = (max(left - 1, 0.0), max(top - 1, 0.0), min(right, width), min(bottom, height))
        if box[2] <= box[0] or box[3] <= box[1]:
            raise FileFormatError(f"{place} has a box of {name!r} from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) without an area")
        boxes.append(box)
        labels.append(classes.index(name))
        difficult.append((entry.findtext("difficult") or "0").strip() == "1")
    return Annotation(
        size=(int(width), int(height)),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        difficult=np.array(difficult, dtype=bool),
    )


def _number(entry: ElementTree.Element, path: str, place: Path) -> float:
    try:
        value = float(entry.findtext(path) or "")
    except ValueError as error:
        raise FileFormatError(f"{place} lacks a number at {path}") from error
    if not math.isfinite(value):
        raise FileFormatError(f"{place} has {value} at {path}")
    return value


class VOCFolder:
    """Images and objects of ``VOCdevkit/VOC2012`` (or 2007) and its like.

    Args:
        root: The folder with ``JPEGImages``, ``Annotations`` and ``ImageSets/Main``, or one that has ``VOCdevkit`` or ``VOC<year>`` in it.
        split: Name of the list in ``ImageSets/Main``: ``train``, ``val``, ``trainval`` or ``test``.
        year: Where ``root`` holds several years.
        classes: Names of the classes by label.

    Raises:
        InvalidArgumentError: A folder, list or file is missing.
        FileFormatError: A file is damaged.

    Example:
        >>> train = VOCFolder("data", "trainval", year=2012)  # doctest: +SKIP
        >>> train.annotations[0].boxes  # doctest: +SKIP
    """

    def __init__(self, root: str | Path, split: str = "train", *, year: int = 2012, classes: tuple[str, ...] = VOC_CLASSES) -> None:
        given = Path(root)
        candidates = (given, given / f"VOC{year}", given / "VOCdevkit" / f"VOC{year}")
        folder = next((place for place in candidates if (place / "ImageSets" / "Main").is_dir()), None)
        if folder is None:
            raise InvalidArgumentError(
                f"root (={str(root)!r}) must hold ImageSets/Main, VOC{year} or VOCdevkit/VOC{year}; it has none of them"
            )
        listed = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not re.fullmatch(r"\w+", split) or not listed.is_file():
            there = ", ".join(sorted(path.stem for path in listed.parent.glob("*.txt") if "_" not in path.stem))
            raise InvalidArgumentError(f"split (={split!r}) must be a list in {listed.parent}: {there or 'it holds none'}")
        self.classes = tuple(classes)
        try:
            lines = listed.read_text(encoding="utf-8-sig").splitlines()  # with or without the mark that some editors begin a file with
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{listed} cannot be read as a list of images: {error}; write it as UTF-8") from error
        self.names = [line.split()[0] for line in lines if line.strip()]
        odd = next((name for name in self.names if not re.fullmatch(r"[\w-]+", name)), None)
        if odd is not None:
            raise FileFormatError(f"{listed} names the image {odd!r}; a name has letters, digits, - and _ alone")
        if not self.names:
            raise InvalidArgumentError(f"split (={split!r}) names no image in {listed}")
        self._images = folder / "JPEGImages"
        missing = next((name for name in self.names if not self.path(name).is_file()), None)
        if missing is not None:
            raise InvalidArgumentError(f"{listed} names the image {missing!r}, and there is no {self.path(missing)}")
        self.annotations = [read_annotation(folder / "Annotations" / f"{name}.xml", self.classes) for name in self.names]

    def __len__(self) -> int:
        """Images."""
        return len(self.names)

    def path(self, name: str) -> Path:
        """The file of an image."""
        return self._images / f"{name}.jpg"

    def image(self, index: int) -> Any:
        """Image ``index`` as a Pillow image, RGB: the pixels as they are stored, which boxes are of, whatever EXIF says of turning them.

        Raises:
            FileFormatError: It is no image, or of another size than its annotation says.
        """
        path = self.path(self.names[index])
        image, size = opened(path, str(path), mode="RGB", turn=False), self.annotations[index].size
        if image.size != size:
            raise FileFormatError(
                f"{path} has {image.width}x{image.height} pixels, and its annotation is for {size[0]}x{size[1]}: boxes would lie beside "
                "their objects; mend the annotation, or write the image in that size"
            )
        return image
