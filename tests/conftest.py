"""What every test runs under: one thread, its own latency store, and properties without a stopwatch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: results and timings must not depend on how many cores the machine has.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("latprune", deadline=None, print_blob=True)
settings.load_profile("latprune")


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
