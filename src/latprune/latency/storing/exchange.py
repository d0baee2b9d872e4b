"""Samples as a Parquet file: how tables travel between machines, and how two stores become one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.extras import importing
from latprune.latency.samples import ContextInfo, KernelSample, NetworkSample
from latprune.latency.storing.store import Store
from latprune.latency.target import Target
from latprune.storage import replacing

__all__ = ["add_samples", "export_samples", "import_samples", "merge_stores", "read_samples", "read_store"]

_FORMAT = "latprune/latency-samples"
_VERSION = 2
_READ = ("1", "2")
_TEXTS = ("engine", "engine_version", "device", "precision", "machine", "fingerprint")
_NUMBERS = ("runs", "spread", "created")
_COLUMNS = (
    "engine", "engine_version", "device", "threads", "batch", "precision", "machine",
    "fingerprint", "widths", "removed", "ms", "reference_ms", "runs", "spread", "created", "extra",
    "kernel_names", "kernel_signatures", "kernel_sizes", "kernel_ms", "kernel_steps",
)  # fmt: skip


def _arrow() -> tuple[Any, Any]:
    with importing("pyarrow", "tables"):
        import pyarrow
        import pyarrow.parquet as parquet
    return pyarrow, parquet


def export_samples(store: Store, path: str | Path, *, contexts: Iterable[ContextInfo] | None = None) -> int:
    """Write a store's networks (of some conditions, or all) to a Parquet file, one row per network; returns how many.

    The file carries its format and version in its metadata. Raises InvalidArgumentError, and writes nothing, where there are no networks,
    and MissingExtraError without pyarrow.
    """
    pyarrow, parquet = _arrow()
    chosen = [context for context, _ in store.contexts()] if contexts is None else list(dict.fromkeys(contexts))
    rows = [_row(context, network) for context in chosen for network in store.networks(context)]
    if not rows:
        raise InvalidArgumentError(f"store {store.path} holds no networks to export; latprune measure fills it")
    schema = _schema(pyarrow).with_metadata({"format": _FORMAT, "version": str(_VERSION)})
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    with replacing(path) as staged:
        parquet.write_table(table, str(staged), compression="zstd", write_page_checksum=True)
    return len(rows)


def _schema(pyarrow: Any) -> Any:
    text, number, integer = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    kinds = {
        "threads": integer,
        "batch": integer,
        "ms": number,
        "reference_ms": number,
        "runs": integer,
        "spread": number,
        "created": number,
        "kernel_names": pyarrow.list_(text),
        "kernel_signatures": pyarrow.list_(text),
        "kernel_sizes": pyarrow.list_(pyarrow.list_(integer)),
        "kernel_ms": pyarrow.list_(number),
        "kernel_steps": pyarrow.list_(integer),
    }
    return pyarrow.schema([(name, kinds.get(name, text)) for name in _COLUMNS])


def _row(context: ContextInfo, network: NetworkSample) -> dict[str, Any]:
    target = context.target
    return {
        "engine": target.engine,
        "engine_version": context.version,
        "device": target.device,
        "threads": target.threads,
        "batch": target.batch,
        "precision": target.precision,
        "machine": context.machine,
        "fingerprint": network.fingerprint,
        "widths": json.dumps(dict(network.widths), sort_keys=True),
        "removed": json.dumps(sorted(network.removed)),
        "ms": network.ms,
        "reference_ms": network.reference_ms,
        "runs": network.runs,
        "spread": network.spread,
        "created": network.created,
        "extra": json.dumps(dict(network.extra), sort_keys=True),
        "kernel_names": [kernel.kernel for kernel in network.kernels],
        "kernel_signatures": [kernel.signature for kernel in network.kernels],
        "kernel_sizes": [list(kernel.sizes) for kernel in network.kernels],
        "kernel_ms": [kernel.ms for kernel in network.kernels],
        "kernel_steps": [kernel.steps for kernel in network.kernels],
    }


def read_samples(path: str | Path) -> list[tuple[ContextInfo, NetworkSample]]:
    """Read a file that ``export_samples`` wrote; raises FileFormatError naming the row and column that are wrong."""
    try:
        return _read(path)
    except UnicodeDecodeError as error:
        # No checksum covers the part of the file that has names and types, and pyarrow decodes those wherever they are asked for.
        raise FileFormatError(f"{path} cannot be read as Parquet: {error}") from error


def _read(path: str | Path) -> list[tuple[ContextInfo, NetworkSample]]:
    pyarrow, parquet = _arrow()
    if not Path(path).is_file():
        raise FileFormatError(f"there is no file {path}")
    try:
        table = parquet.read_table(str(path), page_checksum_verification=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise FileFormatError(f"{path} cannot be read as Parquet: {error}") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if metadata.get("format") != _FORMAT:
        raise FileFormatError(f"{path} is no file of latency samples (format {metadata.get('format')!r})", path="format")
    if metadata.get("version") not in _READ:
        raise FileFormatError(f"{path} has version {metadata.get('version')!r}; this latprune reads {' and '.join(_READ)}", path="version")
    wanted = _COLUMNS if metadata["version"] == str(_VERSION) else _COLUMNS[:-1]
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise FileFormatError(f"{path} lacks the columns {', '.join(missing)}", path=missing[0])
    for name in wanted:
        kind = _schema(pyarrow).field(name).type
        if table.schema.field(name).type != kind:
            raise FileFormatError(f"{path} has the column as {table.schema.field(name).type}; it must be {kind}", path=name)
    rows = [_parse(f"{path}, rows[{index}]", row) for index, row in enumerate(table.to_pylist())]
    groups: dict[str, set[str]] = {}
    for index, (_, network) in enumerate(rows):
        known = groups.setdefault(network.fingerprint, set(network.widths))
        if set(network.widths) != known:
            odd = ", ".join(sorted(known ^ set(network.widths)))
            raise FileFormatError(f"not all networks of this structure have a width for {odd}", path=f"{path}, rows[{index}].widths")
    return rows


def _parse(place: str, row: Mapping[str, Any]) -> tuple[ContextInfo, NetworkSample]:
    for name in _TEXTS:
        if not row[name]:
            raise FileFormatError(f"{name} (={row[name]!r}) must be a text that is not empty", path=f"{place}.{name}")
    for name in _NUMBERS:
        if row[name] is None or not 0 <= row[name] < math.inf:
            raise FileFormatError(f"{name} (={row[name]!r}) must be a finite number, not negative", path=f"{place}.{name}")
    try:
        target = Target(engine=row["engine"], device=row["device"], threads=row["threads"], batch=row["batch"], precision=row["precision"])
        context = ContextInfo(target=target, version=row["engine_version"], machine=row["machine"])
        lists = [row[name] for name in ("kernel_names", "kernel_signatures", "kernel_sizes", "kernel_ms")]
        lists.append(row.get("kernel_steps", [1] * len(lists[0])))
        network = NetworkSample(
            fingerprint=row["fingerprint"],
            widths={name: int(width) for name, width in json.loads(row["widths"]).items()},
            removed=tuple(json.loads(row["removed"])),
            ms=row["ms"],
            reference_ms=float(row["reference_ms"]),
            kernels=tuple(
                KernelSample(kernel=name, signature=signature, sizes=tuple(sizes), ms=float(ms), steps=int(steps))
                for name, signature, sizes, ms, steps in zip(*lists, strict=True)
            ),
            runs=row["runs"],
            spread=row["spread"],
            created=row["created"],
            extra=json.loads(row["extra"]),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"malformed: {error}", path=place) from error
    if any(width < 1 for width in network.widths.values()):
        raise FileFormatError(f"widths (={dict(network.widths)}) must be at least 1", path=f"{place}.widths")
    times = [network.reference_ms, *(kernel.ms for kernel in network.kernels)] + ([network.ms] if network.ms is not None else [])
    if not network.reference_ms > 0 or any(not 0 <= ms < 1e9 for ms in times):
        raise FileFormatError("times must be non-negative milliseconds, the reference's positive", path=f"{place}.ms")
    if len({kernel.kernel for kernel in network.kernels}) < len(network.kernels):
        raise FileFormatError("a kernel is there twice", path=f"{place}.kernel_names")
    for kernel in network.kernels:
        if len(kernel.sizes) != _axes(kernel.signature) or any(size < 0 for size in kernel.sizes):
            raise FileFormatError(
                f"kernel {kernel.kernel!r} has the sizes {list(kernel.sizes)}, none of which may be negative, and the signature "
                f"{kernel.signature!r}, which must be a JSON object that names as many axes under 'fixed'",
                path=f"{place}.kernel_sizes",
            )
    return context, network


@cache
def _axes(signature: str) -> int | None:
    """How many axes a kernel of this signature has (``kernel_signature``); None where it is no signature."""
    try:
        return len(json.loads(signature)["fixed"])
    except (KeyError, TypeError, ValueError):
        return None


def import_samples(store: Store, path: str | Path) -> int:
    """Add a file's networks to a store, those that it has already left out; returns how many were added."""
    return add_samples(store, read_samples(path))


