"""Processes that measure into one store: killed, two at once, out of disk. Nothing that they reported is lost, and the next one goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from latprune.latency import NetworkSample, Store, design_points
from latprune.latency.tabulating import build
from support import measuring_process
from support.made_up_machine import BLOCKS, GROUPS, WIDTHS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")
NETWORKS = 64


def start(store: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, measuring_process.__file__, str(store), str(NETWORKS), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> list[str]:
    """What it said to the end."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out.split("\n")[:-1]


def finished_here(store: Path) -> list[str]:
    """What a process that runs undisturbed to the end says, without the seconds that one more process takes to start."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(build, "NetworkSampler", build.NetworkSampler)  # put back afterwards
        patch.setattr(sys, "argv", [measuring_process.__file__, str(store), str(NETWORKS)])
        assert measuring_process.main() == 0
    return said.getvalue().splitlines()


def stored(path: Path) -> list[NetworkSample]:
    with Store(path) as store:
        store.check()
        return store.networks()


def identity(widths: dict[str, int], removed: tuple[str, ...]) -> str:
    return json.dumps([sorted({**WIDTHS, **widths}.items()), sorted(removed)])


def design() -> list[str]:
    points = islice(design_points(list(GROUPS.values()), list(BLOCKS.values())), NETWORKS)
    return [identity(dict(point.widths), point.removed) for point in points]


def found(samples: list[NetworkSample]) -> list[str]:
    return [identity(dict(sample.widths), sample.removed) for sample in samples]


def predicted(said: list[str]) -> float:
    return float(said[-1].removeprefix("predicts "))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the tables of an undisturbed build predict."""
    store = tmp_path_factory.mktemp("undisturbed") / "s.sqlite"
    said = finished_here(store)
    assert found(stored(store)) == design()
    return predicted(said)


def test_killed_again_and_again_it_measures_each_network_once(tmp_path: Path, undisturbed: float) -> None:
    path = tmp_path / "s.sqlite"
    for lines, seconds in ((1, 0.0), (9, 0.004), (14, 0.011), (3, 0.0)):
        process = start(path)
        assert process.stdout is not None and process.stderr is not None
        said = [process.stdout.readline() for _ in range(lines)]
        time.sleep(seconds)
        process.kill()
        said += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        # A line cut off by the kill does not count as said.
        reported = int([line for line in said if line.endswith("\n")][-1])
        assert len(stored(path)) >= reported
    said = finished_here(path)
    assert int(said[0]) > reported
    assert found(stored(path)) == design()
    assert predicted(said) == pytest.approx(undisturbed, rel=1e-9), "the tables are those of a build that nobody killed"


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    both = [start(path), start(path)]
    for process in both:
        finish(process)
    samples = stored(path)
    assert set(found(samples)) == set(design())
    assert NETWORKS <= len(samples) <= 2 * NETWORKS
    assert all(len(sample.kernels) == 6 - 2 * len(sample.removed) for sample in samples)
    # Neither left a fit of its own share behind as the fit of all.
    said = finished_here(path)
    assert len(said) == 1 and len(stored(path)) == len(samples)
    with Store(path) as store:
        ((context, _),) = store.contexts()
        kept = store.fit(context, samples[0].fingerprint)
        assert kept is not None
    again = finished_here(path)
    assert again == said


MAKE = """
import sys, time
from latprune.latency.storing.store import Store
print("ready", flush=True)
sys.stdin.readline()
for path in sys.argv[1:]:
    Store(path).close()
"""


def test_processes_may_make_stores_at_the_same_moment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE, *(str(tmp_path / f"{index}.sqlite") for index in range(40))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate()[1] for process in processes] == [""] * 4
    for index in range(40):
        assert stored(tmp_path / f"{index}.sqlite") == []


def test_an_old_store_is_migrated_once_by_two_processes(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    shutil.copy(Path(__file__).parents[1] / "data" / "store-schema-1.sqlite", path)
    for process in [start(path), start(path)]:
        finish(process)
    samples = stored(path)
    assert found(samples[1:]) and set(found(samples[1:])) == set(design())
    assert samples[0].widths == {"a": 8, "b": 4}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with eight megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_while_measuring(small_disk: Path, undisturbed: float) -> None:
    path, filler = small_disk / "s.sqlite", small_disk / "filler"
    filler.write_bytes(bytes(8 * 2**20 - 190_000))
    process = start(path)
    out, err = process.communicate(timeout=240)
    assert process.returncode not in (0, -7, -11) and "no space left on the disk" in err, err
    assert len(err.splitlines()) == 1
    reported = int(out.splitlines()[-1])
    assert 0 < reported < NETWORKS
    filler.unlink()
    assert reported <= len(stored(path)) <= reported + 1
    said = finished_here(path)
    assert int(said[0]) > reported and found(stored(path)) == design()
    assert predicted(said) == pytest.approx(undisturbed, rel=1e-9)


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(8 * 2**20 - 8192))
    process = start(small_disk / "s.sqlite")
    _, err = process.communicate(timeout=240)
    assert process.returncode > 0 and len(err.splitlines()) == 1 and "store" in err, err


def test_a_quota_that_is_met_while_measuring(tmp_path: Path, undisturbed: float) -> None:
    path = tmp_path / "s.sqlite"
    process = start(path, "120000")
    out, err = process.communicate(timeout=240)
    assert process.returncode > 0 and "the system refused" in err and "intact" in err, err
    reported = int(out.splitlines()[-1])
    assert 0 < reported < NETWORKS
    assert reported <= len(stored(path)) <= reported + 1
    assert predicted(finished_here(path)) == pytest.approx(undisturbed, rel=1e-9)


def test_a_log_that_goes_while_a_store_is_opened_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    Store(path).close()
    present = Path.is_file
    # The log is seen, and gone a moment later: another process closed the store.
    monkeypatch.setattr(Path, "is_file", lambda self: present(self) or self.name.endswith("-wal"))
    with Store(path) as store:
        assert store.networks() == []


def test_a_store_that_another_process_makes_meanwhile_is_no_foreign_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes its tables after this one has asked for the version: what this one sees is of one moment."""
    path = tmp_path / "s.sqlite"
    plain = Store._use_a_write_ahead_log

    class Racing:
        """A connection behind each of whose statements another process finishes its store."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> object:
            return getattr(self._connection, name)

        def execute(self, *args: object) -> object:
            found = list(self._connection.execute(*args))  # type: ignore[call-overload]
            if not made:
                made.append(True)
                monkeypatch.setattr(Store, "_use_a_write_ahead_log", plain)
                Store(path).close()
            return Rows(found)

    class Rows(list):  # type: ignore[type-arg]
        def fetchone(self) -> object:
            return self[0]

        def fetchall(self) -> object:
            return list(self)

    made: list[bool] = []

    def racing(store: Store, timeout: float) -> None:
        plain(store, timeout)
        store._connection.execute("PRAGMA synchronous=FULL")
        store._connection.execute("PRAGMA foreign_keys=ON")
        store._connection = Racing(store._connection)  # type: ignore[assignment]

    monkeypatch.setattr(Store, "_use_a_write_ahead_log", racing)
    real = Racing.execute

    def only_the_version(self: Racing, *args: object) -> object:
        return real(self, *args) if "user_version" in str(args[0]) else self._connection.execute(*args)  # type: ignore[call-overload]

    monkeypatch.setattr(Racing, "execute", only_the_version)
    with Store(path) as store:
        assert store.contexts() == [] and made
