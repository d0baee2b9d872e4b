from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from latprune.cli import table
from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.latency import (
    ContextInfo,
    DesignPoint,
    NetworkSample,
    Store,
    Target,
    export_samples,
    import_samples,
    merge_stores,
    read_samples,
)
from support.made_up_machine import CONTEXT, MadeUpMachine

pytest.importorskip("pyarrow")
OTHER = ContextInfo(target=Target(engine="openvino", threads=2), version="7", machine="a board")


def networks(count: int, seed: int = 0) -> list[NetworkSample]:
    machine = MadeUpMachine(seed)
    return [machine.sample(DesignPoint(widths={"a": 8 * (index + 1)}, removed=("b",) if index % 2 else ())) for index in range(count)]


def test_export_and_import_keep_every_value(tmp_path: Path) -> None:
    with Store(tmp_path / "a.sqlite") as store:
        store.add(CONTEXT, networks(4))
        store.add(OTHER, networks(2, seed=1))
        assert export_samples(store, tmp_path / "all.parquet") == 6
        assert export_samples(store, tmp_path / "one.parquet", contexts=[OTHER]) == 2
        expected = store.networks(CONTEXT)
    with Store(tmp_path / "b.sqlite") as store:
        assert import_samples(store, tmp_path / "one.parquet") == 2
        assert import_samples(store, tmp_path / "all.parquet") == 4
        assert import_samples(store, tmp_path / "all.parquet") == 0
        assert store.networks(CONTEXT) == expected
        assert {context for context, _ in store.contexts()} == {CONTEXT, OTHER}


def test_merge(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        with Store(tmp_path / f"{name}.sqlite") as store:
            store.add(CONTEXT, networks(3, seed))
    with Store(tmp_path / "a.sqlite") as store:
        assert merge_stores(store, [tmp_path / "b.sqlite", tmp_path / "b.sqlite"]) == 3
        assert len(store.networks(CONTEXT)) == 6
        with pytest.raises(InvalidArgumentError, match="does not exist"):
            merge_stores(store, [tmp_path / "none.sqlite"])


def test_foreign_and_broken_files_are_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(FileFormatError, match="Parquet"):
        read_samples(tmp_path / "text.parquet")
    parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(FileFormatError, match="no file of latency samples"):
        read_samples(tmp_path / "other.parquet")
    with Store(tmp_path / "a.sqlite") as store:
        store.add(CONTEXT, networks(2))
        export_samples(store, tmp_path / "good.parquet")
    good = parquet.read_table(tmp_path / "good.parquet")
    parquet.write_table(good.drop_columns(["ms"]), tmp_path / "hole.parquet")
    with pytest.raises(FileFormatError, match="lacks the columns ms"):
        read_samples(tmp_path / "hole.parquet")
    index = good.column_names.index("reference_ms")
    parquet.write_table(good.set_column(index, "reference_ms", pyarrow.array([1.0, -1.0])), tmp_path / "negative.parquet")
    with pytest.raises(FileFormatError, match=r"rows\[1\]"):
        read_samples(tmp_path / "negative.parquet")


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    table.add_parser(parser.add_subparsers())
    args = parser.parse_args(["table", *arguments])
    return int(args.run(args))


def test_table_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, file = (str(tmp_path / name) for name in ("a.sqlite", "b.sqlite", "x.parquet"))
    with Store(first) as store:
        store.add(CONTEXT, networks(3))
    assert run("--store", first, "ls") == 0
    assert "3 networks of 1 structures" in capsys.readouterr().out
    assert run("--store", first, "show", "1") == 0
    assert capsys.readouterr().out.count("kernels") == 3
    assert run("--store", first, "export", file, "--context", "1") == 0
    assert run("--store", second, "import", file) == 0
    assert "3 networks added" in capsys.readouterr().out
    assert run("--store", second, "merge", first) == 0
    assert "0 networks added" in capsys.readouterr().out
    assert run("--store", second, "check") == 0
    with pytest.raises(InvalidArgumentError, match="between 1 and 1"):
        run("--store", first, "show", "2")