def merge_stores(store: Store, others: Iterable[str | Path]) -> int:
    """Add the networks of other stores, those that are there already left out; returns how many were added.

    Each sample keeps its conditions, so nothing of another engine version or machine is mixed into a table. All stores are read before
    anything is added: where one of them cannot be read, none is taken in.
    """
    return add_samples(store, [pair for path in others for pair in read_store(path)])


def read_store(path: str | Path) -> list[tuple[ContextInfo, NetworkSample]]:
    """Every network of a store, which is verified and left as it is; raises InvalidArgumentError where there is none."""
    if not Path(path).is_file():
        raise InvalidArgumentError(f"store {path} does not exist")
    with Store(path, reading=True) as store:
        store.check()
        return [(context, network) for context, _ in store.contexts() for network in store.networks(context)]


def add_samples(store: Store, pairs: Iterable[tuple[ContextInfo, NetworkSample]]) -> int:
    """Add networks to a store, those that it has already left out; returns how many were added."""
    known: dict[ContextInfo, set[str]] = {}
    added = 0
    for context, network in pairs:
        if context not in known:
            known[context] = {_identity(context, item) for item in store.networks(context)}
        identity = _identity(context, network)
        if identity not in known[context]:
            known[context].add(identity)
            added += store.add(context, [network])
    return added


def _identity(context: ContextInfo, network: NetworkSample) -> str:
    row = _row(context, network)
    pairs = sorted(zip(row["kernel_names"], row["kernel_ms"], strict=True))
    return json.dumps([row["fingerprint"], row["widths"], row["removed"], row["ms"], row["reference_ms"], row["created"], pairs])
