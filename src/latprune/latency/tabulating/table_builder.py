"""Tables in the making: each batch of networks is predicted from the tables before it, and then joins the fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from latprune.latency.samples import ContextInfo, NetworkSample
from latprune.latency.tabulating.fitting import fit_tables, predicted_and_measured
from latprune.latency.tabulating.repeats import REPEATS, agree, far_off, median_sample
from latprune.latency.tabulating.tables import LatencyTables, Residual, TableStats

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["TableBuilder", "fewest_networks"]

_BATCH = 16
_FIRST_FIT = 32
_ENOUGH = 0.015
_NO_BETTER = 0.93
_NO_BETTER_THAN_BEFORE = 0.95
"""Error of the tables over that of the tables before them on the same networks, from which on a batch more is taken to teach nothing. There
the two differ by what was learnt alone; errors of different batches also by which networks are in them."""
_SUSPECTS = 4
"""Networks of one batch that are measured again at most: where more are far off, the tables are, not the samples."""
_STOOD = 2
"""Suspects in a row that come out as they were before, after which the tables are taken to be off: the next ones are nearer to them."""
_LOOKS = 3
"""Times that the first tables are asked what is far off."""


def fewest_networks() -> int:
    """Networks that tables need at least: those of the first fit, and one batch that checks it."""
    return _FIRST_FIT + _BATCH


class TableBuilder:
    """Samples so far, and the checks made on the way."""

    def __init__(self, graph: ModelGraph, context: ContextInfo, samples: list[NetworkSample], *, extend: bool = False) -> None:
        self._graph = graph
        self._context = context
        self._extend = extend
        self.samples = list(samples)
        self._checked: list[tuple[float, float]] = []
        self._history: list[float] = []
        self._next = _FIRST_FIT
        self._before: LatencyTables | None = None
        self._pending: LatencyTables | None = None
        self.settled = False
        self.residual: Residual | None = None
        self._advance()

    def add(
        self, sample: NetworkSample, *, again: Callable[[NetworkSample], NetworkSample], late: Callable[[], bool] = lambda: False
    ) -> None:
        """Take one more network; ``again`` measures it, or one before it, another time, as long as it is not ``late``."""
        self.samples.append(sample)
        self._advance(again, late)

    def _advance(self, again: Callable[[NetworkSample], NetworkSample] | None = None, late: Callable[[], bool] = lambda: False) -> None:
        """Do the fits and checks that the samples allow. Stored samples go through the same steps as new ones, but for the repetitions:
        theirs are in the store.
        """
        while len(self.samples) >= self._next:
            if again is not None:
                self._repeat(again, late)
            known = self.samples[: self._next]
            if self._pending is not None:
                fresh = known[-_BATCH:]
                predicted, measured = predicted_and_measured(self._pending, fresh)
                self._checked = (self._checked + list(zip(predicted.tolist(), measured.tolist(), strict=True)))[-2 * _BATCH :]
                latest = Residual.of(predicted, measured)
                self.residual = Residual.of([pair[0] for pair in self._checked], [pair[1] for pair in self._checked])
                self._history.append(latest.mean_absolute)
                stalled = len(self._history) >= 3 and min(self._history[-2:]) > _NO_BETTER * min(self._history[:-2])
                self.settled = latest.mean_absolute <= _ENOUGH or stalled or self._learnt_nothing(fresh, latest)
            self._next += _BATCH
            if len(self.samples) >= self._next or not self.settled or self._extend:
                self._before, self._pending = self._pending, self._fit(known, TableStats())

    def _learnt_nothing(self, fresh: list[NetworkSample], latest: Residual) -> bool:
        """Whether the tables before the pending ones, which know a batch less, predict the new networks about as well."""
        if self._before is None:
            return False
        return latest.mean_absolute > _NO_BETTER_THAN_BEFORE * Residual.of(*predicted_and_measured(self._before, fresh)).mean_absolute

    def _repeat(self, again: Callable[[NetworkSample], NetworkSample], late: Callable[[], bool]) -> None:
        """Measure again what is far off among the networks that are about to be believed."""
        start = self._next - _BATCH if self._pending is not None else 0
        repeated: set[int] = set()
        for _ in range(1 if self._pending is not None else _LOOKS):
            if late():
                break
            tables = self._pending or self._fit(self.samples[: self._next], TableStats())
            suspects = [index for index in far_off(tables, self.samples[start : self._next]) if index not in repeated][:_SUSPECTS]
            stood = 0
            for index in suspects:
                if late() or stood == _STOOD:
                    break
                suspect = self.samples[start + index]
                tries = [suspect]
                for _ in range(REPEATS):
                    tries.append(again(suspect))
                    if any(agree(other, tries[-1]) for other in tries[:-1]):
                        break
                self.samples[start + index] = median_sample(tries)
                repeated.add(index)
                stood = stood + 1 if agree(suspect, tries[1]) else 0
            # The first tables are bent by the very samples that they judge, so once some are mended they are asked again.
            if stood == len(suspects) or stood == _STOOD:
                break

    def _fit(self, samples: list[NetworkSample], stats: TableStats) -> LatencyTables:
        residual = self.residual if self.residual is not None else Residual.of([], [])
        return fit_tables(
            samples, list(self._graph.kernels.values()), list(self._graph.groups.values()), self._context, residual=residual, stats=stats
        )

    def done(self, limit: int) -> bool:
        """Whether no further network is wanted, of ``limit`` at most."""
        return len(self.samples) >= limit or (self.settled and not self._extend)

    def tables(self, *, measured: int, runs: int) -> LatencyTables:
        """Tables from all the samples."""
        return self._fit(self.samples, TableStats(measured_networks=measured, engine_runs=runs))
