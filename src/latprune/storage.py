"""Writing files so that a crash leaves the old content or the new, never half of one; tensors as safetensors, never pickled."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latprune.errors import CheckpointError, InvalidArgumentError

if TYPE_CHECKING:
    import torch

__all__ = ["decode_tensors", "encode_tensors", "replacing", "sha256_hex", "stage_file", "write_atomic"]

_ALIAS = "alias:"


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data``, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def stage_file(path: Path, data: bytes) -> Path:
    """Write ``data`` to a temporary file beside ``path``, flushed to the disk; the caller renames it to ``path`` to commit.

    Raises:
        OSError: The folder cannot be written or the disk is full; nothing is left behind.
    """
    staged = _beside(path)
    try:
        staged.write_bytes(data)
        _settle(staged)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return staged


def _beside(path: Path) -> Path:
    """A new empty file in the folder of ``path``."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    return Path(name)


def _settle(staged: Path) -> None:
    """Flush a written file to the disk, and make it an ordinary one: ``mkstemp`` makes files for the owner alone."""
    with staged.open("rb+") as file:
        os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    staged.chmod(0o666 & ~umask)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` for the body to write, piece by piece; it becomes ``path`` where the body ends without an error.

    Raises:
        OSError: As :func:`stage_file`; the old file is untouched and nothing is left behind.
    """
    path = Path(path)
    staged = _beside(path)
    try:
        yield staged
        _settle(staged)
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data`` in one step: a reader, or a crash at any moment, sees the old file or the new one.

    Raises:
        OSError: As :func:`stage_file`; the old file is untouched.
    """
    path = Path(path)
    stage_file(path, data.encode("utf-8") if isinstance(data, str) else data).replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename outlives a power cut (where the system can do that)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def encode_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as one safetensors file. Names that share one tensor (tied weights) are stored once, the others as aliases in the header.

    Args:
        tensors: Name -> tensor of any shape, on any device.

    Raises:
        InvalidArgumentError: A value is not a tensor, or a name is reserved.
    """
    import torch
    from safetensors.torch import save

    stored: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise InvalidArgumentError(f"'{name}' is a {type(tensor).__name__}; only tensors can be stored without pickle")
        if tensor.is_sparse or tensor.is_quantized:
            raise InvalidArgumentError(f"'{name}' is a sparse or quantized tensor; only dense tensors can be stored")
        plain = tensor.detach()
        key = (plain.data_ptr(), plain.dtype, tuple(plain.shape), tuple(plain.stride()), plain.device)
        if plain.numel() and key in seen:
            aliases[_ALIAS + name] = seen[key]
            continue
        seen[key] = name
        # Clone: views of one storage (a slice beside its whole) are refused by safetensors otherwise.
        stored[name] = plain.to("cpu", copy=True).contiguous()
    return bytes(save(stored, metadata=aliases))


def decode_tensors(data: bytes, *, source: str) -> dict[str, torch.Tensor]:
    """Read what :func:`encode_tensors` wrote; aliases come back as the same tensor.

    Args:
        data: The file's content.
        source: What to call the file in an error.

    Raises:
        CheckpointError: The content is not a whole safetensors file.
    """
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, torch.Tensor] = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{source} is damaged or not a safetensors file: {error}") from error
    for name, canonical in metadata.items():
        if name.startswith(_ALIAS):
            if canonical not in tensors:
                raise CheckpointError(
                    f"{source} names '{canonical}' as the tensor of '{name.removeprefix(_ALIAS)}', but holds none of that name"
                )
            tensors[name.removeprefix(_ALIAS)] = tensors[canonical]
    return tensors
