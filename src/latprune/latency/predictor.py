"""Predicting kernels and networks that were never measured (nn-Meter's role): an analytic trunk and a forest per family of kernels."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latprune.errors import FileFormatError, TableError
from latprune.graph.types import Kernel
from latprune.latency.features import FEATURES, family_of, kernel_features
from latprune.latency.fitting import timer_overhead
from latprune.latency.forest import Forest, fit_forest
from latprune.latency.repeats import with_repeats
from latprune.latency.signature import kernel_signature
from latprune.latency.store import ContextInfo, NetworkSample
from latprune.latency.surface import non_negative_least_squares
from latprune.latency.target import Target

__all__ = ["KernelPrediction", "KernelPredictor", "train_predictor"]

_FORMAT = "latprune/latency-predictor"
_VERSION = 2
_MOST = 6000
_FEWEST = 20
_PRICES = 8
_PLACE = ("log_in", "log_out", "log_out_places", "log_window", "stride")
"""Features in which a kernel lies near others or far from them."""
_NEAR = 0.5
_MOST_PLACES = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPrediction:
    """A predicted latency with its 95 % interval, milliseconds."""

    ms: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelPredictor:
    """Regression models of one set of conditions.

    A kernel's time is a trunk times what a forest makes of its shape. The trunk adds up work, outputs, inputs, weights and a fixed part at
    non-negative prices; it carries the scale to kernels that are unlike any in the training data. The forest only knows shapes that it has
    seen, so the farther a kernel lies from all of them, the less the forest counts, and the wider the interval becomes.

    Attributes:
        context: Conditions that it was trained under.
        rooflines: Kernel family -> ``(8,)`` prices of the trunk's columns (``_roofline_columns``), in milliseconds.
        forests: Kernel family -> forest over ``FEATURES``; predicts the logarithm of time over trunk.
        places: Kernel family -> ``(n, 5)`` features of where it was trained (``_PLACE``).
        unseen: Kernel family -> 95th percentile of the trunk's error, a logarithm, on kernels of signatures that it was not fitted to.
        costing: Kinds of kernels that the engine spent time on of their own; all others it fused into what ran before. Learned from the
            engine's profiles.
        constant_ms: Latency of a network beside its kernels.
        overhead_ms: Latency per kernel beside the kernel itself.
        spread: 95th percentile of the relative error on whole networks seen in training.
        samples: Kernel samples it was trained on.
    """

    context: ContextInfo
    rooflines: Mapping[str, npt.NDArray[np.float64]]
    forests: Mapping[str, Forest]
    places: Mapping[str, npt.NDArray[np.float64]]
    unseen: Mapping[str, float]
    costing: frozenset[str]
    constant_ms: float
    overhead_ms: float
    spread: float
    samples: int

    def kernel(self, signature: str, sizes: Sequence[int]) -> KernelPrediction:
        """Predict one kernel at ``sizes``; raises TableError for a family that was not in the training data."""
        family = family_of(signature)
        forest = self.forests.get(family)
        if forest is None:
            raise TableError(f"no kernel of family {family!r} was measured under {self.context.target}; known: {', '.join(self.forests)}")
        features = kernel_features(signature, sizes)[None, :]
        centre, error = float(self._logarithm(family, features)[0]), float(self._error(family, features, forest.error)[0])
        return KernelPrediction(ms=float(np.exp(centre)), low=float(np.exp(centre - error)), high=float(np.exp(centre + error)))

    def _error(self, family: str, features: npt.NDArray[np.float64], seen: float) -> npt.NDArray[np.float64]:
        """``(n,)`` half-widths of 95 % intervals of the logarithm: ``seen`` among the training data, the trunk's far from them."""
        near = _nearness(self.places[family], features)
        return np.asarray(near * seen + (1.0 - near) * max(self.unseen[family], seen))

    def _logarithm(self, family: str, features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``(n, features)`` -> ``(n,)`` logarithm of milliseconds."""
        return _logarithm(self.rooflines[family], self.forests[family], self.places[family], features)

    def network(self, kernels: Iterable[Kernel], widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> KernelPrediction:
        """Predict a network at ``widths`` without ``removed_blocks``, from its traced kernels alone."""
        removed = set(removed_blocks)
        rows: dict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)
        for kernel in kernels:
            if kernel.kind in self.costing and removed.isdisjoint(kernel.blocks):
                signature = kernel_signature(kernel)
                family = family_of(signature)
                if family not in self.forests:
                    raise TableError(
                        f"kernel {kernel.name!r}: no kernel of family {family!r} was measured under {self.context.target}; "
                        f"known: {', '.join(self.forests)}"
                    )
                rows[family].append(kernel_features(signature, [axis.size(widths, removed) for axis in kernel.axes]))
        total, doubt = self.constant_ms, 0.0
        for family, features in rows.items():
            stacked = np.stack(features)
            parts = np.exp(self._logarithm(family, stacked))
            total += float(parts.sum()) + self.overhead_ms * len(features)
            # Kernels that are new to the forest may all be wrong in the same direction: their errors add up.
            doubt += float((parts * self._error(family, stacked, self.spread)).sum())
        error = max(self.spread, float(np.expm1(doubt / max(total, 1e-9)))) if np.isfinite(self.spread) else self.spread
        return KernelPrediction(ms=total, low=total / (1 + error), high=total * (1 + error))

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file of plain arrays with a JSON header."""
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "features": list(FEATURES),
            "context": asdict(self.context),
            "families": list(self.forests),
            "costing": sorted(self.costing),
            "constant_ms": self.constant_ms,
            "overhead_ms": self.overhead_ms,
            "spread": self.spread,
            "samples": self.samples,
            "unseen": dict(self.unseen),
        }
        arrays = {
            f"{index}/{name}": array for index, forest in enumerate(self.forests.values()) for name, array in forest.to_arrays().items()
        }
        for index, family in enumerate(self.forests):
            arrays[f"{index}/roofline"], arrays[f"{index}/places"] = self.rooflines[family], self.places[family]
        with Path(path).open("wb") as file:
            np.savez_compressed(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> KernelPredictor:
        """Read a file that ``save`` wrote; raises FileFormatError where it is something else or inconsistent."""
        try:
            with np.load(str(path), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            header = json.loads(arrays.pop("header").tobytes().decode())
        except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise FileFormatError(f"{path} is no predictor file: {error}") from error
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
            forests, rooflines, places = {}, {}, {}
            for index, family in enumerate(header["families"]):
                own = {name.split("/", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{index}/")}
                forests[family] = Forest.from_arrays(own, len(FEATURES))
                rooflines[family] = np.asarray(own["roofline"], dtype=np.float64)
                if rooflines[family].shape != (_PRICES,) or not (rooflines[family] >= 0).all():
                    raise FileFormatError(f"roofline of {family!r} must hold {_PRICES} non-negative prices", path=f"{index}/roofline")
                places[family] = np.asarray(own["places"], dtype=np.float64)
                if places[family].ndim != 2 or places[family].shape[1] != len(_PLACE) or not len(places[family]):
                    raise FileFormatError(f"places of {family!r} must have {len(_PLACE)} columns", path=f"{index}/places")
            return cls(
                context=context,
                rooflines=rooflines,
                forests=forests,
                places=places,
                unseen={family: float(header["unseen"][family]) for family in forests},
                costing=frozenset(header["costing"]),
                constant_ms=float(header["constant_ms"]),
                overhead_ms=float(header["overhead_ms"]),
                spread=float(header["spread"]),
                samples=int(header["samples"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"{path} is malformed: {error!r}") from error


def train_predictor(context: ContextInfo, networks: Sequence[NetworkSample], *, seed: int = 0) -> KernelPredictor:
    """Train on measured networks of one set of conditions.

    Args:
        context: The conditions of all of ``networks``.
        networks: Measured networks, of any structures.
        seed: Seed of the forests.

    Raises:
        TableError: There are too few samples.
        MissingExtraError: scikit-learn is not installed.
    """
    rows: dict[str, list[tuple[str, tuple[int, ...], float]]] = defaultdict(list)
    by_structure: dict[str, list[NetworkSample]] = defaultdict(list)
    for network in networks:
        by_structure[network.fingerprint].append(network)
    # A network that was far off and measured again counts once, as it was understood then.
    by_structure = {fingerprint: with_repeats(group) for fingerprint, group in by_structure.items()}
    networks = [network for group in by_structure.values() for network in group]
    timers = {fingerprint: timer_overhead(group) for fingerprint, group in by_structure.items()}
    levels = {fingerprint: float(np.median([item.reference_ms for item in group])) for fingerprint, group in by_structure.items()}
    for network in networks:
        speed = levels[network.fingerprint] / network.reference_ms
        for sample in network.kernels:
            spent = max(sample.ms - timers[network.fingerprint] * sample.steps, 0.25 * sample.ms, 3e-4) * speed
            rows[family_of(sample.signature)].append((sample.signature, sample.sizes, spent))
    count = sum(len(samples) for samples in rows.values())
    if count < _FEWEST:
        raise TableError(f"a predictor needs at least {_FEWEST} kernel samples of {context.target}, but there are {count}; measure first")
    random = np.random.default_rng(seed)
    forests: dict[str, Forest] = {}
    rooflines: dict[str, npt.NDArray[np.float64]] = {}
    places: dict[str, npt.NDArray[np.float64]] = {}
    unseen: dict[str, float] = {}
    for family, samples in rows.items():
        merged: dict[tuple[str, tuple[int, ...]], list[float]] = defaultdict(list)
        for signature, sizes, spent in samples:
            merged[(signature, sizes)].append(spent)
        keys = list(merged)
        if len(keys) > _MOST:
            keys = [keys[index] for index in random.choice(len(keys), _MOST, replace=False)]
        if len(keys) < 4:
            keys = keys * 4
        features = np.stack([kernel_features(signature, sizes) for signature, sizes in keys])
        target = np.log([float(np.median(merged[key])) for key in keys])
        weights = np.sqrt([float(len(merged[key])) for key in keys])
        rooflines[family] = _fit_roofline(features, target, weights)
        forests[family] = fit_forest(features, target - np.log(_roofline_columns(features) @ rooflines[family]), weights, seed=seed)
        places[family] = _places(features, random)
        unseen[family] = _unseen_error([signature for signature, _ in keys], features, target, weights)
    costing = frozenset(str(json.loads(sample.signature)["kind"]) for network in networks for sample in network.kernels)
    constant, overhead, spread = _calibrate(networks, rooflines, forests, places, levels)
    return KernelPredictor(
        context=context,
        rooflines=rooflines,
        forests=forests,
        places=places,
        unseen=unseen,
        costing=costing,
        constant_ms=constant,
        overhead_ms=overhead,
        spread=spread,
        samples=count,
    )


def _roofline_columns(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``(n, 8)``: multiply-adds, with and without output channels padded to the engine's blocks; padded outputs, once and once per place of
    the window; inputs, the same; weights; one.

    A kernel of few channels costs its outputs and inputs, not its multiply-adds. Input channels are not padded: engines loop over them one
    by one.
    """
    column = {name: features[:, index] for index, name in enumerate(FEATURES)}
    padding = 1.0 + column["out_padding"]
    work, window = np.exp(column["log_work"]), np.exp(column["log_window"])
    outputs = np.exp(column["log_out"] + column["log_out_places"]) * padding
    inputs = np.exp(column["log_in"] + column["log_in_places"])
    read = np.exp(column["log_in"] + column["log_out_places"]) * window
    weights = np.exp(column["log_weights"]) * padding
    return np.stack([work * padding, work, outputs, outputs * window, inputs, read, weights, np.ones(len(features))], axis=1)


def _fit_roofline(
    features: npt.NDArray[np.float64], target: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Non-negative prices that fit ``exp(target)`` with the least relative error, kernels that no prices fit counting less."""
    columns, goal = _roofline_columns(features), np.exp(target)
    scale = columns.max(axis=0)
    robust = np.ones(len(goal))
    prices = np.zeros(columns.shape[1])
    for _ in range(4):
        row = np.sqrt(weights * robust) / goal
        prices = non_negative_least_squares(columns / scale * row[:, None], goal * row) / scale
        error = np.abs(np.log(np.maximum(columns @ prices, 1e-9) / goal))
        robust = np.minimum(1.0, max(0.15, 2.0 * float(np.median(error))) / np.maximum(error, 1e-9))
    if not (columns @ prices > 0).all():
        prices[-1] += 1e-6
    return np.asarray(prices)


def _unseen_error(
    signatures: Sequence[str], features: npt.NDArray[np.float64], target: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> float:
    """95th percentile of the trunk's error on signatures that it was not fitted to; with one signature alone, on the largest half."""
    names = sorted(set(signatures))
    if len(names) > 1:
        folds = [np.isin(signatures, names[start::4]) for start in range(min(4, len(names)))]
    else:
        work = features[:, FEATURES.index("log_work")]
        folds = [work > np.median(work)]
    errors = [np.zeros(1)]
    for fold in folds:
        if fold.any() and (~fold).sum() >= 4:
            prices = _fit_roofline(features[~fold], target[~fold], weights[~fold])
            errors.append(np.abs(np.log(_roofline_columns(features[fold]) @ prices) - target[fold]))
    return float(np.quantile(np.concatenate(errors), 0.95))


def _place(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``(n, 5)`` of ``(n, features)``."""
    return np.asarray(features[:, [FEATURES.index(name) for name in _PLACE]])


def _places(features: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    found = np.unique(_place(features), axis=0)
    return found[np.sort(random.choice(len(found), _MOST_PLACES, replace=False))] if len(found) > _MOST_PLACES else found


def _nearness(places: npt.NDArray[np.float64], features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``(n,)`` 1 among the places of the training data, towards 0 far from all of them."""
    distance = np.min(np.linalg.norm(_place(features)[:, None, :] - places[None, :, :], axis=2), axis=1)
    return np.asarray(np.exp(-((distance / _NEAR) ** 2)))


def _logarithm(
    roofline: npt.NDArray[np.float64], forest: Forest, places: npt.NDArray[np.float64], features: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    return np.asarray(np.log(_roofline_columns(features) @ roofline) + _nearness(places, features) * forest.predict(features))


def _calibrate(
    networks: Sequence[NetworkSample],
    rooflines: Mapping[str, npt.NDArray[np.float64]],
    forests: Mapping[str, Forest],
    places: Mapping[str, npt.NDArray[np.float64]],
    levels: Mapping[str, float],
) -> tuple[float, float, float]:
    """Constant, overhead per kernel, and 95th percentile of the relative error of whole networks."""
    sums, goals, counts = [], [], []
    for network in networks:
        if network.ms is None:
            continue
        total = 0.0
        for family, samples in _by_family(network).items():
            total += float(np.exp(_logarithm(rooflines[family], forests[family], places[family], np.stack(samples))).sum())
        sums.append(total)
        counts.append(float(len(network.kernels)))
        goals.append(network.ms * levels[network.fingerprint] / network.reference_ms)
    if not goals:
        return 0.0, 0.0, float("nan")
    goal, kernels, parts = np.asarray(goals), np.asarray(counts), np.asarray(sums)
    columns = np.stack([np.ones(len(goal)), kernels], axis=1) / goal[:, None]
    solution = non_negative_least_squares(columns, (goal - parts) / goal)
    error = np.abs((parts + solution[0] + solution[1] * kernels) / goal - 1.0)
    return float(solution[0]), float(solution[1]), float(np.quantile(error, 0.95))


def _by_family(network: NetworkSample) -> dict[str, list[npt.NDArray[np.float64]]]:
    found: dict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)
    for sample in network.kernels:
        found[family_of(sample.signature)].append(kernel_features(sample.signature, sample.sizes))
    return found
