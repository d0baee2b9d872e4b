"""A sweep over a Ray cluster of one node: one cell at a time, and a cell that dies is a row."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import latprune
from latprune.errors import EngineError
from latprune.sweeping import Cell, grid, sweep_with
from latprune.zoo import digits_resnet

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PORT = 46479


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ray")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={PORT}", "--include-dashboard=false"]
    command += ["--resources", json.dumps({"latprune": 1}), "--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats", "--block"]
    command += ["--object-store-memory=100000000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    node = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while True:
        assert time.monotonic() < deadline and node.poll() is None
        try:
            socket.create_connection(("127.0.0.1", PORT), timeout=1).close()
            break
        except OSError:
            time.sleep(1)
    yield f"127.0.0.1:{PORT}"
    ray.shutdown()
    node.terminate()
    node.wait(60)


def test_cells_run_one_at_a_time_and_a_lost_one_is_run_again(cluster, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()

    def job(cell: Cell, folder: Path):
        start = time.time()
        if cell.seed == 1 and not (marks / "died").exists():
            (marks / "died").write_text("")
            os._exit(1)
        torch.manual_seed(0)
        x = torch.randn(1, 1, 32, 32)
        result = latprune.prune(digits_resnet(), x, budget=cell.budgets, method=cell.method, folder=folder, measure_latency=False)
        (marks / f"{cell.seed}-{cell.method}").write_text(json.dumps([start, time.time()]))
        return result

    cells = grid(budgets=["flops=60%"], methods=["uniform", "sp_lamp"], engines=["openvino"], seeds=[0, 1])
    found = sweep_with(job, cells, folder=tmp_path / "sweep", ray_address=cluster)
    assert sorted(row.answer for row in found.rows) == ["failed", "pruned", "pruned", "pruned"]
    times = sorted(json.loads(path.read_text()) for path in marks.glob("*-*"))
    assert len(times) == 3 and all(ended <= begun for (_, ended), (begun, _) in zip(times, times[1:], strict=False))
    again = sweep_with(job, cells, folder=tmp_path / "sweep", ray_address=cluster)
    assert [row.answer for row in again.rows] == ["pruned"] * 4


def test_nobody_answers(tmp_path):
    cells = grid(budgets=["flops=60%"], methods=["uniform"], engines=["openvino"], seeds=[0])
    with pytest.raises(EngineError, match="no Ray cluster"):
        sweep_with(lambda cell, folder: None, cells, folder=tmp_path, ray_address="127.0.0.1:46999")
