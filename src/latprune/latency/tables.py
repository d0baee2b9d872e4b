"""Latency tables: what every kernel of a network costs at any widths, and the network as their sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from latprune.errors import FileFormatError, InvalidArgumentError, TableError
from latprune.graph.types import Kernel, Piece, WidthAxis
from latprune.latency.neighbours import Neighbour, active_factor
from latprune.latency.surface import SizeSurface
from latprune.latency.target import Target

__all__ = ["KernelTable", "LatencyTables", "Residual", "TableStats"]

FloatArray = npt.NDArray[np.float64]

_FORMAT = "latprune/latency-tables"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """How far predictions were from measured networks that had no part in the fit.

    Attributes:
        networks: How many networks.
        mean_absolute: Mean of |predicted / measured - 1|.
        bias: Mean of predicted / measured - 1.
        p95: 95th percentile of |predicted / measured - 1|.
        within_8: Share of networks within +-8 %.
        predicted: Milliseconds predicted, one per network.
        measured: Milliseconds measured, at the tables' speed of the machine.
    """

    networks: int
    mean_absolute: float
    bias: float
    p95: float
    within_8: float
    predicted: tuple[float, ...] = ()
    measured: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # A file holds lists.
        object.__setattr__(self, "predicted", tuple(self.predicted))
        object.__setattr__(self, "measured", tuple(self.measured))

    @classmethod
    def of(cls, predicted: npt.ArrayLike, measured: npt.ArrayLike) -> Residual:
        """The residual of predictions against measurements, both ``(n,)`` milliseconds."""
        pairs = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
        error = pairs[0] / pairs[1] - 1.0
        if not len(error):
            return cls(networks=0, mean_absolute=float("nan"), bias=float("nan"), p95=float("nan"), within_8=float("nan"))
        size = np.abs(error)
        return cls(
            networks=len(error),
            mean_absolute=float(size.mean()),
            bias=float(error.mean()),
            p95=float(np.quantile(size, 0.95)),
            within_8=float((size <= 0.08).mean()),
            predicted=tuple(pairs[0].tolist()),
            measured=tuple(pairs[1].tolist()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStats:
    """What it took to make the tables.

    Attributes:
        seconds: Seconds of this build.
        networks: Width-varied networks behind the tables, stored ones included.
        measured_networks: Those that this build measured.
        engine_runs: Inferences that this build made.
        kernels: Kernels with a table.
        surfaces: Distinct surfaces; equal kernels share one.
        shared_entries: Kernels that use another position's surface unchanged.
        positions_differing: Kernels whose in-place samples differ from their equals' beyond the noise; they have a factor of their own.
    """

    seconds: float
    networks: int
    measured_networks: int
    engine_runs: int
    kernels: int
    surfaces: int
    shared_entries: int
    positions_differing: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelTable:
    """One kernel's cost: ``factor * surface(sizes) + overhead``, milliseconds.

    Attributes:
        name: Kernel name.
        surface: Key of its surface.
        factor: Its position's factor, times the calibration.
        overhead_ms: What running one more kernel costs beside the kernel itself (calibrated end to end).
        axes: Its width axes.
        blocks: Blocks it lies in.
        dense: Its dense axis sizes.
        neighbours: What the removal of blocks beside it makes of its cost.
    """

    name: str
    surface: str
    factor: float
    overhead_ms: float
    axes: tuple[WidthAxis, ...]
    blocks: tuple[str, ...]
    dense: tuple[int, ...]
    neighbours: tuple[Neighbour, ...] = ()


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
        scale: Correction of every kernel's cost from measured networks (``corrected``).
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
    _choices: dict[str, list[int]] = field(default_factory=dict, repr=False)

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels that cost something, in the order in which they run."""
        return list(self.entries)

    def cost(self, kernel: str, sizes: Sequence[int]) -> float:
        """Milliseconds of one kernel at ``sizes`` (one per axis of the kernel); 0 for a kernel that the engine fuses into another one.

        All blocks around the kernel are taken to be there; ``predict`` counts what their removal changes (``KernelTable.neighbours``).
        """
        return float(self._values(kernel, [np.asarray([size]) for size in sizes]).reshape(-1)[0])

    def table(self, kernel: str, *sizes: npt.ArrayLike) -> FloatArray:
        """Milliseconds of one kernel on the grid of one integer vector per axis -> array with one dimension per axis.

        Any size from 1 to the dense size may be asked for. A size of 0 means that the kernel reads or makes nothing; it costs nothing.
        """
        return self._values(kernel, [np.asarray(size, dtype=np.int64).reshape(-1) for size in sizes])

    def _values(self, kernel: str, sizes: list[npt.NDArray[np.int64]]) -> FloatArray:
        entry = self.entries.get(kernel)
        shape = tuple(len(size) for size in sizes)
        if entry is None:
            return np.zeros(shape)
        if len(sizes) != len(entry.axes):
            raise InvalidArgumentError(f"kernel {kernel!r} has {len(entry.axes)} axes, but {len(sizes)} sizes were given")
        for axis, (size, dense) in enumerate(zip(sizes, entry.dense, strict=True)):
            if len(size) and (size.min() < 0 or size.max() > dense):
                raise TableError(
                    f"kernel {kernel!r}, axis {axis}: sizes {size.min()} to {size.max()} asked for, but the table covers 1 to {dense}; "
                    "build the tables from the dense network"
                )
        values = self.scale * (
            entry.factor * self.surfaces[entry.surface].grid(*(np.maximum(size, 1) for size in sizes)) + entry.overhead_ms
        )
        values = np.maximum(values, 0.0)
        for axis, size in enumerate(sizes):
            if (size == 0).any():
                values = np.where((size == 0).reshape([-1 if other == axis else 1 for other in range(len(sizes))]), 0.0, values)
        return np.asarray(values)

    def predict(self, widths: Mapping[str, int] | None = None, removed_blocks: Iterable[str] = ()) -> float:
        """Latency in milliseconds of the network at ``widths`` (groups not named stay dense) without ``removed_blocks``."""
        full = {**self.widths, **(widths or {})}
        unknown = set(full) - set(self.widths)
        if unknown:
            raise InvalidArgumentError(f"widths name groups that the network does not have: {', '.join(sorted(unknown))}")
        removed = set(removed_blocks)
        total = self.constant_ms
        for entry in self.entries.values():
            if removed.isdisjoint(entry.blocks):
                cost = self.cost(entry.name, [axis.size(full, removed) for axis in entry.axes])
                total += cost * active_factor(entry.neighbours, removed)
        return total

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
        total = np.zeros(len(widths))
        for name in self.kernels_of(group):
            entry = self.entries[name]
            if not removed.isdisjoint(entry.blocks):
                continue
            sizes = np.asarray(
                [[axis.size({**full, group: int(width)}, removed) for axis in entry.axes] for width in widths], dtype=np.int64
            )
            values = entry.factor * self.surfaces[entry.surface].at(np.maximum(sizes, 1)) + entry.overhead_ms
            values = values * active_factor(entry.neighbours, removed)
            total += np.where((sizes > 0).all(axis=1), np.maximum(self.scale * values, 0.0), 0.0)
        return total

    def step(self, group: str) -> int:
        """Step of the group's staircase in units of its width: the one that most of the cost of its kernels follows."""
        votes: dict[int, float] = {}
        for name in self.kernels_of(group):
            entry = self.entries[name]
            cost = self.cost(name, entry.dense)
            for axis, step in zip(entry.axes, self.surfaces[entry.surface].steps, strict=True):
                for piece in axis.pieces:
                    if group in piece.groups:
                        per_unit = piece.factor
                        for other in piece.groups:
                            per_unit *= self.widths[other] if other != group else 1
                        width_step = max(1, -(-step // per_unit))
                        votes[width_step] = votes.get(width_step, 0.0) + cost
        return max(votes, key=lambda step: (votes[step], step)) if votes else 1

    def choices(self, group: str, *, limit: int = 16) -> list[int]:
        """Widths on offer: the right ends of the measured steps, the dense width always among them; at most ``limit``.

        A width is left out where a larger one costs no more, whether the other groups are dense or at half their width: it would give up
        channels for nothing. The smallest width is one step, or the group's own minimum if that is larger.
        """
        if group not in self.widths:
            raise InvalidArgumentError(f"group (={group!r}) is not in the tables; they have {', '.join(self.widths)}")
        cached = self._choices.get(group)
        if cached is None:
            cached = self._choices[group] = self._find_choices(group, limit)
        return list(cached)

    def _find_choices(self, group: str, limit: int) -> list[int]:
        dense, minimum = self.widths[group], max(1, self.min_widths.get(group, 1))
        if dense <= minimum:
            return [dense]
        step = self.step(group)
        while dense // step > limit:
            step *= 2
        candidates = sorted({*(width for width in range(step, dense, step) if width >= minimum), minimum, dense})
        if step > 1 and minimum < step and len(candidates) > 2:
            candidates.remove(minimum)
        settings = [
            {},
            {name: max(self.min_widths.get(name, 1), width // 2) for name, width in self.widths.items() if name != group},
        ]
        curves = [self.curve(group, candidates, base) for base in settings]
        # A saving below a quarter of an average step is noise of the fit, not a step.
        least = [0.25 * float(np.ptp(curve)) / max(1, len(candidates) - 1) for curve in curves]
        kept: list[int] = []
        floors = [np.inf] * len(curves)
        for index in range(len(candidates) - 1, -1, -1):
            cheaper = [bool(curve[index] < floor - gain) for curve, floor, gain in zip(curves, floors, least, strict=True)]
            if not kept or any(cheaper):
                kept.append(candidates[index])
                floors = [min(floor, float(curve[index])) for curve, floor in zip(curves, floors, strict=True)]
        return kept[::-1]

    def corrected(self, measurements: Sequence[tuple[Mapping[str, int], Iterable[str], float]]) -> LatencyTables:
        """Tables whose predictions follow measured networks.

        Every kernel's cost is scaled by one factor: the geometric mean, later measurements counting twice as much as the one before each,
        of (measured - constant) / (predicted - constant). Near the networks that were measured the new tables are as good as the
        measurement.

        Args:
            measurements: ``(widths, removed blocks, measured milliseconds)`` of delivered networks, oldest first.
        """
        if not measurements:
            return self
        logs, weights = [], []
        for index, (widths, removed, measured) in enumerate(measurements):
            if not measured > 0:
                raise InvalidArgumentError(f"measurements[{index}]: measured (={measured}) must be a positive number of milliseconds")
            variable = self.predict(widths, removed) - self.constant_ms
            target = max(measured - self.constant_ms, 0.05 * measured)
            logs.append(np.log(target / max(variable, 1e-9)))
            weights.append(2.0**index)
        factor = float(np.exp(np.average(logs, weights=weights)))
        return dataclasses.replace(self, scale=self.scale * factor, _choices={})

    def rescaled(self, dense_ms: float) -> LatencyTables:
        """The same tables for a machine whose dense latency is ``dense_ms`` now: constant and kernels in proportion."""
        if not dense_ms > 0:
            raise InvalidArgumentError(f"dense_ms (={dense_ms}) must be positive")
        ratio = dense_ms / self.dense_ms
        return dataclasses.replace(self, scale=self.scale * ratio, constant_ms=self.constant_ms * ratio, dense_ms=dense_ms, _choices={})

    def to_dict(self) -> dict[str, Any]:
        """The tables as a JSON object (``format`` latprune/latency-tables, version 1)."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "target": self.target.to_dict(),
            "engine_version": self.version,
            "machine": self.machine,
            "fingerprint": self.fingerprint,
            "constant_ms": self.constant_ms,
            "scale": self.scale,
            "dense_ms": self.dense_ms,
            "residual": dataclasses.asdict(self.residual),
            "stats": dataclasses.asdict(self.stats),
            "widths": dict(self.widths),
            "min_widths": dict(self.min_widths),
            "surfaces": {key: surface.to_dict() for key, surface in self.surfaces.items()},
            "entries": [_entry_to_dict(entry) for entry in self.entries.values()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyTables:
        """The tables from their JSON object; raises FileFormatError naming the place that is wrong."""
        if data.get("format") != _FORMAT:
            raise FileFormatError(f"format (={data.get('format')!r}) must be {_FORMAT!r}", path="format")
        if data.get("version") != _VERSION:
            raise FileFormatError(f"version (={data.get('version')!r}) must be {_VERSION}", path="version")
        try:
            surfaces = {key: SizeSurface.from_dict(value) for key, value in data["surfaces"].items()}
            entries = [_entry_from_dict(item) for item in data["entries"]]
            tables = cls(
                target=Target(**data["target"]),
                version=data["engine_version"],
                machine=data["machine"],
                fingerprint=data["fingerprint"],
                entries={entry.name: entry for entry in entries},
                surfaces=surfaces,
                widths={key: int(value) for key, value in data["widths"].items()},
                min_widths={key: int(value) for key, value in data["min_widths"].items()},
                constant_ms=float(data["constant_ms"]),
                dense_ms=float(data["dense_ms"]),
                residual=Residual(**data["residual"]),
                stats=TableStats(**data["stats"]),
                scale=float(data["scale"]),
            )
        except FileFormatError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"latency tables are malformed: {error!r}") from error
        for index, entry in enumerate(entries):
            if entry.surface not in surfaces:
                raise FileFormatError(f"surface (={entry.surface!r}) is not in the file", path=f"entries[{index}].surface")
            if len(surfaces[entry.surface].steps) != len(entry.axes) or len(entry.dense) != len(entry.axes):
                raise FileFormatError(f"kernel {entry.name!r} and its surface differ in their number of axes", path=f"entries[{index}]")
        return tables


def kernel_entry(
    kernel: Kernel, surface: str, factor: float, overhead_ms: float, widths: Mapping[str, int], neighbours: tuple[Neighbour, ...] = ()
) -> KernelTable:
    """The table of a traced kernel."""
    return KernelTable(
        name=kernel.name,
        surface=surface,
        factor=factor,
        overhead_ms=overhead_ms,
        axes=kernel.axes,
        blocks=kernel.blocks,
        dense=tuple(axis.size(widths) for axis in kernel.axes),
        neighbours=neighbours,
    )


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
        "neighbours": [[list(item.removed), item.factor] for item in entry.neighbours],
    }


def _entry_from_dict(data: Mapping[str, Any]) -> KernelTable:
    axes = tuple(
        WidthAxis(
            constant=int(axis["constant"]),
            pieces=tuple(
                Piece(groups=tuple(groups), factor=int(factor), blocks=tuple(blocks)) for groups, factor, blocks in axis["pieces"]
            ),
        )
        for axis in data["axes"]
    )
    return KernelTable(
        name=data["name"],
        surface=data["surface"],
        factor=float(data["factor"]),
        overhead_ms=float(data["overhead_ms"]),
        axes=axes,
        blocks=tuple(data["blocks"]),
        dense=tuple(int(size) for size in data["dense"]),
        # Files from before neighbours were known have none.
        neighbours=tuple(Neighbour(removed=tuple(removed), factor=float(factor)) for removed, factor in data.get("neighbours", ())),
    )
