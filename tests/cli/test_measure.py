from __future__ import annotations

from pathlib import Path

import pytest

from latprune.cli import main

MEASURE = ["measure", "--model", "none.py:none", "--input", "1x3x24x24"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "-1"], "--seed (=-1) must be at least 0"),
        (["--context", "1", "--engine", "openvino"], "--engine does nothing with --context"),
        (["--context", "1", "--threads", "1"], "--threads does nothing with --context"),
        (["--context", "1", "--max-networks", "7"], "--max-networks does nothing with --context"),
        (["--context", "1", "--seed", "0"], "--seed does nothing with --context"),
        (["--plan", "kit.zip", "--results", "r.json", "--engine", "openvino"], "--engine (='openvino') must be 'onnxruntime'"),
        (["--plan", "kit.zip", "--results", "r.json", "--threads", "3"], "--threads does nothing with --results"),
        (["--plan", "kit.zip"], "--plan (='kit.zip') exists; choose another name"),
        (["--plan", "kit.zip", "--results", "r.json", "--again", "./kit.zip"], "is the file of --plan"),
        (["--plan", "kit.zip", "--results", "r.json", "--again", "link.zip"], "is the file of --plan"),
        (["--plan", "kit.zip", "--results", "r.json", "--again", "r.json"], "is the file of --results"),
    ],
)
def test_what_would_be_ignored_or_lost_is_refused_before_anything_else(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("kit.zip", "r.json"):
        (tmp_path / name).write_text("the one before")
    (tmp_path / "link.zip").symlink_to("kit.zip")
    assert main([*MEASURE, *options]) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "kit.zip").read_text() == "the one before"


@pytest.mark.parametrize(
    ("option", "file"),
    [
        (["--store", "s.sqlite"], "s.sqlite"),
        (["--store", "s.sqlite", "--context", "1"], "link"),
        (["--store", "new.sqlite"], "new.sqlite"),
        ([], "cache/latency.sqlite"),
        (["--weights", "w.safetensors"], "w.safetensors"),
        ([], "nets.py"),
        (["--model", "nets:net"], "nets.py"),
        (["--plan", "kit.zip", "--results", "r.json", "--again", "s.sqlite", "--store", "s.sqlite"], None),
    ],
)
def test_neither_the_store_nor_what_the_model_is_made_of_is_written_over(
    option: list[str], file: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATPRUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    for name in ("s.sqlite", "w.safetensors", "nets.py", "kit.zip", "r.json", "cache/latency.sqlite"):
        (tmp_path / name).write_text("the one before")
    (tmp_path / "link").symlink_to("s.sqlite")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    output = [] if file is None else ["-o", file]
    assert main(["measure", "--model", "nets.py:net", "--input", "1x3x24x24", *option, *output]) == 2
    assert "itself, which would be lost" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that no one can write is needed")
def test_an_output_that_cannot_be_written_is_found_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MEASURE, "-o", "/proc/t.json"]) == 2
    said = capsys.readouterr().err
    assert "--output (='/proc/t.json') cannot be written" in said and ".tmp" not in said
