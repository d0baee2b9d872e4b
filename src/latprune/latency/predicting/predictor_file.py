"""The predictor's file: an ``.npz`` of plain arrays with a JSON header, nothing pickled."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.file_errors import naming
from latprune.latency.features import FEATURES
from latprune.latency.predicting.family_model import FamilyModel
from latprune.latency.predicting.predictor import KernelPredictor
from latprune.latency.samples import ContextInfo
from latprune.latency.target import Target
from latprune.storage import replacing

__all__ = ["predictor_digest", "read_predictor", "write_predictor"]

_FORMAT = "latprune/latency-predictor"
_VERSION = 3


def write_predictor(predictor: KernelPredictor, path: str | Path) -> None:
    """Write the file; raises InvalidArgumentError, and leaves what was there, where ``read_predictor`` would refuse it."""
    header, arrays = _contents(predictor)
    with replacing(path) as staged:
        with staged.open("wb") as file:
            np.savez_compressed(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]
        try:
            read_predictor(staged)
        except FileFormatError as error:
            raise InvalidArgumentError(
                f"predictor (for {path}) must be one that can be read again, but {error.__cause__ or error}; train it again"
            ) from error


def predictor_digest(predictor: KernelPredictor) -> str:
    """What identifies a predictor: SHA-256 of what its file holds, the same once it was read again."""
    header, arrays = _contents(predictor)
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _contents(predictor: KernelPredictor) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The header and the arrays of the file."""
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "features": list(FEATURES),
        "context": asdict(predictor.context),
        "families": list(predictor.families),
        "costing": sorted(predictor.costing),
        "constant_ms": predictor.constant_ms,
        "overhead_ms": predictor.overhead_ms,
        "spread": predictor.spread,
        "agreement": predictor.agreement,
        "typical_weights": predictor.typical_weights,
        "samples": predictor.samples,
    }
    arrays = {
        f"{index}/{name}": array for index, model in enumerate(predictor.families.values()) for name, array in model.to_arrays().items()
    }
    return header, arrays


def read_predictor(path: str | Path) -> KernelPredictor:
    """Read a file; raises FileFormatError where it is something else, of another version, or inconsistent."""
    try:
        with Path(path).open("rb") as stream:
            # np.load takes any other file for a pickle, and offers to open it.
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is no whole .npz archive")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop("header").tobytes().decode())
    except Exception as error:
        # A damaged archive fails in as many ways as zipfile, zlib and numpy's own headers have: nothing but the file can be at fault here.
        raise FileFormatError(f"{path} is damaged or no predictor file: {str(error) or type(error).__name__}") from error
    if not isinstance(header, dict):
        raise FileFormatError(f"{path} is no predictor file: its header is no JSON object")
    if header.get("format") != _FORMAT or header.get("version") != _VERSION:
        raise FileFormatError(
            f"{path} has format {header.get('format')!r}, version {header.get('version')!r}; this release reads version {_VERSION}: "
            "train it again",
            path="format",
        )
    if header.get("features") != list(FEATURES):
        raise FileFormatError(f"{path} was trained on other features; train it again", path="features")
    try:
        context = ContextInfo(
            target=Target(**header["context"]["target"]), version=header["context"]["version"], machine=header["context"]["machine"]
        )
        predictor = KernelPredictor(
            context=context,
            families={
                family: FamilyModel.from_arrays(
                    {name.split("/", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{index}/")}
                )
                for index, family in enumerate(header["families"])
            },
            costing=frozenset(header["costing"]),
            constant_ms=float(header["constant_ms"]),
            overhead_ms=float(header["overhead_ms"]),
            spread=float(header["spread"]),
            agreement=float(header["agreement"]),
            typical_weights=float(header["typical_weights"]),
            samples=int(header["samples"]),
        )
        for name in ("constant_ms", "overhead_ms", "spread", "agreement", "typical_weights"):
            if not math.isfinite(getattr(predictor, name)):
                raise ValueError(f"{name} (={getattr(predictor, name)}) must be finite")
        return predictor
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, FileFormatError):
            with naming(path):
                raise
        raise FileFormatError(f"{path} is malformed: {error!r}") from error
