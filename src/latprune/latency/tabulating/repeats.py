"""Samples that are far off everything else: found, and told from the truth by measuring them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from latprune.latency.samples import ContextInfo, NetworkSample
from latprune.latency.tabulating.fitting import fit_tables
from latprune.latency.tabulating.tables import LatencyTables, Residual, TableStats

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["REPEAT", "REPEATS", "agree", "as_repeat", "due_again", "far_off", "median_sample", "with_repeats"]

REPEAT = "repeat"
"""Key in ``NetworkSample.extra`` of a network that was measured again because the first time was far off; holds the first's ``created``."""
REPEATS = 2
"""How often one network is measured again at most."""

_LEAST = 24
"""Networks without which tables cannot say what is far off."""
_ONE_IN = 4
"""At most one network in this many is suspected: where more are far off, the tables are, not the samples."""

_KERNEL, _WHOLE = 0.3, 0.08
"""Logarithms of measured over predicted beyond which a kernel or a network may be far off."""
_SPREADS = 6.0
_SHARE, _LEAST_MS = 0.005, 0.005
_FELT = 0.02
"""Share of a network's latency by which a kernel must be off: small kernels differ from one compilation to the next, by their memory."""
_SAME_KERNEL, _SAME_WHOLE, _SAME_FELT = 0.15, 0.04, 0.01


def far_off(tables: LatencyTables, samples: Sequence[NetworkSample]) -> list[int]:
    """Indices of the samples that ``tables`` cannot explain, the farthest first.

    A sample is far off if the network, or a kernel by which the network feels it (2 % of its latency), took over 8 % (a kernel: 35 %) and
    six times the usual spread more or less than predicted. Early tables predict badly, and then the usual spread is large.
    """
    wholes: list[float] = []
    parts: list[dict[str, float]] = []
    weights: list[dict[str, float]] = []
    for sample in samples:
        speed = tables.dense_ms / sample.reference_ms
        predicted = tables.predict(sample.widths, sample.removed)
        inside = tables.at(tables.share_of(sample.widths, sample.removed))
        wholes.append(float(np.log(sample.ms * speed / predicted)) if sample.ms is not None else 0.0)
        found, weight = {}, {}
        for kernel in sample.kernels:
            entry = tables.entries.get(kernel.kernel)
            if entry is not None:
                cost = inside.cost(kernel.kernel, kernel.sizes, sample.removed)
                if cost > max(_SHARE * predicted, _LEAST_MS):
                    found[kernel.kernel] = float(np.log(max(kernel.ms * speed, 1e-6) / cost))
                    weight[kernel.kernel] = cost / predicted
        parts.append(found)
        weights.append(weight)
    # The profile's own scale is not the tables': each kernel is judged against its own usual ratio.
    usual = {name: float(np.median([found[name] for found in parts if name in found])) for name in {n for found in parts for n in found}}
    deviations = [{name: abs(value - usual[name]) for name, value in found.items()} for found in parts]
    together = [value for found in deviations for value in found.values()]
    kernel_limit = max(_KERNEL, _SPREADS * 1.4826 * float(np.median(together)) if together else 0.0)
    centre = float(np.median(wholes))
    whole_limit = max(_WHOLE, _SPREADS * 1.4826 * float(np.median(np.abs(np.asarray(wholes) - centre))))
    felt = [
        [found[name] for name, value in part.items() if weight[name] * abs(np.exp(value) - np.exp(usual[name])) > _FELT]
        for part, found, weight in zip(parts, deviations, weights, strict=True)
    ]
    badness = [
        max(abs(whole - centre) / whole_limit, max(found, default=0.0) / kernel_limit) for whole, found in zip(wholes, felt, strict=True)
    ]
    return sorted((index for index, bad in enumerate(badness) if bad > 1.0), key=lambda index: -badness[index])


