"""Fitted tables kept beside the samples that they were fitted to, so that a filled store answers at once.

A kept fit is only ever a shortcut: it is used where the samples, the network's groups and kernels and the code that fits are the very same,
and it is replaced otherwise.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latprune.latency.samples import ContextInfo
from latprune.latency.storing.store import SamplesDigest, Store
from latprune.latency.tabulating.tables import LatencyTables

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["KeptFit", "keep_fit", "kept_fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFit:
    """Tables as they were fitted, and whether their check said that more networks would not make them better."""

    tables: LatencyTables
    settled: bool


def kept_fit(store: Store, context: ContextInfo, fingerprint: str, graph: ModelGraph) -> KeptFit | None:
    """The fit kept for exactly what the store holds now, or None; one that cannot be read is none, for the samples can be fitted again."""
    found = store.fit(context, fingerprint)
    if found is None or found[0] != _key(store.digest(context, fingerprint), graph):
        return None
    try:
        data = json.loads(zlib.decompress(found[1]))
        return KeptFit(tables=LatencyTables.from_dict(data["tables"]), settled=bool(data["settled"]))
    except (zlib.error, KeyError, TypeError, ValueError):
        return None


def keep_fit(store: Store, context: ContextInfo, fingerprint: str, graph: ModelGraph, fit: KeptFit, *, measured: int) -> None:
    """Keep a fit of the ``measured`` networks (repetitions counted) of this structure, unless another process wrote more meanwhile."""
    digest = store.digest(context, fingerprint)
    if digest.networks != measured:
        return
    body = zlib.compress(json.dumps({"settled": fit.settled, "tables": fit.tables.to_dict()}).encode())
    store.keep_fit(context, fingerprint, _key(digest, graph), body)


def _key(samples: SamplesDigest, graph: ModelGraph) -> str:
    groups = [[group.name, group.columns, group.min_width] for group in graph.groups.values()]
    kernels: Sequence[Any] = [asdict(kernel) for kernel in graph.kernels.values()]
    text = json.dumps([samples.text, _code(), groups, kernels], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _code() -> str:
    """Digest of the source of all of ``latprune.latency``: a fit made by other code is not taken for one of this code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
