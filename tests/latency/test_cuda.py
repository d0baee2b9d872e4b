"""CUDA without a GPU: what is said to the device and in which order, with the device's side made up. With one, the engines' contract."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latprune.errors import EngineError
from latprune.latency import Target, get_engine, target_context
from latprune.latency.engines import onnxruntime as ort_engine
from latprune.latency.engines.inputs import evaluation_copy, prepare_inputs
from latprune.latency.engines.torch_eager import EagerNetwork
from latprune.latency.engines.torch_network import cuda_conditions, torch_device, torch_machine
from latprune.latency.testing import EngineContract

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CUDA = Target(engine="torch", device="cuda:0")


@needs_gpu
class TestTorchOnCuda(EngineContract):
    engine_name, device = "torch", "cuda:0"


@needs_gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestTorchCompileOnCuda(EngineContract):
    engine_name, device = "torch_compile", "cuda:0"


class Log(list[str]):
    """What the made-up device was told, in order."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Log:
    """A GPU that only keeps a log; its clock advances by a millisecond with each event."""
    log = Log()

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing
            self.moment = 0

        def record(self) -> None:
            log.append("record")
            self.moment = sum(item == "record" for item in log)

        def synchronize(self) -> None:
            log.append("event synchronised")

        def elapsed_time(self, end: Event) -> float:
            return float(end.moment - self.moment)

    @contextlib.contextmanager
    def current(found: torch.device) -> Iterator[None]:
        log.append(f"enter {found}")
        yield
        log.append("leave")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda found=None: log.append("synchronised"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("sleep"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda found: f"Made-up GPU {found.index}")
    return log


class Pair(nn.Module):
    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.log = log

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append("forward")
        return self.second(self.first(x))


def eager(log: Log, target: Target = CUDA) -> EagerNetwork:
    """The pair on the CPU, which takes itself for a network on a GPU."""
    inputs = prepare_inputs(torch.randn(1, 4), target, cast=True)
    return EagerNetwork(Pair(log).eval(), inputs, target, torch.device("cuda", 0), True, 0.0)


def test_a_run_is_waited_for_and_timed_on_its_own_device(device: Log) -> None:
    network = eager(device)
    network.run()
    assert device == ["enter cuda:0", "forward", "synchronised", "leave"]
    device.clear()
    assert network.timed_run() == 1.0
    assert device == ["enter cuda:0", "record", "forward", "record", "event synchronised", "leave"]
    network.close()
    with pytest.raises(EngineError, match="closed"):
        network.run()


def test_a_profile_on_cuda_is_read_after_the_device_is_done(device: Log) -> None:
    network = eager(device)
    entries = network.profile(4)
    assert [(entry.path, entry.ms) for entry in entries] == [(None, 1.0), ("first", 1.0), ("second", 1.0)]
    run = device[-6:]
    assert run == ["forward", "record", "record", "record", "synchronised", "leave"] and "sleep" not in device


def test_kernels_alone_are_timed_with_a_head_start(device: Log) -> None:
    network = eager(device)
    entries = network.laps(3, ahead=True)
    assert [entry.path for entry in entries] == [None, "first", "second"]
    start = len(device) - 1 - device[::-1].index("sleep")
    assert device[start:] == ["sleep", "record", "forward", "record", "record", "record", "synchronised", "leave"]


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_precision_is_what_the_target_says_and_the_process_gets_its_own_back(device: Log, precision: str, tf32: bool) -> None:
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    cudnn.benchmark = True
    try:
        with pytest.raises(KeyError), cuda_conditions(torch.device("cuda", 0), precision):
            assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (tf32, tf32, False)
            raise KeyError
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before[:2] and cudnn.benchmark
    finally:
        cudnn.benchmark = before[2]


def test_devices_are_named_with_their_index(device: Log) -> None:
    assert torch_device(CUDA) == torch.device("cuda", 0)
    # 'cuda' is the process's current one; a model's parameters say which.
    assert torch_device(Target(engine="torch", device="cuda")) == torch.device("cuda", 1)
    with pytest.raises(EngineError, match="one of 2 CUDA devices"):
        torch_device(Target(engine="torch", device="cuda:2"))


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_devices_that_would_not_be_waited_for_are_refused(name: str) -> None:
    for engine in ("torch", "torch_compile"):
        with pytest.raises(EngineError, match="must be a cpu or cuda device"):
            get_engine(engine).compile(nn.Linear(4, 4), torch.randn(1, 4), Target(engine=engine, device=name))


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="needs CUDA"):
        get_engine("torch").compile(nn.Linear(4, 4), torch.randn(1, 4), CUDA)
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        get_engine("onnxruntime").compile(nn.Linear(4, 4), torch.randn(1, 4), Target(engine="onnxruntime", device="cuda:0"))


