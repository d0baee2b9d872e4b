"""Outliers are measured again before they are believed."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from latprune.latency import DesignPoint, LatencyTables, NetworkSample, Residual, Store, TableStats, Target, design_points
from latprune.latency.tabulating import build, table_builder
from latprune.latency.tabulating.fitting import fit_tables, predicted_and_measured
from latprune.latency.tabulating.repeats import REPEAT, agree, as_repeat, due_again, far_off, median_sample, with_repeats
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, WIDTHS, MadeUpMachine

GRAPH: Any = SimpleNamespace(kernels=KERNELS, groups=GROUPS, blocks=BLOCKS)
STATS = TableStats()


def samples(machine: MadeUpMachine, count: int, seed: int = 0) -> list[NetworkSample]:
    return [machine.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=seed), count)]


def interrupted(sample: NetworkSample, kernel: str | None, factor: float) -> NetworkSample:
    """The sample with one kernel, or the whole, ``factor`` times as long."""
    if kernel is None:
        assert sample.ms is not None
        return dataclasses.replace(sample, ms=sample.ms * factor)
    kernels = tuple(dataclasses.replace(item, ms=item.ms * (factor if item.kernel == kernel else 1.0)) for item in sample.kernels)
    return dataclasses.replace(sample, kernels=kernels)


@pytest.fixture(scope="module")
def tables() -> LatencyTables:
    known = samples(MadeUpMachine(interrupted=0.0), 48)
    return fit_tables(known, list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=STATS)


def test_what_was_interrupted_is_far_off_and_nothing_else(tables: LatencyTables) -> None:
    quiet = samples(MadeUpMachine(5, interrupted=0.0), 16, seed=9)
    assert far_off(tables, quiet) == []
    fresh = list(quiet)
    fresh[3] = interrupted(fresh[3], "stem", 4.0)
    fresh[8] = interrupted(fresh[8], None, 1.6)
    fresh[11] = interrupted(fresh[11], None, 0.5)
    # A few microseconds more in the head are noise in the network.
    fresh[1] = interrupted(fresh[1], "head", 1.2)
    assert sorted(far_off(tables, fresh)) == [3, 8, 11]
    # Where half of a batch is off, the tables are.
    odd = [interrupted(sample, None, 1.25 if index % 2 else 0.8) for index, sample in enumerate(quiet)]
    assert far_off(tables, odd) == []


def test_repetitions_count_by_their_median_at_one_speed(tables: LatencyTables) -> None:
    machine = MadeUpMachine(6, interrupted=0.0, noise=0.01)
    points = list(islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=9), 3))
    first, second, third = (machine.sample(points[0]) for _ in range(3))
    slow = interrupted(interrupted(first, "stem", 5.0), None, 1.3)
    assert agree(first, second) and not agree(slow, second)
    middle = median_sample([slow, second, third])
    assert middle.reference_ms == slow.reference_ms and agree(middle, second)
    assert middle.runs == 30 and [item.sizes for item in middle.kernels] == [item.sizes for item in first.kernels]
    other = machine.sample(points[1])
    stored = [slow, other, as_repeat(second, slow), as_repeat(third, slow), machine.sample(points[0])]
    merged = with_repeats(stored)
    assert len(merged) == 3 and merged[1] is other
    assert merged[0] == middle
    # Without the mark it is a network of its own: small networks meet the same widths twice.
    assert merged[2] is stored[4]
    # And then a repetition belongs to the one that it names; in old stores, which did not name it, to the latest before it.
    twin = dataclasses.replace(stored[4], created=5.0)
    assert [item.runs for item in with_repeats([slow, twin, as_repeat(second, slow)])] == [20, 10]
    unnamed = dataclasses.replace(second, extra={REPEAT: True})
    assert [item.runs for item in with_repeats([slow, twin, unnamed])] == [10, 20]


def test_what_is_due_again_is_told_from_the_samples_alone() -> None:
    machine = MadeUpMachine(3, interrupted=0.0)
    known = samples(machine, 32)
    assert due_again(GRAPH, CONTEXT, known) == []
    stored = list(known)
    stored[5], stored[20] = interrupted(known[5], None, 1.5), interrupted(known[20], "stem", 5.0)
    assert due_again(GRAPH, CONTEXT, stored[:23]) == [], "too few networks to say what is far off"

    def again(index: int, factor: float = 1.0) -> None:
        point = DesignPoint(widths=known[index].widths, removed=known[index].removed)
        stored.append(as_repeat(interrupted(machine.sample(point), None, factor), stored[index]))

    first = due_again(GRAPH, CONTEXT, stored)
    assert {id(sample) for sample in first} == {id(stored[5]), id(stored[20])}
    # One repetition agrees with nothing: once more, and then it rests, whatever came out. The other says what the first said.
    again(5, 2.5)
    stored.append(as_repeat(stored[20], stored[20]))
    assert due_again(GRAPH, CONTEXT, stored) == [stored[5]]
    again(5)
    assert due_again(GRAPH, CONTEXT, stored) == []
    assert len(with_repeats(stored)) == 32


def test_what_a_device_doubts_itself_is_due_again() -> None:
    known = samples(MadeUpMachine(3, interrupted=0.0), 6)
    doubted = [dataclasses.replace(sample, extra={"steady": index != 4}) for index, sample in enumerate(known)]
    assert due_again(GRAPH, CONTEXT, doubted) == [doubted[4]]
    assert due_again(GRAPH, CONTEXT, [*doubted, as_repeat(known[4], doubted[4])]) == []


def test_an_extended_build_is_checked_by_tables_of_all_networks_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def spy(tables: LatencyTables, fresh: list[NetworkSample]) -> Any:
        asked.append(tables.stats.networks)
        return predicted_and_measured(tables, fresh)

    machine = MadeUpMachine(2, interrupted=0.0)
    monkeypatch.setattr(table_builder, "predicted_and_measured", spy)
    monkeypatch.setattr(
        build, "NetworkSampler", lambda *_: SimpleNamespace(sample=lambda point: machine.sample(point), close=lambda: None, runs=0)
    )
    build.build_tables(nn.Identity(), GRAPH, np.zeros(1), Target(engine="torch"), max_networks=96, extend=True)  # type: ignore[arg-type]
    assert asked == [32, 48, 64, 80]


def test_where_many_are_far_off_a_quarter_is_due_at_most() -> None:
    known = samples(MadeUpMachine(3, interrupted=0.0), 32)
    odd = [interrupted(sample, None, 3.0) if index % 3 == 0 else sample for index, sample in enumerate(known)]
    assert len(due_again(GRAPH, CONTEXT, odd)) <= 8


class InterruptedSampler:
    """Takes the sampler's place in a build: a made-up machine, on which every sixth network is interrupted the first time."""

    taken: list[DesignPoint] = []

    def __init__(self, *args: Any) -> None:
        self.machine, self.runs = MadeUpMachine(2, interrupted=0.0), 0

    def sample(self, point: DesignPoint) -> NetworkSample:
        self.taken.append(point)
        count = len({str((sorted(({**WIDTHS, **item.widths}).items()), item.removed)) for item in self.taken})
        again = str((sorted({**WIDTHS, **point.widths}.items()), point.removed)) in {
            str((sorted({**WIDTHS, **item.widths}.items()), item.removed)) for item in self.taken[:-1]
        }
        sample = dataclasses.replace(self.machine.sample(point), fingerprint=FINGERPRINT)
        if count % 6 or again:
            return sample
        return interrupted(interrupted(sample, "a.2" if "a" not in point.removed else "stem", 6.0), None, 1.4)

    def close(self) -> None:
        pass


