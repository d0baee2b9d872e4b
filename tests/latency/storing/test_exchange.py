from __future__ import annotations

import argparse
import dataclasses
import shutil
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
        assert export_samples(store, tmp_path / "one.parquet", contexts=[OTHER, OTHER]) == 2  # each once
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


@pytest.mark.parametrize(
    ("column", "value", "place"),
    [
        ("engine", None, "engine"),
        ("machine", "", "machine"),
        ("fingerprint", None, "fingerprint"),
        ("runs", None, "runs"),
        ("spread", float("nan"), "spread"),
        ("created", None, "created"),
        ("kernel_names", ["in"] * 3, "kernel_names"),
        ("kernel_signatures", ["x"] * 3, "kernel_sizes"),
        ("kernel_sizes", [[1]] * 3, "kernel_sizes"),
        ("widths", '{"stream": 8, "a": 8}', "widths"),
        ("widths", '{"stream": 8, "a": 8, "b": 0}', "widths"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_and_nothing_is_imported(tmp_path: Path, column: str, value: object, place: str) -> None:
    """The file is at fault: the store must not be called damaged."""
    import pyarrow
    import pyarrow.parquet as parquet

    with Store(tmp_path / "a.sqlite") as store:
        store.add(CONTEXT, networks(2))
        export_samples(store, tmp_path / "good.parquet")
    good = parquet.read_table(tmp_path / "good.parquet")
    rows = good.to_pylist()
    count = len(rows[1]["kernel_names"])
    rows[1][column] = value[:1] * count if isinstance(value, list) else value
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=good.schema), tmp_path / "bad.parquet")
    with Store(tmp_path / "b.sqlite") as store:
        with pytest.raises(FileFormatError, match=rf"rows\[1\]\.{place}"):
            import_samples(store, tmp_path / "bad.parquet")
        assert store.networks() == []


def test_columns_of_another_type_and_changed_bytes_are_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    with Store(tmp_path / "a.sqlite") as store:
        store.add(CONTEXT, networks(2))
        export_samples(store, tmp_path / "good.parquet")
    good = parquet.read_table(tmp_path / "good.parquet")
    index = good.column_names.index("ms")
    parquet.write_table(good.set_column(index, "ms", pyarrow.array(["a", "b"])), tmp_path / "text.parquet")
    with pytest.raises(FileFormatError, match="ms: .* as string; it must be double"):
        read_samples(tmp_path / "text.parquet")
    chunk = parquet.ParquetFile(tmp_path / "good.parquet").metadata.row_group(0).column(index)
    data = bytearray((tmp_path / "good.parquet").read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    (tmp_path / "changed.parquet").write_bytes(bytes(data))
    with pytest.raises(FileFormatError, match="cannot be read as Parquet"):
        read_samples(tmp_path / "changed.parquet")


def test_an_export_that_fails_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as parquet

    def full(table: object, path: str, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "x.parquet").write_text("before")
    monkeypatch.setattr(parquet, "write_table", full)
    with Store(":memory:") as store:
        store.add(CONTEXT, networks(1))
        with pytest.raises(OSError, match="space"):
            export_samples(store, tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


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
    assert "3 networks of 1 structure" in capsys.readouterr().out
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
    assert run("ls", "--store", first) == 0, "behind the action, where other commands have it"
    assert f"{first}: 1 set of conditions" in capsys.readouterr().out


def test_reading_commands_leave_no_store_and_no_file_where_there_is_none(tmp_path: Path) -> None:
    typo = str(tmp_path / "typo.sqlite")
    for action in (["ls"], ["show", "1"], ["check"], ["export", str(tmp_path / "x.parquet")]):
        with pytest.raises(InvalidArgumentError, match="no such file"):
            run(*action, "--store", typo)
    assert list(tmp_path.iterdir()) == []
    with Store(typo):
        pass
    with pytest.raises(InvalidArgumentError, match="holds nothing yet"):
        run("show", "1", "--store", typo)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(InvalidArgumentError, match="is a folder"):
        run("export", str(tmp_path / "folder.parquet"), "--store", typo)
    with pytest.raises(InvalidArgumentError, match="no networks to export"):
        run("export", str(tmp_path / "new" / "x.parquet"), "--store", typo)
    assert list((tmp_path / "new").iterdir()) == []


def test_an_empty_store_is_called_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.sqlite").touch()
    assert run("check", "--store", str(tmp_path / "a.sqlite")) == 0
    assert "sound, but empty" in capsys.readouterr().out


def test_of_several_files_all_are_taken_in_or_none(tmp_path: Path) -> None:
    with Store(tmp_path / "a.sqlite") as store:
        store.add(CONTEXT, networks(2))
        export_samples(store, tmp_path / "a.parquet")
    (tmp_path / "bad").write_text("neither of the two " * 100)
    before = {path.name for path in tmp_path.iterdir()}
    for action, good in (("import", "a.parquet"), ("merge", "a.sqlite")):
        with pytest.raises(FileFormatError, match="bad"):
            run(action, str(tmp_path / good), str(tmp_path / "bad"), "--store", str(tmp_path / "new" / "b.sqlite"))
    assert {path.name for path in tmp_path.iterdir()} == before
    with Store(":memory:") as store:
        with pytest.raises(FileFormatError, match="bad"):
            merge_stores(store, [tmp_path / "a.sqlite", tmp_path / "bad"])
        assert store.networks() == []


def test_a_merge_leaves_its_sources_as_they_were(tmp_path: Path) -> None:
    old = tmp_path / "old.sqlite"
    shutil.copy(Path(__file__).parents[1] / "data" / "store-schema-1.sqlite", old)
    content = old.read_bytes()
    with Store(":memory:") as store:
        assert merge_stores(store, [old]) == 1
    assert old.read_bytes() == content


def test_each_network_is_shown_with_its_time_and_clock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = networks(1)
    clock = {"scaling_governor": "powersave", "scaling_cur_freq": 2_100_000, "scaling_max_freq": 3_500_000}
    shown = [dataclasses.replace(first, created=created, extra=extra) for created, extra in ((1.75e9, clock), (1e300, {}))]
    with Store(tmp_path / "a.sqlite") as store:
        store.add(CONTEXT, shown)
    assert run("show", "1", "--store", str(tmp_path / "a.sqlite")) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].endswith("2025-06-15 15:06Z  powersave  2.10 of 3.50 GHz") and lines[1].endswith("1e+300 s")


def test_one_changed_bit_is_never_anything_but_a_clear_error(tmp_path: Path) -> None:
    with Store(":memory:") as store:
        store.add(CONTEXT, networks(2))
        export_samples(store, tmp_path / "good.parquet")
    good, data = read_samples(tmp_path / "good.parquet"), (tmp_path / "good.parquet").read_bytes()
    names = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # pages before it have checksums
    refused = 0
    for place in range(names * 8, len(data) * 8, 61):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "changed.parquet").write_bytes(changed)
        try:
            assert read_samples(tmp_path / "changed.parquet") == good
        except FileFormatError:
            refused += 1
    assert refused > 100
