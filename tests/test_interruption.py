"""`kill -9` while measuring and while fine-tuning: the same command goes on, and nothing written is lost."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import latprune
from support.prune_job import network

JOB = Path(__file__).parent / "support" / "prune_job.py"


def command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "latprune.cli", "prune", "--model", f"{JOB}:network", "--input", "1x1x32x32"),
        *("--budget", "60%", "--engine", "onnxruntime", "--data", f"{JOB}:train", "--test-data", f"{JOB}:test_images"),
        *("--importance-batches", "2", "--epochs", "2", "--train-threads", "1"),
        *("--store", str(folder / "latency.sqlite"), "-o", str(folder / "run")),
    ]


def run_until(folder: Path, text: str) -> str:
    """Start the command and kill it as soon as it says ``text``; what it had said."""
    process = subprocess.Popen(command(folder), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if text in line:
            process.kill()
            break
    process.stderr.close()
    process.wait()
    assert text in said, said
    return said


def rows(store: Path) -> int:
    """Stored networks; the file must be whole."""
    with sqlite3.connect(store) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        return int(connection.execute("select count(*) from network").fetchone()[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = tmp_path / "latency.sqlite"
    run_until(tmp_path, "latency tables: 16 networks")
    measured = rows(store)
    assert measured >= 15

    # The second life finds the measurements and is killed while it trains.
    said = run_until(tmp_path, "epoch 1/2")
    assert "latency tables: 16 networks" not in said
    after = rows(store)
    assert after > measured
    time.sleep(0.2)
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["pruner"]["stages_done"] == 1 and state["fitted"] == 0

    done = subprocess.run(command(tmp_path), capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming after stage 1 of 1" in done.stderr
    assert "latency tables" not in done.stderr
    assert rows(store) == after
    record = json.loads((tmp_path / "run" / "result" / "result.json").read_text())
    assert [a["epoch"] for a in record["accuracies"] if a["epoch"]] == [1.0, 2.0]
    assert record["edits"] == state["pruner"]["edits"]
    restored = latprune.restore(network, tmp_path / "run" / "result")
    assert sum(p.numel() for p in restored.parameters()) == record["pruned"]["parameters"]
