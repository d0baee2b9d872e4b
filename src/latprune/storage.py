"""Writing files so that a crash leaves the old content or the new, never half of one; tensors as safetensors, never pickled."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latprune.errors import CheckpointError, InvalidArgumentError

if TYPE_CHECKING:
    import torch

__all__ = ["check_writable", "decode_tensors", "encode_tensors", "replacing", "sha256_hex", "stage_file", "write_atomic"]

_ALIAS = "alias:"


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data``, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def stage_file(path: Path, data: bytes) -> Path:
    """Write ``data`` to a temporary file beside ``path``, flushed to the disk; the caller renames it to ``path`` to commit.

    Raises:
        OSError: The folder cannot be written or the disk is full; it names ``path``, and nothing is left behind.
    """
    with _staging(path) as staged:
        staged.write_bytes(data)
        _settle(staged)
    return staged


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A new empty file in the folder of ``path``, gone again where the body fails; errors name ``path``, which the user knows, instead."""
    staged: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        staged = Path(name)
        yield staged
    except BaseException as error:
        if staged is not None:
            staged.unlink(missing_ok=True)
        # mkstemp names a file that there never was; a full disk is often reported without any name.
        if isinstance(error, OSError) and error.errno is not None and (staged is None or error.filename in (None, str(staged))):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _settle(staged: Path) -> None:
    """Flush a written file to the disk, and make it an ordinary one: ``mkstemp`` makes files for the owner alone."""
    with staged.open("rb+") as file:
        os.fsync(file.fileno())
    umask = os.umask(0)
    os.umask(umask)
    staged.chmod(0o666 & ~umask)


def _destination(path: Path) -> tuple[Path, bool]:
    """Where what is written to ``path`` goes, links followed, and whether a file is replaced there; else it is a stream to write into.

    Raises:
        InvalidArgumentError: Something lies there that is neither a file nor a stream, or it is the program's own output.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return path.resolve(), True
    if stat.S_ISREG(found.st_mode):
        # As of /dev/stdout sent to a file: what is printed would go on in the file that was replaced.
        if any(_is_open_as(descriptor, found) for descriptor in (1, 2)):
            raise InvalidArgumentError(f"{path} is the file that the program's own output goes to; name another one")
        return path.resolve(), True
    if stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode):
        return path, False
    kind = {stat.S_IFDIR: "a folder", stat.S_IFBLK: "a disk", stat.S_IFSOCK: "a socket"}.get(stat.S_IFMT(found.st_mode), "no file")
    raise InvalidArgumentError(f"{path} is {kind}; it must be a file, or a pipe or character device to write into")


def _is_open_as(descriptor: int, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), found)
    except OSError:
        return False


def check_writable(path: str | Path) -> None:
    """Find out whether :func:`write_atomic` and :func:`replacing` can write ``path``, by making a file beside it and removing it.

    Raises:
        InvalidArgumentError: Something lies there that is neither a file nor a stream.
        OSError: The folder, or the pipe or device, cannot be written; it names ``path``.
    """
    destination, replaced = _destination(Path(path))
    if replaced:
        with _staging(destination) as staged:
            staged.unlink()
    elif not os.access(destination, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file for the body to write, piece by piece; it becomes ``path`` where the body ends without an error.

    Where ``path`` is a link, what it points to is replaced; a pipe or a device stays what it is, and the content goes into it.

    Raises:
        InvalidArgumentError: Something lies at ``path`` that is neither a file nor a pipe or device, such as a folder.
        OSError: As :func:`stage_file`; the old file is untouched and nothing is left behind.
    """
    destination, replaced = _destination(Path(path))
    if not replaced:
        with tempfile.TemporaryDirectory() as folder:
            content = Path(folder) / "content"
            yield content
            try:
                with content.open("rb") as file, destination.open("wb") as stream:
                    shutil.copyfileobj(file, stream)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        return
    with _staging(destination) as staged:
        yield staged
        _settle(staged)
        staged.replace(destination)
    sync_folder(destination.parent)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data`` in one step: a reader, or a crash at any moment, sees the old file or the new one.

    Links, pipes and devices are as for :func:`replacing`.

    Raises:
        InvalidArgumentError: As :func:`replacing`.
        OSError: As :func:`stage_file`; the old file is untouched.
    """
    with replacing(path) as staged:
        staged.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


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
    # "format" is what readers of other libraries ask the header for.
    return bytes(save(stored, metadata={"format": "pt", **aliases}))


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
