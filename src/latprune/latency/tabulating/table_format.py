"""Latency tables as a versioned JSON object, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from latprune.errors import FileFormatError
from latprune.graph.types import Piece, WidthAxis
from latprune.latency.cache_effect import CacheEffect, Traffic
from latprune.latency.tabulating.kernel_table import KernelTable
from latprune.latency.tabulating.neighbours import Neighbour
from latprune.latency.tabulating.residual import Residual, TableStats
from latprune.latency.tabulating.surface import SizeSurface
from latprune.latency.tabulating.tables import LatencyTables
from latprune.latency.target import Target

__all__ = ["tables_from_dict", "tables_to_dict"]

_FORMAT = "latprune/latency-tables"
_VERSION = 1
_LARGEST = 2**53
"""Sizes are below this one: from there on, floating-point numbers do not tell them apart."""


def tables_to_dict(tables: LatencyTables) -> dict[str, Any]:
    """The tables as a JSON object (``format`` latprune/latency-tables, version 1)."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "target": tables.target.to_dict(),
        "engine_version": tables.version,
        "machine": tables.machine,
        "fingerprint": tables.fingerprint,
        "constant_ms": tables.constant_ms,
        "scale": tables.scale,
        "cache_effect": dataclasses.asdict(tables.cache_effect),
        "dense_ms": tables.dense_ms,
        "residual": dataclasses.asdict(tables.residual),
        "stats": dataclasses.asdict(tables.stats),
        "widths": dict(tables.widths),
        "min_widths": dict(tables.min_widths),
        "surfaces": {key: surface.to_dict() for key, surface in tables.surfaces.items()},
        "entries": [_entry_to_dict(entry) for entry in tables.entries.values()],
    }


def tables_from_dict(data: Mapping[str, Any]) -> LatencyTables:
    """The tables from their JSON object; raises FileFormatError naming the place that is wrong."""
    if data.get("format") != _FORMAT:
        raise FileFormatError(f"format (={data.get('format')!r}) must be {_FORMAT!r}", path="format")
    if data.get("version") != _VERSION:
        raise FileFormatError(f"version (={data.get('version')!r}) must be {_VERSION}", path="version")
    try:
        surfaces = {key: _surface_from_dict(value, f"surfaces[{key!r}]") for key, value in data["surfaces"].items()}
        entries = [_entry_from_dict(item, f"entries[{index}]") for index, item in enumerate(data["entries"])]
        widths, least = ({group: _whole(n, f"{key}.{group}", 1) for group, n in data[key].items()} for key in ("widths", "min_widths"))
        tables = LatencyTables(
            target=Target(**data["target"]),
            version=data["engine_version"],
            machine=data["machine"],
            fingerprint=data["fingerprint"],
            entries={entry.name: entry for entry in entries},
            surfaces=surfaces,
            widths=widths,
            min_widths=least,
            constant_ms=float(data["constant_ms"]),
            dense_ms=float(data["dense_ms"]),
            residual=Residual(**data["residual"]),
            stats=TableStats(**{**data["stats"], "priced": tuple(data["stats"].get("priced", ()))}),
            scale=float(data["scale"]),
            cache_effect=_cache_effect_from_dict(data),
        )
    except FileFormatError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise FileFormatError(f"latency tables are malformed: {error!r}") from error
    for name, value, valid in (
        ("constant_ms", tables.constant_ms, math.isfinite(tables.constant_ms)),
        ("dense_ms", tables.dense_ms, 0.0 < tables.dense_ms < math.inf),
        ("scale", tables.scale, 0.0 < tables.scale < math.inf),
    ):
        if not valid:
            raise FileFormatError(f"{name} (={value}) must be finite, and positive unless it is the constant", path=name)
    for index, entry in enumerate(entries):
        if not (math.isfinite(entry.factor) and math.isfinite(entry.overhead_ms)):
            raise FileFormatError(
                f"factor (={entry.factor}) and overhead_ms (={entry.overhead_ms}) must be finite", path=f"entries[{index}]"
            )
        unknown = {group for axis in entry.axes for piece in axis.pieces for group in piece.groups} - set(tables.widths)
        if unknown:
            raise FileFormatError(f"groups that widths lacks: {', '.join(sorted(map(str, unknown)))}", path=f"entries[{index}].axes")
        if entry.surface not in surfaces:
            raise FileFormatError(f"surface (={entry.surface!r}) is not in the file", path=f"entries[{index}].surface")
        if len(surfaces[entry.surface].steps) != len(entry.axes) or len(entry.dense) != len(entry.axes):
            raise FileFormatError(f"kernel {entry.name!r} and its surface differ in their number of axes", path=f"entries[{index}]")
        dense = tuple(axis.size(tables.widths) for axis in entry.axes)
        if dense != entry.dense:
            raise FileFormatError(
                f"dense (={list(entry.dense)}) must be the kernel's sizes at the file's widths, which are {list(dense)}",
                path=f"entries[{index}].dense",
            )
        with np.errstate(all="ignore"):  # what overflows is told below
            cost = float(surfaces[entry.surface].at([entry.dense])[0])
        if not math.isfinite(cost):
            raise FileFormatError(f"surface (={entry.surface!r}) says {cost} ms of the dense kernel", path=f"entries[{index}].surface")
    return tables


