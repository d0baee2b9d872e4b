from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from latprune.cli import main
from latprune.cli.loading import load_model
from latprune.errors import EngineError, InvalidArgumentError, MissingExtraError
from latprune.graph import ModelGraph, trace
from latprune.latency import ContextInfo, DesignPoint, NetworkSample, Store, Target, design_points
from latprune.latency.remote.fanout import FanoutProgress, sample_on_cluster
from latprune.latency.tabulating.repeats import REPEAT, with_repeats

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RAY = str(Path(sys.executable).with_name("ray"))
PORT, CLIENT_PORT = 46379, 46380


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A node in a folder of its own. It lacks ExecuTorch, whether or not that is installed here."""
    lacking = folder / "lacking" / "executorch"
    lacking.mkdir(parents=True, exist_ok=True)
    (lacking / "__init__.py").write_text("raise ModuleNotFoundError(name=__name__)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(lacking.parent), *filter(None, sys.path)])}
    common = ["--object-store-memory=100000000", "--num-cpus=1", "--disable-usage-stats", "--block"]
    return subprocess.Popen(
        [RAY, "start", *arguments, *common], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head without devices and two nodes, each of which offers one."""
    address = f"127.0.0.1:{PORT}"
    folder = tmp_path_factory.mktemp("ray")
    ports = [f"--port={PORT}", f"--ray-client-server-port={CLIENT_PORT}"]
    processes = [start(folder, "--head", *ports, "--include-dashboard=false", f"--temp-dir={folder}")]
    try:
        deadline = time.monotonic() + 240
        connected = False
        while not connected:
            assert time.monotonic() < deadline and processes[0].poll() is None
            try:
                ray.init(address=address, log_to_driver=False)
                connected = True
            except ConnectionError:
                time.sleep(1)
        for count, resources in enumerate(({"board": 1, "single": 1, "pair": 2}, {"board": 1}), start=1):
            # One after the other: nodes of one machine that start together take each other's ports.
            processes.append(start(folder, f"--address={address}", "--resources", json.dumps(resources)))
            while ray.cluster_resources().get("board", 0) < count:
                assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
                time.sleep(1)
        yield address
    finally:
        ray.shutdown()
        for process in reversed(processes):
            process.terminate()
            process.wait(60)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()


X = torch.zeros(1, 3, 16, 16)


def points_of(network: nn.Module, count: int) -> tuple[ModelGraph, list[DesignPoint]]:
    graph = trace(network, X)
    return graph, list(islice(design_points(list(graph.groups.values()), list(graph.blocks.values())), count))


def test_jobs_go_to_the_devices_and_a_lost_ones_to_another(cluster: str, tmp_path: Path) -> None:
    network = model()
    graph, points = points_of(network, 12)
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
    graph, points = points_of(network, 28)
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
    graph, points = points_of(network, 1)
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(EngineError, match="offers the resource 'phone'"):
            sample_on_cluster(network, graph, X, Target(engine="openvino"), points, store, label="phone", address=cluster)
        with pytest.raises(InvalidArgumentError, match="points"):
            sample_on_cluster(network, graph, X, Target(engine="openvino"), [], store, label="board", address=cluster)
        with pytest.raises(EngineError, match=r"offers 2 of the resource 'pair', which must be 1"):
            sample_on_cluster(network, graph, X, Target(engine="openvino"), points, store, label="pair", address=cluster)
        with pytest.raises(InvalidArgumentError, match=r"label \(='CPU'\)"):
            sample_on_cluster(network, graph, X, Target(engine="openvino"), points, store, label="CPU", address=cluster)


class Stopped(Exception):
    pass


def test_an_interrupted_run_goes_on_where_it_stopped(cluster: str, tmp_path: Path) -> None:
    network = model()
    graph, points = points_of(network, 8)
    points.append(points[3])
    states: list[FanoutProgress] = []

    def stop(state: FanoutProgress) -> None:
        if state.done == 5:
            raise Stopped

    def measure(store: Store, progress: Callable[[FanoutProgress], None]) -> int:
        target = Target(engine="openvino")
        return sample_on_cluster(network, graph, X, target, points, store, label="single", address=cluster, progress=progress)

    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(Stopped):
            measure(store, stop)
        assert measure(store, states.append) == 4
        assert [state.done for state in states] == [5, 6, 7, 8, 9] and states[-1].stored == 5
        assert len(store.networks()) == 9
        assert measure(store, states.append) == 0
        assert (states[-1].done, states[-1].jobs, states[-1].stored) == (9, 9, 9)


