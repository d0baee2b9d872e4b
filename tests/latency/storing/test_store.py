from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latprune.errors import FileFormatError, InvalidArgumentError, LatpruneError
from latprune.latency import ContextInfo, KernelSample, NetworkSample, Store, Target, default_store_path
from latprune.latency.storing.store_schema import SCHEMA_VERSION

CONTEXT = ContextInfo(target=Target(engine="torch"), version="1.0", machine="test")


def network(index: int = 0, fingerprint: str = "f") -> NetworkSample:
    return NetworkSample(
        fingerprint=fingerprint,
        widths={"a": 8 + index, "b": 4},
        removed=("z", "y") if index % 2 else (),
        ms=1.5 + index,
        reference_ms=3.0,
        kernels=(
            KernelSample(kernel="conv", signature='{"kind":"conv"}', sizes=(3, 8 + index), ms=0.25),
            KernelSample(kernel="pool", signature='{"kind":"pool"}', sizes=(), ms=0.125),
        ),
        runs=20,
        spread=0.01,
        created=123.0,
        extra={"scaling_governor": "performance"},
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE network SET ms='x' WHERE id=2", r"network 2: ms \(='x'\) must be milliseconds, or nothing"),
        ("UPDATE network SET ms=x'00ff' WHERE id=2", "network 2: ms"),
        ("UPDATE network SET ms=9e999 WHERE id=2", "network 2: ms"),
        ("UPDATE network SET reference_ms='x' WHERE id=2", "network 2: reference_ms"),
        ("UPDATE network SET created='x' WHERE id=2", "network 2: created"),
        ("UPDATE network SET runs=1.5 WHERE id=2", "network 2: runs"),
        ("UPDATE network SET spread='x' WHERE id=2", "network 2: spread"),
        ("UPDATE network SET extra=0 WHERE id=2", r"network 2: extra \(=0\) must be an object"),
        ('UPDATE network SET widths=\'{"a": "b"}\' WHERE id=2', "network 2: widths"),
        ("UPDATE network SET removed='[1]' WHERE id=2", "network 2: removed"),
        ("UPDATE network SET widths='[1, 2]' WHERE id=2", "widths"),
        ("UPDATE sample SET ms='x' WHERE network=2 AND kernel='pool'", r"network 2, kernel 'pool': ms \(='x'\) must be milliseconds"),
        ("UPDATE sample SET ms=x'00' WHERE network=2", "network 2, kernel"),
        ("UPDATE sample SET steps='x' WHERE network=2", "network 2, kernel"),
    ],
)
def test_a_column_that_holds_something_else_is_damage_with_its_place(tmp_path: Path, change: str, words: str) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add(CONTEXT, [network(0), network(1)])
    connection = sqlite3.connect(tmp_path / "s.sqlite")
    connection.execute(change)
    connection.commit()
    connection.close()
    with Store(tmp_path / "s.sqlite") as store, pytest.raises(FileFormatError, match=f"damaged .*{words}"):
        store.networks(CONTEXT)