def agree(first: NetworkSample, second: NetworkSample) -> bool:
    """Whether two measurements of one network tell the same: within 4 %, and each kernel within 15 % or 1 % of all of them."""
    speed = first.reference_ms / second.reference_ms
    if first.ms is not None and second.ms is not None and abs(np.log(first.ms / (second.ms * speed))) > _SAME_WHOLE:
        return False
    others = {kernel.kernel: kernel.ms * speed for kernel in second.kernels}
    total = sum(kernel.ms for kernel in first.kernels)
    return all(
        abs(np.log(kernel.ms / max(others[kernel.kernel], 1e-9))) <= _SAME_KERNEL
        for kernel in first.kernels
        if kernel.kernel in others and abs(kernel.ms - others[kernel.kernel]) > max(_SAME_FELT * total, _LEAST_MS)
    )


def as_repeat(sample: NetworkSample, first: NetworkSample) -> NetworkSample:
    """The sample, marked as a repetition of ``first``."""
    return dataclasses.replace(sample, extra={**sample.extra, REPEAT: first.created})


def median_sample(samples: Sequence[NetworkSample]) -> NetworkSample:
    """One sample from several of the same network: medians, at the first one's speed."""
    first = samples[0]
    if len(samples) == 1:
        return first
    speeds = [first.reference_ms / sample.reference_ms for sample in samples]
    times = {
        name: [
            kernel.ms * speed for sample, speed in zip(samples, speeds, strict=True) for kernel in sample.kernels if kernel.kernel == name
        ]
        for name in (kernel.kernel for kernel in first.kernels)
    }
    wholes = [sample.ms * speed for sample, speed in zip(samples, speeds, strict=True) if sample.ms is not None]
    return dataclasses.replace(
        first,
        ms=float(np.median(wholes)) if wholes else None,
        kernels=tuple(dataclasses.replace(kernel, ms=float(np.median(times[kernel.kernel]))) for kernel in first.kernels),
        runs=sum(sample.runs for sample in samples),
    )


def with_repeats(samples: Sequence[NetworkSample]) -> list[NetworkSample]:
    """Stored samples with each repetition taken into the sample that it repeats."""
    return [median_sample(group) for group in _by_network(samples)]


def due_again(graph: ModelGraph, context: ContextInfo, samples: Sequence[NetworkSample]) -> list[NetworkSample]:
    """Which of the stored ``samples`` of one context and structure should be measured again, the farthest off first.

    Those are the ones that the tables of all the samples cannot explain, at most one in four (fewer than 24 networks say nothing), the ones
    whose own times did not agree (``extra["steady"]``), and the ones that were measured again and said something else: until two
    measurements agree, or there were two repetitions. It is for measurements made where no tables are at hand (a rack of devices, a kit);
    ``build_tables`` looks after each batch.
    """
    groups = _by_network(samples)
    due = _unexplained(graph, context, groups) if len(groups) >= _LEAST else []
    for index, group in enumerate(groups):
        doubtful = group[0].extra.get("steady") is False if len(group) == 1 else len(group) <= REPEATS and not _settled(group)
        if doubtful and index not in due:
            due.append(index)
    return [groups[index][0] for index in due]


def _unexplained(graph: ModelGraph, context: ContextInfo, groups: Sequence[Sequence[NetworkSample]]) -> list[int]:
    """Networks measured once that are far off the tables of all."""
    merged = [median_sample(group) for group in groups]
    tables = fit_tables(
        merged, list(graph.kernels.values()), list(graph.groups.values()), context, residual=Residual.of([], []), stats=TableStats()
    )
    return [index for index in far_off(tables, merged) if len(groups[index]) == 1][: max(1, len(groups) // _ONE_IN)]


def _settled(group: Sequence[NetworkSample]) -> bool:
    return any(agree(first, second) for index, second in enumerate(group) for first in group[:index])


def _by_network(samples: Sequence[NetworkSample]) -> list[list[NetworkSample]]:
    """Each network's samples: its own, then its repetitions.

    Small networks meet the same widths twice, so a repetition names the sample that it repeats. Where that is not here, or in stores from
    before they were named, it is the latest one of the same network.
    """
    groups: list[list[NetworkSample]] = []
    for sample in samples:
        own = None
        if REPEAT in sample.extra:
            key = (dict(sample.widths), sample.removed)
            same = [group for group in reversed(groups) if (dict(group[0].widths), group[0].removed) == key]
            own = next((group for group in same if group[0].created == sample.extra[REPEAT]), same[0] if same else None)
        if own is None:
            groups.append([sample])
        else:
            own.append(sample)
    return groups
