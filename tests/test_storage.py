from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from latprune import storage
from latprune.errors import InvalidArgumentError
from latprune.storage import check_writable, replacing, write_atomic


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "t.json", tmp_path / "link.json"
    link.symlink_to(target)
    for content in ("first", "second"):
        write_atomic(link, content)
        assert link.is_symlink() and target.read_text() == content and not target.is_symlink()
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "there", target, link])


def test_a_pipe_stays_a_pipe_and_gets_the_content(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    for write in (lambda: write_atomic(pipe, b"all of it"), lambda: _in_pieces(pipe)):
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()
        check_writable(pipe)
        write()
        reader.join()
        assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    assert read == [b"all of it", b"some more"]


def _in_pieces(path: Path) -> None:
    with replacing(path) as staged:
        staged.write_bytes(b"some ")
        with staged.open("ab") as file:
            file.write(b"more")


def test_a_device_stays_a_device_and_its_error_is_said(tmp_path: Path) -> None:
    full = tmp_path / "full"
    try:
        os.mknod(full, 0o20666, os.makedev(1, 7))
        full.open("rb").close()
    except PermissionError:
        pytest.skip("devices of one's own need root and a file system that has them")
    with pytest.raises(OSError, match="No space left") as found:
        write_atomic(full, b"x")
    assert found.value.filename == str(full) and full.is_char_device()


def test_what_is_neither_a_file_nor_a_stream_is_refused_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for call in (check_writable, lambda path: write_atomic(path, "x")):
            with pytest.raises(InvalidArgumentError, match="is a socket; it must be a file"):
                call("socket")
            with pytest.raises(InvalidArgumentError, match="is a folder; it must be a file"):
                call(tmp_path)
        assert Path("socket").is_socket()


def test_the_file_that_output_goes_to_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_text("printed")
    monkeypatch.setattr(storage, "_is_open_as", lambda descriptor, found: descriptor == 1)
    with pytest.raises(InvalidArgumentError, match="own output goes to; name another"):
        write_atomic(tmp_path / "out", "x")
    assert (tmp_path / "out").read_text() == "printed"


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "t.json"
    for call in (check_writable, lambda path: write_atomic(path, "x")):
        with pytest.raises(FileNotFoundError) as found:
            call(missing)
        assert found.value.filename == str(missing)
    with pytest.raises(OSError, match="full") as said, replacing(tmp_path / "t.json") as staged:
        raise OSError(28, "full", str(staged))
    assert said.value.filename == str(tmp_path / "t.json") and not list(tmp_path.iterdir())


def test_a_check_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("before")
    check_writable(tmp_path / "t.json")
    check_writable(tmp_path / "new.json")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"] and (tmp_path / "t.json").read_text() == "before"
