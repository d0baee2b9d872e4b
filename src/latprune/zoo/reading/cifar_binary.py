"""CIFAR-10's official binary version: records of one label byte and 3,072 pixel bytes, read as they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latprune.errors import FileFormatError, InvalidArgumentError

__all__ = ["binary_folder", "load_cifar10_binary", "refuse_pickled"]

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_RECORD = 1 + 3 * 32 * 32


def binary_folder(root: str | os.PathLike[str]) -> Path | None:
    """The folder of the binary files, at ``root`` or in its ``cifar-10-batches-bin``; None where there are none."""
    for folder in (Path(root), Path(root) / "cifar-10-batches-bin"):
        if any((folder / name).is_file() for name in (*_TRAIN, _TEST)):
            return folder
    return None


def refuse_pickled(root: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds the "python" version alone.

    Raises:
        InvalidArgumentError: It does; its files are pickles, which can run code when they are opened.
    """
    for folder in (Path(root), Path(root) / "cifar-10-batches-py"):
        if (folder / "data_batch_1").is_file():
            raise InvalidArgumentError(
                f"root (={str(root)!r}) holds CIFAR-10's python version ({folder.name}/data_batch_1), which is pickled and can run code "
                "when it is opened; get the binary version (cifar-10-binary.tar.gz), which holds the same images"
            )


def load_cifar10_binary(root: str | os.PathLike[str]) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """CIFAR-10 from ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``.

    A record is a label byte (0 to 9) and 32 x 32 red, green and blue bytes, row by row.

    Args:
        root: Folder with the files, or with ``cifar-10-batches-bin``.

    Returns:
        ``(train images, train labels), (test images, test labels)``; images ``(n, 32, 32, 3)`` uint8, labels int64, in the files' order.

    Raises:
        InvalidArgumentError: A file is not there, or the folder holds the pickled version.
        FileFormatError: A file is no whole number of records, or a label is above 9.
    """
    folder = binary_folder(root)
    if folder is None:
        refuse_pickled(root)
        raise InvalidArgumentError(f"root (={str(root)!r}) must hold {_TRAIN[0]} to {_TRAIN[-1]} and {_TEST}; none is there")
    missing = [name for name in (*_TRAIN, _TEST) if not (folder / name).is_file()]
    if missing:
        raise InvalidArgumentError(f"root (={str(root)!r}) lacks {', '.join(missing)}; unpack cifar-10-binary.tar.gz again")
    parts = [_records(folder / name) for name in _TRAIN]
    return (np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])), _records(folder / _TEST)


def _records(path: Path) -> tuple[Images, Labels]:
    data = np.fromfile(path, dtype=np.uint8)
    if data.size == 0 or data.size % _RECORD:
        raise FileFormatError(f"{path} has {data.size} bytes, which is no whole number of records of {_RECORD} bytes; unpack it again")
    records = data.reshape(-1, _RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > 9:
        raise FileFormatError(f"{path} holds the label {labels.max()} in record {labels.argmax()}; CIFAR-10 has 0 to 9 (CIFAR-100 has two)")
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels
