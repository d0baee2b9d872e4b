"""Image sets stored as one mosaic: decoding, and a cache of the decoded pixels."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.extras import importing
from latprune.zoo.reading.cifar_binary import binary_folder, load_cifar10_binary, refuse_pickled

__all__ = ["cifar10", "image_classes", "load_image_set"]

_KEYS = ("images", "grid", "tile", "labels", "classes")

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


def _open(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [key for key in _KEYS if key not in archive]
            if missing:
                raise FileFormatError(
                    f"{path} lacks the array(s) {', '.join(missing)}; an image set holds {', '.join(_KEYS)}", path=missing[0]
                )
            return {key: archive[key] for key in _KEYS}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, (FileNotFoundError, FileFormatError)):
            raise
        raise FileFormatError(f"{path} is not an image set (an .npz file with {', '.join(_KEYS)}): {error}") from error


def _decode(blob: npt.NDArray[Any], grid: npt.NDArray[Any], tile: int) -> Images:
    with importing("pillow", "demo", module="PIL"):
        from PIL import Image
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a mosaic is larger than the limit against decompression bombs
    try:
        data = blob.item() if blob.ndim == 0 else blob.tobytes()
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    rows, columns = (int(value) for value in grid)
    if pixels.shape != (rows * tile, columns * tile, 3):
        raise FileFormatError(
            f"the mosaic is {pixels.shape[1]}x{pixels.shape[0]} but grid x tile says {columns * tile}x{rows * tile}", path="images"
        )
    return np.ascontiguousarray(pixels.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3))


def _write_atomically(path: Path, images: Images) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, images, allow_pickle=False)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def load_image_set(path: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None) -> tuple[Images, Labels]:
    """Read an image set: an ``.npz`` with one mosaic ``images`` (an encoded picture), its ``grid``, ``tile``, ``labels`` and ``classes``.

    Args:
        path: The ``.npz`` file.
        cache_dir: Folder for the decoded pixels as ``.npy`` (named by the file's digest, written atomically); later loads read that file
            instead of decoding. None decodes every time.

    Returns:
        ``images``: ``(n, tile, tile, 3)`` uint8, RGB; ``labels``: ``(n,)`` int64.

    Raises:
        FileFormatError: The file is not an image set.
        MissingExtraError: Pillow is not installed (or older than 11.3 for AVIF mosaics: then Pillow's own error).
    """
    source = Path(path)
    arrays = _open(source)
    labels = arrays["labels"].astype(np.int64)
    cached = None
    images: Images | None = None
    if cache_dir is not None:
        digest = hashlib.sha256(arrays["images"].tobytes()).hexdigest()[:16]
        cached = Path(cache_dir) / f"{source.stem}-{digest}.npy"
        if cached.exists():
            images = np.load(cached, allow_pickle=False)
    if images is None:
        images = _decode(arrays["images"], arrays["grid"], int(arrays["tile"]))
        if cached is not None:
            _write_atomically(cached, images)
    if len(images) < len(labels):
        raise FileFormatError(f"{len(labels)} labels for {len(images)} images", path="labels")
    return images[: len(labels)], labels


def image_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes of an image set, in the order of its labels."""
    return tuple(str(name) for name in _open(Path(path))["classes"])


def cifar10(
    root: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None
) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """CIFAR-10 in its official binary layout, or from ``root/cifar10_train.npz`` and ``root/cifar10_test.npz`` (:func:`load_image_set`).

    Args:
        root: Folder of either; the binary version is ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, there or in
            ``cifar-10-batches-bin``.
        cache_dir: Folder for the decoded pixels of the ``.npz`` files.

    Returns:
        ``(train images, train labels), (test images, test labels)``: uint8 ``(50000, 32, 32, 3)`` and ``(10000, 32, 32, 3)``.

    Raises:
        InvalidArgumentError: The folder holds neither, or the pickled version alone, which is never opened.
        FileFormatError: A file is damaged.
    """
    folder = Path(root)
    missing = [name for name in ("cifar10_train.npz", "cifar10_test.npz") if not (folder / name).is_file()]
    if missing:
        if binary_folder(folder) is not None:
            return load_cifar10_binary(folder)
        refuse_pickled(folder)
        raise InvalidArgumentError(
            f"root (={str(folder)!r}) must hold cifar10_train.npz and cifar10_test.npz ({missing[0]} is not there), or the files of "
            "cifar-10-binary.tar.gz (data_batch_1.bin and so on)"
        )
    return (
        load_image_set(folder / "cifar10_train.npz", cache_dir=cache_dir),
        load_image_set(folder / "cifar10_test.npz", cache_dir=cache_dir),
    )