def test_the_models_files_need_not_be_on_the_nodes(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fanout_layers.py").write_text(
        "from torch import nn\n\n\ndef act(x):\n    return x.relu()\n\n\nclass Layer(nn.Conv2d):\n    pass\n"
    )
    (tmp_path / "fanout_nets.py").write_text(
        "import fanout_layers\nfrom fanout_layers import act\nfrom torch import nn\n\n\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = fanout_layers.Layer(3, 16, 3), fanout_layers.Layer(16, 8, 3)\n\n"
        "    def forward(self, x):\n        return self.b(act(self.a(x)))\n\n\n"
        "def net():\n    return Net()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    network = load_model(f"{tmp_path / 'fanout_nets.py'}:net")
    graph, points = points_of(network, 2)
    with Store(tmp_path / "s.sqlite") as store:
        assert sample_on_cluster(network, graph, X, Target(engine="openvino"), points, store, label="board", address=cluster) == 2
        assert not ray.cloudpickle.list_registry_pickle_by_value()
        network.lock = threading.Lock()
        with pytest.raises(InvalidArgumentError, match=r"model \(=Net\) cannot be sent to the devices \(TypeError: cannot pickle"):
            sample_on_cluster(network, graph, X, Target(engine="openvino"), points, store, label="board", address=cluster)
        assert not ray.cloudpickle.list_registry_pickle_by_value()


def test_why_the_devices_failed_is_said(cluster: str, tmp_path: Path) -> None:
    network = model()
    graph, points = points_of(network, 4)
    said: list[str] = []
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(EngineError, match=r"all 2 devices labelled 'board' were lost; 4 of 4 .* the last device: .*Foo"):
            target = Target(engine="openvino", device="Foo")
            sample_on_cluster(network, graph, X, target, points, store, label="board", address=cluster, report=said.append)
        assert sum("Foo" in text for text in said) == 2
        with pytest.raises(MissingExtraError, match=r"on the device .*: package 'executorch' is not installed") as caught:
            sample_on_cluster(network, graph, X, Target(engine="executorch"), points, store, label="board", address=cluster)
    assert (caught.value.exit_code, caught.value.extra) == (5, "executorch")


def test_a_device_that_another_run_holds_is_waited_for(cluster: str, tmp_path: Path) -> None:
    class Holder:
        def ready(self) -> None:
            pass

    holder = ray.remote(num_cpus=0, resources={"single": 1})(Holder).remote()
    network = model()
    graph, points = points_of(network, 1)
    said: list[str] = []

    def measure(store: Store, wait_seconds: float, report: Callable[[str], None]) -> int:
        target, place = Target(engine="openvino"), {"label": "single", "address": cluster}
        return sample_on_cluster(network, graph, X, target, points, store, **place, wait_seconds=wait_seconds, report=report)

    def release(text: str) -> None:
        said.append(text)
        ray.kill(holder)

    ray.get(holder.ready.remote())
    with Store(tmp_path / "s.sqlite") as store:
        with pytest.raises(EngineError, match=r"waited 1 s \(wait_seconds\) for a device labelled 'single', still held by another run"):
            measure(store, 1.0, said.append)
        assert not said
        assert measure(store, 120.0, release) == 1
    assert said == ["waiting for a device labelled 'single', held by another run"]


def test_a_client_measures_too(cluster: str, tmp_path: Path) -> None:
    """A process of its own: one that has joined a cluster cannot be its client besides."""
    pytest.importorskip("grpc")
    (tmp_path / "client_nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    pass\n\n\n"
        "def net():\n    return Net(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))\n"
    )
    command = ["measure", "--model", "client_nets.py:net", "--input", "1x3x16x16", "--max-networks", "3", "--store", "s.sqlite"]
    command += ["--ray", f"ray://127.0.0.1:{CLIENT_PORT}", "--label", "board"]
    code = "import sys; from latprune.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for words in ("3 networks added to s.sqlite, which held 0 already", "0 networks added to s.sqlite, which held 3 already"):
        ran = subprocess.run(
            [sys.executable, "-c", code, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert ran.returncode == 0 and words in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_answers_is_said_at_once(address: str) -> None:
    """Ray itself asks for minutes."""
    network = model()
    graph, points = points_of(network, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = address.format(free.getsockname()[1])
        with Store(":memory:") as store, pytest.raises(EngineError, match="no Ray cluster answers there"):
            sample_on_cluster(network, graph, X, Target(engine="openvino"), points, store, label="board", address=place)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ray", "foo", "--label", "board"], "address (='foo') must be ray://HOST:PORT, HOST:PORT or 'auto'"),
        (["--ray", "127.0.0.1:70000", "--label", "board"], "address (='127.0.0.1:70000') must be"),
        (["--ray", "auto", "--label", "GPU"], "label (='GPU') is a resource of Ray's own"),
        (["--ray", "auto", "--label", "board", "--max-networks", "-3"], "--max-networks (=-3)"),
    ],
)
def test_arguments_that_break_a_rule_are_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["measure", "--model", "latprune.zoo:cifar_resnet", "--model-arg", "depth=8", "--input", "1x3x32x32"]
    assert main([*command, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_client_without_rays_extra_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model()
    graph, points = points_of(network, 1)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "grpc" else find(name, *rest))
    with Store(":memory:") as store, pytest.raises(MissingExtraError, match=r"'ray\[client\]'.*latprune\[ray\]"):
        sample_on_cluster(network, graph, X, Target(engine="openvino"), points, store, label="board", address="ray://127.0.0.1:1")
