"""Tables built on the made-up engine: filled stores, kept fits, interruptions, and the command."""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from latprune.errors import FileFormatError, InvalidArgumentError, TableError
from latprune.graph import trace
from latprune.latency import (
    ContextInfo,
    DesignPoint,
    LatencyTables,
    Store,
    TableProgress,
    Target,
    build_tables,
    get_engine,
    stored_tables,
    target_context,
)
from latprune.latency.measuring import sampling
from latprune.latency.tabulating import build, table_builder
from latprune.latency.tabulating.repeats import with_repeats
from support.one_block import X, network

pytestmark = pytest.mark.usefixtures("made_up_engine")


@pytest.fixture(autouse=True)
def short_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve networks make a build here: these tests are about the steps, not about the error."""
    monkeypatch.setattr(table_builder, "_FIRST_FIT", 8)
    monkeypatch.setattr(table_builder, "_BATCH", 4)


def test_a_kept_fit_is_used_for_the_same_samples_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    graph, target = trace(model, X), Target(engine="made-up")
    with Store(tmp_path / "s.sqlite") as store:
        tables = build_tables(model, graph, X, target, store=store, time_limit=0.0, max_networks=12)
        fits: list[int] = []
        fit = table_builder.fit_tables

        def counted(samples: list, *args: object, **options: object) -> LatencyTables:
            fits.append(len(samples))
            return fit(samples, *args, **options)

        monkeypatch.setattr(table_builder, "fit_tables", counted)
        again = build_tables(model, graph, X, target, store=store, max_networks=12)
        assert not fits
        assert again.predict({"conv1": 16}) == tables.predict({"conv1": 16})
        assert again.residual == tables.residual
        assert stored_tables(graph, X, target_context(target), store).predict() == tables.predict()
        assert not fits
        for body in (b"no zlib", zlib.compress(b"no JSON"), zlib.compress(b'{"settled": true}')):
            store._connection.execute("UPDATE fit SET body=?", (body,))
            assert build_tables(model, graph, X, target, store=store, max_networks=12).predict() == pytest.approx(tables.predict())
            assert fits, "a fit that cannot be read is made again"
            fits.clear()

        narrower = trace(model, X, min_widths={"conv1": 8})
        build_tables(model, narrower, X, target, store=store, max_networks=12)
        assert fits, "another graph needs a fit of its own"
        fits.clear()
        store.add(target_context(target), store.networks()[:1])
        build_tables(model, narrower, X, target, store=store, max_networks=12)
        assert fits and max(fits) == 13, "one more sample needs a new fit"
        store.remove(target_context(target))
        with pytest.raises(TableError, match="holds 0 networks"):
            stored_tables(narrower, X, target_context(target), store)


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = network()
    graph, target = trace(model, X), Target(engine="made-up")

    class Stop(Exception):
        pass

    def stop(state: TableProgress) -> None:
        if state.networks == 5:
            raise Stop

    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(Stop):
            build_tables(model, graph, X, target, store=store, progress=stop)
        assert len(store.networks()) == 5
        first = [dict(item.widths) for item in store.networks()]
        tables = build_tables(model, graph, X, target, store=store, time_limit=0.0, max_networks=12)
        widths = [dict(item.widths) for item in with_repeats(store.networks())]
    assert tables.stats.measured_networks == 7
    assert widths[:5] == first and len({json.dumps(item) for item in widths}) > 8


def test_a_stored_network_with_an_altered_width_is_named(tmp_path: Path) -> None:
    model = network()
    graph, target = trace(model, X), Target(engine="made-up")
    with Store(tmp_path / "s.sqlite") as store:
        build_tables(model, graph, X, target, store=store, time_limit=0.0, max_networks=12)
        ((body,),) = store._connection.execute("SELECT widths FROM network WHERE id=3").fetchall()
        for altered in ({}, {"conv1": 0}, {"conv1": 49}):
            widths = {name: width for name, width in json.loads(body).items() if name != "conv1"} | altered
            store._connection.execute("UPDATE network SET widths=?, created=created+1 WHERE id=3", (json.dumps(widths),))
            for read in (
                lambda: build_tables(model, graph, X, target, store=store, max_networks=12),
                lambda: stored_tables(graph, X, target_context(target), store),
            ):
                with pytest.raises(FileFormatError, match=r"network 3 of \d+ .* in group 'conv1', which must be from 1 to 48"):
                    read()


def test_a_store_of_another_engine_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    graph, target = trace(model, X), Target(engine="made-up")
    with Store(tmp_path / "s.sqlite") as store:
        build_tables(model, graph, X, target, store=store, time_limit=0.0, max_networks=12)
        monkeypatch.setattr(type(get_engine("made-up")), "version", lambda self: "another version")
        counted: list[int] = []

        class Stop(Exception):
            pass

        def stop(state: TableProgress) -> None:
            counted.append(state.networks)
            raise Stop

        with pytest.raises(Stop):
            build_tables(model, graph, X, target, store=store, progress=stop)
        assert counted == [1]


def test_arguments_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="max_networks"):
        build_tables(network(), trace(network(), X), X, Target(), max_networks=11)


def test_measure_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from latprune.cli import measure

    parser = argparse.ArgumentParser()
    measure.add_parser(parser.add_subparsers())
    arguments = ["measure", "--model", "support.one_block:network", "--input", "1x3x24x24", "--engine", "made-up"]
    arguments += ["--store", str(tmp_path / "s.sqlite"), "--time-limit", "0", "--max-networks", "12", "-o", str(tmp_path / "t.json")]
    args = parser.parse_args(arguments)
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert "widths on offer" in out and "12 networks now" in out
    tables = LatencyTables.from_dict(json.loads((tmp_path / "t.json").read_text()))
    assert tables.choices("conv1")[-1] == 48
    with Store(tmp_path / "s.sqlite") as store:
        ((here, _),) = store.contexts()
        board = ContextInfo(target=here.target, version=here.version, machine="a board")
        store.add(board, store.networks(here))
    # The board is not at hand, and its tables are made without any engine.
    base = arguments[:5] + ["--store", str(tmp_path / "s.sqlite")]
    args = parser.parse_args([*base, "--context", "2", "-o", str(tmp_path / "new" / "board.json")])
    assert args.run(args) == 0
    assert "no networks now, 12 in all" in capsys.readouterr().out
    found = LatencyTables.from_dict(json.loads((tmp_path / "new" / "board.json").read_text()))
    assert found.machine == "a board" and found.predict() == pytest.approx(tables.predict())
    with pytest.raises(InvalidArgumentError, match="between 1 and 2"):
        measure.run(parser.parse_args([*base, "--context", "3"]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--plan", "k.zip", "--ray", "auto", "--label", "x"], "exclude each other"),
        (["--context", "1", "--plan", "k.zip"], "exclude each other"),
        (["--label", "x"], "--label needs --ray"),
        (["--ray", "auto", "--label", "x", "-o", "t.json"], "--output does nothing with --ray"),
        (["--ray", "auto", "--label", "x", "--time-limit", "5"], "--time-limit does nothing with --ray"),
        (["--plan", "k.zip", "--extend"], "--extend does nothing with --plan"),
        (["--time-limit", "-1"], "not negative"),
        (["--time-limit", "nan"], "not negative"),
        (["-o", "."], "is a folder"),
        (["-o", f"{__file__}/t.json"], "its folder cannot be made"),
    ],
)
def test_measure_command_refuses_what_it_would_ignore_before_it_measures(more: list[str], message: str) -> None:
    from latprune.cli import measure

    parser = argparse.ArgumentParser()
    measure.add_parser(parser.add_subparsers())
    args = parser.parse_args(["measure", "--model", "none.py:none", "--input", "1x3x24x24", *more])
    with pytest.raises(InvalidArgumentError, match=message):
        args.run(args)


@pytest.mark.parametrize(("levels", "expected"), [([2.0, 1.0], 1.0), ([1.0], 1.0), ([4.0, 3.0, 2.0], 2.0)])
def test_a_network_is_measured_again_where_the_machines_speed_changed_before_its_profile(
    monkeypatch: pytest.MonkeyPatch, levels: list[float], expected: float
) -> None:
    """Its kernels would be brought to the dense network's speed with the speed of another moment."""
    model, target = network(), Target(engine="torch")
    sampler = sampling.NetworkSampler(model, trace(model, X), X, target, get_engine("torch"))
    coming = iter(levels)

    def beside(*_: object) -> sampling.Beside:
        level = next(coming)
        return sampling.Beside(ms=0.5 * level, reference_ms=level, ratio_error=0.0, spread=0.0, runs=10)

    monkeypatch.setattr(sampling, "time_beside", beside)
    monkeypatch.setattr(sampling, "timed_block", lambda *_: (np.array([1.0, 1.02]), 0.0))
    sample = sampler.sample(DesignPoint(widths={"conv1": 24}))
    sampler.close()
    assert (sample.ms, sample.reference_ms) == (0.5 * expected, expected)
    assert next(coming, None) is None


def test_after_a_long_wait_good_tables_are_enough_and_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    graph, target = trace(model, X), Target(engine="made-up")
    monkeypatch.setattr(table_builder, "_ENOUGH", 0.0)
    monkeypatch.setattr(table_builder, "_NO_BETTER", 9.0)
    monkeypatch.setattr(table_builder, "_NO_BETTER_THAN_BEFORE", 9.0)
    monkeypatch.setattr(build, "_GOOD", 9.0)
    with Store(tmp_path / "s.sqlite") as store:
        assert build_tables(model, graph, X, target, max_networks=32).stats.networks == 32
        monkeypatch.setattr(build, "_LONG", 0.0)
        assert build_tables(model, graph, X, target, store=store, max_networks=32).stats.networks == 12
        again = build_tables(model, graph, X, target, store=store, max_networks=32)
        assert again.stats.networks == 12 and again.stats.measured_networks == 0
        assert build_tables(model, graph, X, target, store=store, max_networks=20, extend=True).stats.networks == 20
