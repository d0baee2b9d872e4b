from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from latprune.errors import EngineError, InvalidArgumentError
from latprune.graph import trace
from latprune.latency import ContextInfo, NetworkSample, Store, Target, design_points
from latprune.latency.fanout import FanoutProgress, sample_on_cluster
from latprune.latency.repeats import REPEAT, with_repeats

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RAY = str(Path(sys.executable).with_name("ray"))
PORT = 46379


def start(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    common = ["--object-store-memory=100000000", "--num-cpus=1", "--disable-usage-stats", "--block"]
    return subprocess.Popen([RAY, "start", *arguments, *common], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head without devices and a second node that offers two of them."""
    address = f"127.0.0.1:{PORT}"
    head = start("--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={tmp_path_factory.mktemp('ray')}")
    node = None
    try:
        deadline = time.monotonic() + 240
        connected = False
        while not connected:
            assert time.monotonic() < deadline and head.poll() is None
            try:
                ray.init(address=address, log_to_driver=False)
                connected = True
            except ConnectionError:
                time.sleep(1)
        node = start(f"--address={address}", "--resources", json.dumps({"board": 2}))
        while ray.cluster_resources().get("board", 0) < 2:
            assert time.monotonic() < deadline and node.poll() is None
            time.sleep(1)
        yield address
    finally:
        ray.shutdown()
        for process in (node, head):
            if process is not None:
                process.terminate()
                process.wait(60)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()


X = torch.zeros(1, 3, 16, 16)


def test_jobs_go_to_the_devices_and_a_lost_ones_to_another(cluster: str, tmp_path: Path) -> None:
    network = model()
    graph = trace(network, X)
    points = list(islice(design_points(list(graph.groups.values()), list(graph.blocks.values())), 12))
    workers: list[str] = []
    lost: list[int] = []

    def progress(state: FanoutProgress) -> None:
        workers.append(state.worker)
        lost.append(state.lost)
        if state.done == 4:
            os.kill(int(state.worker.rpartition(":")[2]), signal.SIGKILL)

    with Store(tmp_path / "s.sqlite") as store:
        done = sample_on_cluster(
            network, graph, X, Target(engine="openvino"), points, store, label="board", address=cluster, progress=progress
        )
        assert done == 12
        samples = store.networks()
    assert sorted(json.dumps(dict(item.widths), sort_keys=True) for item in samples) == sorted(
        json.dumps({**graph.dense_widths(), **point.widths}, sort_keys=True) for point in points
    )
    assert len(set(workers[:4])) == 2
    assert lost[-1] == 1
    assert len(set(workers[6:])) == 1


class Disturbed(Store):
    """Writes the tenth network that comes back as if a device had been interrupted for all of it."""

    written = 0

    def add(self, context: ContextInfo, networks: Iterable[NetworkSample]) -> int:
        (network,) = networks
        self.written += 1
        if self.written == 10:
            assert network.ms is not None
            network = replace(network, ms=3.0 * network.ms)
        return super().add(context, [network])


def test_networks_that_are_far_off_go_out_again(cluster: str, tmp_path: Path) -> None:
    network = model()
    graph = trace(network, X)
    points = list(islice(design_points(list(graph.groups.values()), list(graph.blocks.values())), 28))
    states: list[FanoutProgress] = []
    with Disturbed(tmp_path / "s.sqlite") as store:
        done = sample_on_cluster(
            network, graph, X, Target(engine="openvino"), points, store, label="board", address=cluster, progress=states.append
        )
        samples = store.networks()
    assert done == 28 == len(with_repeats(samples))
    repeats = [sample for sample in samples if REPEAT in sample.extra]
    assert (states[-1].done, states[-1].again) == (len(samples), len(repeats)) and states[-1].jobs == states[-1].done
    slow = samples[9]
    assert slow.created in {item.extra[REPEAT] for item in repeats}
    (merged,) = (item for item in with_repeats(samples) if item.created == slow.created)
    assert slow.ms is not None and merged.ms is not None and merged.ms < 0.8 * slow.ms


def test_no_device_is_said(cluster: str, tmp_path: Path) -> None:
    network = model()
    graph = trace(network, X)
    points = list(islice(design_points(list(graph.groups.values()), []), 1))
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(EngineError, match="offers the resource 'phone'"):
            sample_on_cluster(network, graph, X, Target(engine="openvino"), points, store, label="phone", address=cluster)
        with pytest.raises(InvalidArgumentError, match="points"):
            sample_on_cluster(network, graph, X, Target(engine="openvino"), [], store, label="board", address=cluster)


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_answers_is_said_at_once(address: str) -> None:
    """Ray itself asks for minutes."""
    network = model()
    graph = trace(network, X)
    points = list(islice(design_points(list(graph.groups.values()), []), 1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = address.format(free.getsockname()[1])
        with Store(":memory:") as store, pytest.raises(EngineError, match="no Ray cluster answers there"):
            sample_on_cluster(network, graph, X, Target(engine="openvino"), points, store, label="board", address=place)
