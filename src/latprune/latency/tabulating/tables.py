"""Latency tables: what every kernel of a network costs at any widths, and the network as their sum."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import InvalidArgumentError, TableError
from latprune.latency.cache_effect import CacheEffect
from latprune.latency.tabulating.choices import group_step, offered_widths
from latprune.latency.tabulating.kernel_table import KernelTable
from latprune.latency.tabulating.neighbours import Neighbour, active, written
from latprune.latency.tabulating.residual import Residual, TableStats
from latprune.latency.tabulating.surface import SizeSurface
from latprune.latency.target import Target
from latprune.storage import sha256_hex

__all__ = ["KernelTable", "LatencyTables", "Residual", "TableStats"]

FloatArray = npt.NDArray[np.float64]

_STANDS = 12
_SMALLEST = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatencyTables:
    """Bilayer latency tables of one network on one target (MDP eq. 7), calibrated so that constant + sum of kernels = end to end.

    Attributes:
        target: Conditions they hold for.
        version: Version of the engine.
        machine: Processor they were measured on.
        fingerprint: Structure of the network (``network_fingerprint``).
        entries: Kernel name -> its table.
        surfaces: Surface key -> surface.
        widths: Group name -> dense width.
        min_widths: Group name -> smallest width the group allows.
        constant_ms: Latency that no width changes, milliseconds.
        scale: Factor on every kernel's cost; 1 in tables as they are fitted.
        cache_effect: What the latency of the rest of the network makes of a kernel's cost.
        share: Latency of the network that ``cost`` and ``table`` stand in, relative to the dense one (``at``).
        dense_ms: Measured latency of the dense network, milliseconds.
        residual: Error on measured networks that were not used in the fit.
        stats: What making them took.
    """

    target: Target
    version: str
    machine: str
    fingerprint: str
    entries: Mapping[str, KernelTable]
    surfaces: Mapping[str, SizeSurface]
    widths: Mapping[str, int]
    min_widths: Mapping[str, int]
    constant_ms: float
    dense_ms: float
    residual: Residual
    stats: TableStats
    scale: float = 1.0
    cache_effect: CacheEffect = CacheEffect()
    share: float = 1.0
    _choices: dict[tuple[str, int], list[int]] = field(default_factory=dict, repr=False)
    _dense: list[float] = field(default_factory=list, init=False, repr=False)

    def __repr__(self) -> str:
        """One line; entries are not shown."""
        return f"LatencyTables({self.target}: {len(self.entries)} kernels, {len(self.widths)} groups, dense {self.dense_ms:.4g} ms)"

    def _repr_html_(self) -> str:
        """Target, error and widths on offer, for notebooks."""
        from latprune.display import html_of

        return html_of("tables", self)

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels that cost something, in the order in which they run."""
        return list(self.entries)

    def cost(self, kernel: str, sizes: Sequence[int], removed_blocks: Iterable[str] = ()) -> float:
        """Milliseconds of one kernel at ``sizes`` (one per axis of the kernel) in a network without ``removed_blocks``, which takes
        ``share`` of the dense one's latency; 0 for a kernel that the engine fuses into another one.
        """
        grid = [np.asarray([size]) for size in sizes]
        total, removed = self._values(kernel, grid), frozenset(removed_blocks)
        for blocks, change in self.changes(kernel) if removed else ():
            if removed.issuperset(blocks):
                total = total + change(*grid)
        return float(total.reshape(-1)[0])

    def changes(self, kernel: str) -> list[tuple[tuple[str, ...], Callable[..., FloatArray]]]:
        """What the removal of blocks beside a kernel does to its cost (``KernelTable.neighbours``): ``(blocks, table)``, where ``table`` is
        called like :meth:`table` and says how many milliseconds more the kernel costs once all of ``blocks`` are gone.
        """
        entry = self.entries.get(kernel)
        return [(item.removed, partial(self._change, kernel, item)) for item in (entry.neighbours if entry is not None else ())]

    def _change(self, kernel: str, item: Neighbour, *sizes: npt.ArrayLike) -> FloatArray:
        axes = [np.asarray(size, dtype=np.int64).reshape(-1) for size in sizes]
        entry = self.entries[kernel]
        # What one more kernel costs the engine is no part of what the neighbour changes.
        total = (item.factor - 1.0) * self._own(entry, axes)
        if item.added_ms:
            total = total + self.scale * item.added_ms * written(np.ix_(*axes), entry.dense)
        return np.asarray(total * _present(axes))

    def table(self, kernel: str, *sizes: npt.ArrayLike) -> FloatArray:
        """Milliseconds of one kernel on the grid of one integer vector per axis -> array with one dimension per axis, all blocks there.

        Any size from 1 to the dense size may be asked for. A size of 0 means that the kernel reads or makes nothing; it costs nothing.
        """
        return self._values(kernel, [np.asarray(size, dtype=np.int64).reshape(-1) for size in sizes])

    def _values(self, kernel: str, sizes: list[npt.NDArray[np.int64]]) -> FloatArray:
        entry = self.entries.get(kernel)
        if entry is None:
            return np.zeros(tuple(len(size) for size in sizes))
        return np.asarray(np.maximum(self._own(entry, sizes) + self.scale * entry.overhead_ms, 0.0) * _present(sizes))

    def _own(self, entry: KernelTable, sizes: list[npt.NDArray[np.int64]]) -> FloatArray:
        """Milliseconds of a kernel in the network around it, without what one more kernel costs the engine."""
        held, values = self._alone(entry, sizes)
        if self.cache_effect and self.share != 1.0:
            values = values * self.cache_effect.factor(self.share, entry.traffic.weight_share(np.ix_(*held)))
        return np.asarray(self.scale * values)

    def _alone(self, entry: KernelTable, sizes: list[npt.NDArray[np.int64]]) -> tuple[list[npt.NDArray[np.int64]], FloatArray]:
        """Sizes as the surface takes them, and what it says there, whatever runs around the kernel."""
        if len(sizes) != len(entry.axes):
            raise InvalidArgumentError(f"kernel {entry.name!r} has {len(entry.axes)} axes, but {len(sizes)} sizes were given")
        for axis, (size, dense) in enumerate(zip(sizes, entry.dense, strict=True)):
            if len(size) and (size.min() < 0 or size.max() > dense):
                raise TableError(
                    f"kernel {entry.name!r}, axis {axis}: sizes {size.min()} to {size.max()} asked for, but the table covers 1 to {dense}; "
                    "build the tables from the dense network"
                )
        held = [np.maximum(size, 1) for size in sizes]
        return held, entry.factor * self.surfaces[entry.surface].grid(*held)

    def predict(self, widths: Mapping[str, int] | None = None, removed_blocks: Iterable[str] = ()) -> float:
        """Latency in milliseconds of the network at ``widths`` (groups not named stay dense) without ``removed_blocks``."""
        full = {**self.widths, **(widths or {})}
        unknown = set(full) - set(self.widths)
        if unknown:
            raise InvalidArgumentError(f"widths name groups that the network does not have: {', '.join(sorted(unknown))}")
        if isinstance(removed_blocks, str):
            raise InvalidArgumentError(f"removed_blocks (={removed_blocks!r}) must be a list of names, not one name")
        removed = set(removed_blocks)
        running = self._running(full, removed)
        total = self.constant_ms + running.total(1.0)
        if not self.cache_effect:
            return total
        # A fixed point: what the network takes decides what its kernels cost. Exponents below one make this converge.
        for _ in range(_STANDS):
            before, total = total, self.constant_ms + running.total(max(total / self._dense_total(), _SMALLEST))
            if abs(total - before) <= 1e-5 * total:
                break
        return total

    def _dense_total(self) -> float:
        """Constant and kernels of the dense network; shares are relative to it."""
        if not self._dense:
            self._dense.append(self.constant_ms + self._running(self.widths, set()).total(1.0))
        return self._dense[0]

    def _running(self, widths: Mapping[str, int], removed: set[str]) -> _Running:
        """The kernels of a network."""
        rows = []
        for entry in self.entries.values():
            sizes = [axis.size(widths, removed) for axis in entry.axes]
            if not removed.isdisjoint(entry.blocks) or 0 in sizes:
                continue
            held, alone = self._alone(entry, [np.asarray([size]) for size in sizes])
            exponent = float(self.cache_effect.exponent(entry.traffic.weight_share(held)).reshape(-1)[0])
            factor, more = active(entry.neighbours, removed)
            rows.append((float(alone.reshape(-1)[0]), exponent, entry.overhead_ms, factor, more * float(written(sizes, entry.dense))))
        alone, exponents, overheads, factors, added = np.asarray(rows, dtype=np.float64).reshape(-1, 5).T
        return _Running(alone, exponents, overheads, factors, added, self.scale, self.cache_effect)

    def share_of(self, widths: Mapping[str, int] | None = None, removed_blocks: Iterable[str] = ()) -> float:
        """Latency of the network at ``widths`` without ``removed_blocks``, relative to the dense one; 1 where it makes no difference."""
        if not self.cache_effect:
            return 1.0
        return max(self.predict(widths, removed_blocks) / self._dense_total(), _SMALLEST)

    def at(self, share: float) -> LatencyTables:
        """The same tables, read inside a network that takes ``share`` of the dense one's latency (``share_of``)."""
        if not share > 0:
            raise InvalidArgumentError(f"share (={share}) must be positive")
        return self if share == self.share or not self.cache_effect else dataclasses.replace(self, share=share)

    def kernels_of(self, group: str) -> list[str]:
        """Kernels whose cost depends on the group's width."""
        return [name for name, entry in self.entries.items() if any(group in axis.groups for axis in entry.axes)]

    def curve(
        self, group: str, widths: Sequence[int], base: Mapping[str, int] | None = None, removed_blocks: Iterable[str] = ()
    ) -> FloatArray:
        """Milliseconds of the kernels that read or make the group, at each of ``widths``, the others at ``base`` (else dense)."""
        if group not in self.widths:
            raise InvalidArgumentError(f"group (={group!r}) is not in the tables")
        full = {**self.widths, **(base or {})}
        removed = frozenset(removed_blocks)
        share = self.share_of(full, removed)
        total = np.zeros(len(widths))
        for name in self.kernels_of(group):
            entry = self.entries[name]
            if not removed.isdisjoint(entry.blocks):
                continue
            sizes = np.asarray(
                [[axis.size({**full, group: int(width)}, removed) for axis in entry.axes] for width in widths], dtype=np.int64
            )
            held = np.maximum(sizes, 1)
            values = entry.factor * self.surfaces[entry.surface].at(held)
            if self.cache_effect and share != 1.0:
                values = values * self.cache_effect.factor(share, entry.traffic.weight_share(list(held.T)))
            factor, added = active(entry.neighbours, removed)
            cost = np.maximum(values + entry.overhead_ms, 0.0) + (factor - 1.0) * values + added * written(list(sizes.T), entry.dense)
            total += np.where((sizes > 0).all(axis=1), self.scale * cost, 0.0)
        return total

    def step(self, group: str) -> int:
        """Step of the group's staircase in units of its width: the one that most of the cost of its kernels follows."""
        return group_step(self, group)

    def choices(self, group: str, *, limit: int = 16) -> list[int]:
        """Widths on offer: the right ends of the measured steps, the dense width always among them; at most ``limit``.

        A width is left out where a larger one costs no more, whether the other groups are dense or at half their width: it would give up
        channels for nothing. The smallest width is one step, or the group's own minimum if that is larger or one step is the whole width.
        """
        if group not in self.widths:
            raise InvalidArgumentError(f"group (={group!r}) is not in the tables; they have {', '.join(self.widths)}")
        cached = self._choices.get((group, limit))
        if cached is None:
            cached = self._choices[group, limit] = offered_widths(self, group, limit=limit)
        return list(cached)

    def to_dict(self) -> dict[str, Any]:
        """The tables as a JSON object (``format`` latprune/latency-tables, version 1)."""
        from latprune.latency.tabulating.table_format import tables_to_dict

        return tables_to_dict(self)

    @property
    def digest(self) -> str:
        """What identifies the tables: SHA-256, in hexadecimal, of their JSON object."""
        return sha256_hex(json.dumps(self.to_dict(), sort_keys=True).encode())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyTables:
        """The tables from their JSON object; raises FileFormatError naming the place that is wrong."""
        from latprune.latency.tabulating.table_format import tables_from_dict

        return tables_from_dict(data)


@dataclass(frozen=True, slots=True)
class _Running:
    """The kernels that run in a network, one entry each."""

    alone: FloatArray
    exponents: FloatArray
    overheads: FloatArray
    factors: FloatArray
    added: FloatArray
    scale: float
    cache_effect: CacheEffect

    def total(self, share: float) -> float:
        """Their milliseconds inside a network that takes ``share`` of the dense one's latency."""
        own = self.alone * self.cache_effect.crowding(share) ** self.exponents
        costs = np.maximum(own + self.overheads, 0.0) + (self.factors - 1.0) * own + self.added
        return float(self.scale * costs.sum())


def _present(sizes: Sequence[npt.NDArray[np.int64]]) -> FloatArray:
    """1 where a kernel reads and makes something, else 0, on the grid of its sizes."""
    return np.asarray(reduce(np.multiply.outer, [(size > 0).astype(np.float64) for size in sizes], np.ones(())))
