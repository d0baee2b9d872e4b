"""What every test runs under: one thread, its own latency store, and properties without a stopwatch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: results and timings must not depend on how many cores the machine has.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("latprune", deadline=None, print_blob=True)
settings.load_profile("latprune")

TIMED = (
    "latency/engines",
    "latency/measuring",
    "latency/storing/test_measuring_processes.py",
    "latency/storing/test_store.py",
    "latency/tabulating/test_build_engines.py",
    "pruning/test_prune_measured.py",
    "pruning/test_trials.py",
    "cli/test_doctor.py",
    "cli/test_measure.py",
    "test_interruption.py",
)
"""Tests that ask an engine for the time, or the machine for its processes: `make test` runs them one at a time, after all others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the timed tests."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).as_posix().startswith(TIMED):
            item.add_marker("timed")


# A shell ignores Ctrl-C for what it starts in the background, and ignoring is inherited: the tests that press it need it to arrive.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests' measurements out of the user's latency store, and the user's out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LATPRUNE_CACHE")
    os.environ["LATPRUNE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["LATPRUNE_CACHE"]
    else:
        os.environ["LATPRUNE_CACHE"] = before


@pytest.fixture(autouse=True)
def _short_trials(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of candidates end early on a busy machine: what is tested is the search, and it must cope with what it is told.

    Tests of the figures themselves are slow ones, and take the time that a user's run takes.
    """
    if request.node.get_closest_marker("slow") is None:
        from latprune.pruning import trials

        monkeypatch.setattr(trials, "DENSE_SECONDS", 4.0)
        monkeypatch.setattr(trials, "SECONDS", 4.0)
        monkeypatch.setattr(trials, "FRESH_SECONDS", 6.0)


@pytest.fixture(scope="module")
def made_up_engine() -> Iterator[None]:
    """The engine ``made-up``, known while a module's tests run: whole runs by its clock are quick, and the same on a busy machine."""
    from latprune.latency.engines.base import ENGINES
    from support.made_up_engine import MadeUpEngine

    ENGINES.register(MadeUpEngine.name, MadeUpEngine)
    yield
    ENGINES.remove(MadeUpEngine.name)
