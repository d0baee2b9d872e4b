"""`kill -9` while measuring and while fine-tuning: the same command goes on, and nothing written is lost."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import latprune
from support.prune_job import network

JOB = Path(__file__).parent / "support" / "prune_job.py"


def command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "latprune.cli", "prune", "--model", f"{JOB}:network", "--input", "1x1x32x32"),
        *("--budget", "60%", "--engine", "onnxruntime", "--data", f"{JOB}:train", "--test-data", f"{JOB}:test_images"),
        *("--importance-batches", "2", "--epochs", "2", "--train-threads", "1", "--progress", "json"),
        *("--store", str(folder / "latency.sqlite"), "-o", str(folder / "run")),
    ]


def run_until(folder: Path, stretch: str, done: int) -> list[dict[str, Any]]:
    """Start the command and kill it as soon as it says that ``done`` of ``stretch`` is done; what it had said."""
    process = subprocess.Popen(command(folder), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said: list[dict[str, Any]] = []
    for line in process.stderr:
        said.append(json.loads(line))
        if said[-1].get("stretch") == stretch and said[-1].get("done", 0) >= done:
            process.kill()
            break
    process.stderr.close()
    process.wait()
    assert said[-1].get("stretch") == stretch, said
    return said


def seen(said: list[dict[str, Any]]) -> int:
    """Networks that the tables held when they were first spoken of."""
    return next(int(event["done"]) for event in said if event.get("stretch") == "latency tables" and event.get("done"))


def rows(store: Path) -> int:
    """Stored networks; the file must be whole."""
    with sqlite3.connect(store) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        return int(connection.execute("select count(*) from network").fetchone()[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = tmp_path / "latency.sqlite"
    run_until(tmp_path, "latency tables", 16)
    measured = rows(store)
    assert measured >= 15

    # The second life finds the measurements and is killed while it trains.
    said = run_until(tmp_path, "training", 1)
    assert seen(said) > 15
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