TARGET = Target(engine="torch")
FINGERPRINT = build.network_fingerprint(list(KERNELS.values()), np.zeros(1), TARGET)


def built(path: Path, time_limit: float | None = None) -> LatencyTables:
    InterruptedSampler.taken = []
    options: dict[str, Any] = {"max_networks": 64, "extend": True, "time_limit": time_limit}
    with Store(path) as store:
        return build.build_tables(nn.Identity(), GRAPH, np.zeros(1), TARGET, store=store, **options)  # type: ignore[arg-type]


def error(tables: LatencyTables) -> float:
    machine = MadeUpMachine()
    points = islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=77), 40)
    dense = machine.latency(WIDTHS)
    found = [
        tables.predict({**WIDTHS, **point.widths}, point.removed)
        / tables.dense_ms
        / (machine.latency({**WIDTHS, **point.widths}, point.removed) / dense)
        - 1.0
        for point in points
    ]
    return float(np.mean(np.abs(found)))


def test_a_build_measures_outliers_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NetworkSampler", InterruptedSampler)
    monkeypatch.setattr(table_builder, "_SUSPECTS", 0)
    believed = built(tmp_path / "believed.sqlite")
    monkeypatch.setattr(table_builder, "_SUSPECTS", 8)
    repeated = built(tmp_path / "repeated.sqlite")
    taken = len(InterruptedSampler.taken)
    assert 64 + 8 <= taken <= 64 + 24
    assert repeated.stats.networks == believed.stats.networks == 64
    # The fit gives little for single outliers; the check would have counted them as errors of the tables.
    assert error(repeated) < 0.02 and error(believed) < 0.03
    assert repeated.residual.mean_absolute < 0.5 * believed.residual.mean_absolute
    # The repetitions are stored: the same tables come back without measuring anything.
    again = built(tmp_path / "repeated.sqlite")
    assert InterruptedSampler.taken == [] and again.stats.networks == 64
    assert again.predict({"a": 48}, ["b"]) == pytest.approx(repeated.predict({"a": 48}, ["b"]), rel=1e-9)
    with Store(tmp_path / "repeated.sqlite") as store:
        assert len(store.networks()) == taken