def _surface_from_dict(data: Any, place: str) -> SizeSurface:
    """A surface; what is wrong with it says in which."""
    try:
        return SizeSurface.from_dict(data)
    except FileFormatError as error:
        raise FileFormatError(str(error), path=place) from error


def _whole(value: Any, place: str, least: int) -> int:
    """A whole number of at least ``least`` that tables can compute with."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _LARGEST:
        raise FileFormatError(f"(={value!r}) must be a whole number of at least {least}", path=place)
    return value


def _number(value: Any, place: str, least: float = -math.inf) -> float:
    """A finite number of at least ``least``."""
    number = not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) < math.inf
    if not number or value < least:
        raise FileFormatError(f"(={value!r}) must be a finite number{'' if least == -math.inf else f' of at least {least:g}'}", path=place)
    return float(value)


def _names(value: Any, place: str) -> tuple[str, ...]:
    """A list of names."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise FileFormatError(f"(={value!r}) must be a list of names", path=place)
    return tuple(value)


def _cache_effect_from_dict(data: Mapping[str, Any]) -> CacheEffect:
    """The effect; files from before it was known have none."""
    found = data.get("cache_effect", {})
    knee = found.get("knee")
    effect = CacheEffect(
        all=float(found.get("all", 0.0)), weights=float(found.get("weights", 0.0)), knee=None if knee is None else float(knee)
    )
    if not (effect.all >= 0.0 and effect.weights >= 0.0 and effect.all + effect.weights < 1.0):
        raise FileFormatError(
            f"cache_effect (={found!r}) must hold two exponents, none negative, whose sum is below 1", path="cache_effect"
        )
    if effect.knee is not None and not 0.0 < effect.knee < math.inf:
        raise FileFormatError(f"knee (={knee!r}) must be a positive share of the dense latency, or null", path="cache_effect.knee")
    for index, entry in enumerate(data["entries"] if effect else ()):
        if "traffic" not in entry:
            raise FileFormatError("what the kernel moves is missing; files with a cache_effect say it", path=f"entries[{index}].traffic")
    return effect


def _entry_to_dict(entry: KernelTable) -> dict[str, Any]:
    return {
        "name": entry.name,
        "surface": entry.surface,
        "factor": entry.factor,
        "overhead_ms": entry.overhead_ms,
        "axes": [
            {"constant": axis.constant, "pieces": [[list(piece.groups), piece.factor, list(piece.blocks)] for piece in axis.pieces]}
            for axis in entry.axes
        ],
        "blocks": list(entry.blocks),
        "dense": list(entry.dense),
        "neighbours": [dataclasses.asdict(item) for item in entry.neighbours],
        "traffic": dataclasses.asdict(entry.traffic),
    }


def _entry_from_dict(data: Mapping[str, Any], place: str) -> KernelTable:
    (name,) = _names([data["name"]], f"{place}.name")
    (surface,) = _names([data["surface"]], f"{place}.surface")
    traffic = {kind: _number(value, f"{place}.traffic.{kind}", 0.0) for kind, value in data.get("traffic", {}).items()}
    return KernelTable(
        name=name,
        surface=surface,
        factor=float(data["factor"]),
        overhead_ms=float(data["overhead_ms"]),
        axes=tuple(_axis_from(axis, f"{place}.axes[{index}]") for index, axis in enumerate(data["axes"])),
        blocks=_names(data["blocks"], f"{place}.blocks"),
        dense=tuple(_whole(size, f"{place}.dense[{index}]", 1) for index, size in enumerate(data["dense"])),
        neighbours=tuple(_neighbour_from(item, f"{place}.neighbours[{index}]") for index, item in enumerate(data.get("neighbours", ()))),
        traffic=Traffic(**traffic),
    )


def _axis_from(data: Mapping[str, Any], place: str) -> WidthAxis:
    pieces = tuple(
        Piece(
            groups=_names(groups, f"{place}.pieces[{index}][0]"),
            factor=_whole(factor, f"{place}.pieces[{index}][1]", 1),
            blocks=_names(blocks, f"{place}.pieces[{index}][2]"),
        )
        for index, (groups, factor, blocks) in enumerate(data["pieces"])
    )
    return WidthAxis(constant=_whole(data["constant"], f"{place}.constant", 0), pieces=pieces)


def _neighbour_from(data: Any, place: str) -> Neighbour:
    """A neighbour; older files hold ``[removed, factor]``, and files from before they were known none."""
    item = dict(zip(("removed", "factor"), data, strict=True)) if isinstance(data, list) else data
    return Neighbour(
        removed=_names(item["removed"], f"{place}.removed"),
        factor=_number(item["factor"], f"{place}.factor"),
        added_ms=_number(item.get("added_ms", 0.0), f"{place}.added_ms"),
    )