@pytest.mark.parametrize("engine", ["torch", "torch_compile", "onnxruntime", "openvino"])
def test_tf32_is_not_for_processors(engine: str) -> None:
    with pytest.raises(EngineError, match="tf32"):
        get_engine(engine).compile(nn.Linear(4, 4), torch.randn(1, 4), Target(engine=engine, precision="tf32"))


def test_measurements_of_two_gpus_are_not_mixed(device: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = {target_context(Target(engine="torch", device=name)).machine for name in ("cpu", "cuda:0", "cuda:1")}
    assert len(machines) == 3 and torch_machine(CUDA).startswith("Made-up GPU 0 (cuDNN ")
    monkeypatch.setattr(ort_engine, "cuda_name", lambda index: f"Another {index}")
    machine = get_engine("onnxruntime").machine(Target(engine="onnxruntime", device="cuda:1"))
    assert machine.startswith("Another 1, ")
    assert get_engine("openvino").machine(Target()) == target_context(Target(engine="torch")).machine


def test_models_and_inputs_are_brought_to_the_device() -> None:
    """The device without storage stands in for another one."""
    other = torch.device("meta")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    held = evaluation_copy(model, CUDA, cast=True, device=other)
    assert {tensor.device for tensor in (*held.parameters(), *held.buffers())} == {other}
    assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}
    assert evaluation_copy(model, CUDA, cast=True) is model
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    for keep in (True, False):
        moved = prepare_inputs(x, Target(batch=3), cast=True, device=other, keep_format=keep).args[0]
        assert moved.device == other and moved.shape[0] == 3
        assert moved.is_contiguous(memory_format=torch.channels_last) is keep and moved.is_contiguous() is not keep


def onnxruntime_network(**options: Any) -> Any:
    return get_engine("onnxruntime").compile(nn.Linear(4, 2).eval(), torch.randn(1, 4), Target(engine="onnxruntime"), **options)


def test_onnxruntime_binds_inputs_and_outputs_once() -> None:
    with onnxruntime_network() as network:
        (expected,) = network.outputs()
        # The processor's memory stands in for the device's.
        network._device = ("cpu", 0)
        network._binding = network._bound(network._session)
        network._feed.clear()
        network.run()
        assert np.array_equal(network.outputs()[0], expected)
        network.close()
        with pytest.raises(EngineError, match="closed"):
            network.run()


def test_onnxruntime_does_not_fall_back_to_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    given: list[Any] = []

    class Session:
        def __init__(self, data: bytes, options: Any, providers: list[Any]) -> None:
            given.extend(providers)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    engine = get_engine("onnxruntime")
    for precision, tf32 in (("fp32", 0), ("tf32", 1)):
        with pytest.raises(EngineError, match="could not start CUDAExecutionProvider"):
            target = Target(engine="onnxruntime", device="cuda:1", precision=precision)
            engine.compile(nn.Linear(4, 4).eval(), torch.randn(1, 4), target)
        assert given.pop() == ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": tf32})


def test_onnxruntimes_steps_on_cuda_take_what_their_kernels_take() -> None:
    def step(name: str, *kernels: float) -> list[dict[str, Any]]:
        launched = {"cat": "Node", "name": f"{name}_kernel_time", "dur": 900.0, "args": {"op_name": "Gemm"}}
        return [launched, *({"cat": "Kernel", "name": "sm90", "dur": ms, "args": {}} for ms in kernels)]

    events = [event for _ in range(4) for event in (*step("a", 3.0, 4.0), *step("b"), *step("c", 5.0))]
    with onnxruntime_network(profile=True) as network:
        network._device = ("cuda", 0)
        entries = network._read(events, 1, 3)
        assert [(entry.name, entry.ms) for entry in entries] == [("a", pytest.approx(0.007)), ("b", 0.0), ("c", pytest.approx(0.005))]
        with pytest.raises(EngineError, match="without CUDA profiling"):
            network._read([event for event in events if event["cat"] == "Node"], 1, 3)