def test_round_trip(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        assert store.add(CONTEXT, [network(0), network(1), network(2, "other")]) == 3
    with Store(tmp_path / "s.sqlite") as store:
        store.check()
        found = store.networks(CONTEXT, "f")
        assert found[0] == network(0)
        assert set(found[1].removed) == {"y", "z"}
        assert [item.fingerprint for item in store.networks()] == ["f", "f", "other"]
        assert store.contexts() == [(CONTEXT, {"networks": 3, "structures": 2, "sweep": 0})]


@pytest.mark.parametrize(
    "other",
    [
        ContextInfo(target=Target(engine="torch"), version="1.1", machine="test"),
        ContextInfo(target=Target(engine="torch"), version="1.0", machine="another"),
        ContextInfo(target=Target(engine="torch", threads=2), version="1.0", machine="test"),
        ContextInfo(target=Target(engine="torch", batch=2), version="1.0", machine="test"),
        ContextInfo(target=Target(engine="torch", precision="bf16"), version="1.0", machine="test"),
        ContextInfo(target=Target(engine="onnxruntime"), version="1.0", machine="test"),
        ContextInfo(target=Target(engine="torch", device="cuda:0"), version="1.0", machine="test"),
    ],
)
def test_conditions_are_never_mixed(tmp_path: Path, other: ContextInfo) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add(CONTEXT, [network()])
        store.add(other, [network(1)])
        assert [item.widths["a"] for item in store.networks(CONTEXT)] == [8]
        assert [item.widths["a"] for item in store.networks(other)] == [9]
        assert store.remove(other) == 1
        assert len(store.networks()) == 1


def test_a_network_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    twice = network().kernels[:1] * 2
    broken = NetworkSample(**{**{key: getattr(network(), key) for key in NetworkSample.__slots__}, "kernels": twice})
    with Store(tmp_path / "s.sqlite") as store:
        # The network is at fault, not the store: nobody must move that away.
        with pytest.raises(InvalidArgumentError, match="the store is sound"):
            store.add(CONTEXT, [network(0), broken])
        assert len(store.networks()) == 1
        store.check()


def _write(path: str, count: int, offset: int) -> None:
    with Store(path) as store:
        for index in range(count):
            store.add(CONTEXT, [network(offset + index)])


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sqlite")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(path, 15, 100 * number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with Store(path) as store:
        store.check()
        assert len(store.networks()) == 45
        assert len({item.widths["a"] for item in store.networks()}) == 45
        assert all(len(item.kernels) == 2 for item in store.networks())


_WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_store import CONTEXT, network
from latprune.latency import Store
with Store(sys.argv[1]) as store:
    for index in range(100000):
        store.add(CONTEXT, [network(index)])
        print(index, flush=True)
"""


def _kill_while_writing(path: Path, seconds: float) -> int:
    """Start a writer, kill it, and return the last index that it said was written."""
    code = _WRITER.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split("\n")
    process.wait()
    process.stdout.close()
    complete = [first.strip(), *rest[:-1]]
    return int(complete[-1])


@pytest.mark.parametrize("seconds", [0.0, 0.137])
def test_a_killed_writer_loses_nothing_it_reported(tmp_path: Path, seconds: float) -> None:
    last = _kill_while_writing(tmp_path / "s.sqlite", seconds)
    with Store(tmp_path / "s.sqlite") as store:
        store.check()
        found = [item.widths["a"] - 8 for item in store.networks(CONTEXT)]
    assert found[: last + 1] == list(range(last + 1))
    assert len(found) <= last + 2


@pytest.mark.slow
def test_many_kills_lose_nothing(tmp_path: Path) -> None:
    for attempt in range(25):
        test_a_killed_writer_loses_nothing_it_reported(tmp_path / str(attempt), 0.004 * attempt)


def test_a_truncated_store_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        store.add(CONTEXT, [network(index) for index in range(200)])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(FileFormatError, match="damaged"), Store(path) as store:
        store.check()


def test_wherever_a_store_is_cut_off_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        store.add(CONTEXT, [network(index) for index in range(40)])
    data = path.read_bytes()
    pages = range(4096, len(data), 4096)
    for size in sorted({50, 100, 1000, *pages, *(page + 1 for page in pages), *(page + 2500 for page in pages), len(data) - 1}):
        if size < len(data):
            cut = tmp_path / f"{size}.sqlite"
            cut.write_bytes(data[:size])
            with pytest.raises(FileFormatError, match="damaged"), Store(cut) as store:
                store.networks()
                store.check()
            assert cut.read_bytes() == data[:size], "what is left may still be of use"


def test_values_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    for change in ("UPDATE network SET widths=x'00'", "UPDATE sample SET sizes='3,x'", "UPDATE sample SET signature=99"):
        path = tmp_path / f"{len(change)}.sqlite"
        with Store(path) as store:
            store.add(CONTEXT, [network()])
            store._connection.execute("PRAGMA foreign_keys=OFF")
            store._connection.execute(change)
        with Store(path) as store, pytest.raises(FileFormatError, match="damaged"):
            store.networks()
    with Store(path) as store:
        store._connection.execute("UPDATE context SET threads=0")
        with pytest.raises(FileFormatError, match="damaged"):
            store.contexts()


def test_a_torn_log_loses_the_last_networks_only(tmp_path: Path) -> None:
    path, log = tmp_path / "s.sqlite", tmp_path / "s.sqlite-wal"
    with Store(path) as store:
        store.add(CONTEXT, [network(index) for index in range(20)])
        copy = tmp_path / "torn.sqlite"
        for size in (log.stat().st_size, log.stat().st_size - 3000, log.stat().st_size // 2):
            shutil.copy(path, copy)
            Path(f"{copy}-wal").write_bytes(log.read_bytes()[:size])
            Path(f"{copy}-shm").unlink(missing_ok=True)
            with Store(copy) as torn:
                torn.check()
                found = torn.networks()
            assert found == store.networks()[: len(found)]
            assert len(found) == 20 if size == log.stat().st_size else 0 < len(found) < 20


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_text("widths and latencies " * 100)
    with pytest.raises(FileFormatError, match="damaged"):
        Store(path)
    assert path.read_text().startswith("widths")


def test_another_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE other (x)")
    connection.commit()
    connection.close()
    with pytest.raises(FileFormatError, match="not a latprune store"):
        Store(path)


@pytest.mark.parametrize(("schema", "message"), [(SCHEMA_VERSION + 1, "newer"), (-1, "damaged .schema -1")])
def test_a_schema_that_is_not_known_is_refused(tmp_path: Path, schema: int, message: str) -> None:
    path = tmp_path / "s.sqlite"
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={schema}")
    connection.commit()
    connection.close()
    for reading in (False, True):
        with pytest.raises(FileFormatError, match=message):
            Store(path, reading=reading)


@pytest.mark.parametrize(("schema", "extra"), [(1, {}), (2, {"scaling_governor": "performance"}), (3, {"scaling_governor": "performance"})])
def test_an_old_store_is_migrated(tmp_path: Path, schema: int, extra: dict[str, str]) -> None:
    path = tmp_path / "s.sqlite"
    shutil.copy(Path(__file__).parents[1] / "data" / f"store-schema-{schema}.sqlite", path)
    with Store(path) as store:
        store.check()
        (found,) = store.networks()
        assert found.widths == {"a": 8, "b": 4}
        assert found.extra == extra
        assert [kernel.steps for kernel in found.kernels] == [1, 1]
        store.keep_fit(CONTEXT, "f", "key", b"body")
        store.add(CONTEXT, [network(1)])
    with Store(path) as store:
        assert len(store.networks()) == 2


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add(CONTEXT, [network(0)])
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count={pages + 2}")
        with pytest.raises(LatpruneError, match="no space left"):
            store.add(CONTEXT, (network(index) for index in range(1, 2000)))
        store._connection.execute("PRAGMA max_page_count=1000000")
        written = len(store.networks())
        assert written >= 1
        store.check()
        assert store.add(CONTEXT, [network(5)]) == 1


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LatpruneError, match="name a store in a folder"):
        Store(tmp_path / "file" / "s.sqlite")
    monkeypatch.setenv("LATPRUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(LatpruneError, match="set LATPRUNE_CACHE"):
        Store()


def test_opening_and_reading_a_store_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path) as store:
        store.add(CONTEXT, [network(0), network(1)])
    os.utime(path, (1e9, 1e9))
    content = path.read_bytes()
    for reading in (False, True):
        with Store(path, reading=reading) as store:
            store.check()
            assert len(store.networks()) == 2
        assert path.read_bytes() == content and path.stat().st_mtime == 1e9 and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def sealed() -> Iterator[Callable[[Path], Path]]:
    """Copies files into a folder where this process may then write nothing, as on a read-only medium."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0

    def seal(*files: Path) -> Path:
        for file in files:
            shutil.copy(file, folder / file.name)
            (folder / file.name).chmod(0o444)
        folder.chmod(0o555)
        if root:  # whom no mode stops
            os.seteuid(65534)
        return folder

    yield seal
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("schema", [1, 2, 3, SCHEMA_VERSION])
def test_a_store_is_read_where_nothing_can_be_written(tmp_path: Path, sealed: Callable[..., Path], schema: int) -> None:
    path = tmp_path / "s.sqlite"
    if schema == SCHEMA_VERSION:
        with Store(path) as store:
            store.add(CONTEXT, [network()])
    else:
        shutil.copy(Path(__file__).parents[1] / "data" / f"store-schema-{schema}.sqlite", path)
    folder = sealed(path)
    with Store(folder / path.name, reading=True) as store:
        store.check()
        assert [item.widths for item in store.networks()] == [{"a": 8, "b": 4}]
        ((context, _),) = store.contexts()
        store.keep_fit(context, "f", "key", b"body")
        if schema == SCHEMA_VERSION:
            assert store.fit(context, "f") is None
            with pytest.raises(LatpruneError, match="cannot be written"):
                store.add(CONTEXT, [network(1)])
    with pytest.raises(LatpruneError, match="cannot be written.*name a store in a folder"):
        Store(folder / path.name)


def test_a_log_that_cannot_be_read_is_said(tmp_path: Path, sealed: Callable[..., Path]) -> None:
    path, log = tmp_path / "s.sqlite", tmp_path / "s.sqlite-wal"
    with Store(path) as store:
        store.add(CONTEXT, [network()])
        folder = sealed(path, log)
    with pytest.raises(LatpruneError, match="last networks are in s.sqlite-wal.*copy both files"):
        Store(folder / path.name, reading=True)


def test_an_old_store_is_read_without_being_changed(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    shutil.copy(Path(__file__).parents[1] / "data" / "store-schema-1.sqlite", path)
    content = path.read_bytes()
    with Store(path, reading=True) as store:
        assert len(store.networks()) == 1
    assert path.read_bytes() == content


def test_reading_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        Store(tmp_path / "new" / "s.sqlite", reading=True)
    (tmp_path / "empty.sqlite").touch()
    with Store(tmp_path / "empty.sqlite", reading=True) as store:
        assert store.contexts() == []
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("empty.sqlite", 0)]


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    for folder in (tmp_path, "."):
        with pytest.raises(LatpruneError, match="it is a folder"):
            Store(folder)


def test_default_path_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATPRUNE_CACHE", str(tmp_path / "cache"))
    assert default_store_path() == tmp_path / "cache" / "latency.sqlite"
    monkeypatch.delenv("LATPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform.startswith("linux"):
        assert default_store_path() == tmp_path / "latprune" / "latency.sqlite"