def test_nothing_is_measured_again_once_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine all is far off, and repetitions would take several times what was asked for."""
    monkeypatch.setattr(build, "NetworkSampler", InterruptedSampler)
    tables = built(tmp_path / "hurried.sqlite", time_limit=0.0)
    assert len(InterruptedSampler.taken) == tables.stats.networks == table_builder.fewest_networks()


class StubbornSampler(InterruptedSampler):
    """Every sixth network is really slower than anything that tables could know of: repetitions say so again."""

    def sample(self, point: DesignPoint) -> NetworkSample:
        self.taken.append(point)
        sample = dataclasses.replace(self.machine.sample(point), fingerprint=FINGERPRINT)
        return interrupted(sample, None, 1.4) if sum(sample.widths.values()) % 6 == 0 else sample


def test_where_the_farthest_stand_the_rest_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NetworkSampler", StubbornSampler)
    found = built(tmp_path / "stubborn.sqlite")
    repetitions = len(InterruptedSampler.taken) - found.stats.networks
    # Three times something is about to be believed: the first 32 networks, and two batches.
    assert 2 <= repetitions <= 3 * table_builder._STOOD


def test_a_small_kernel_that_the_network_does_not_feel_is_not_far_off(tables: LatencyTables) -> None:
    quiet = samples(MadeUpMachine(5, interrupted=0.0), 16, seed=9)
    place, kernel = min(
        ((index, item) for index, sample in enumerate(quiet) for item in sample.kernels if item.ms > 0.006),
        key=lambda found: found[1].ms / (quiet[found[0]].ms or 1.0),
    )
    share = kernel.ms / sum(item.ms for item in quiet[place].kernels)

    def slowed(felt: float) -> list[NetworkSample]:
        """The samples, of which one kernel takes longer by this share of its network."""
        changed = list(quiet)
        changed[place] = interrupted(quiet[place], kernel.kernel, 1.0 + felt / share)
        return changed

    assert np.log1p(0.008 / share) > 0.15 and np.log1p(0.016 / share) > 0.3, "the kernel by itself is off"
    assert agree(quiet[place], slowed(0.008)[place]) and not agree(quiet[place], slowed(0.05)[place])
    assert far_off(tables, slowed(0.016)) == [] and far_off(tables, slowed(0.05)) == [place]
