"""CUDA without a GPU: what is said to the device and in which order, with the device's side made up. With one, the engines' contract."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
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
from latprune.latency.machine import cuda_name
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
    inputs = prepare_inputs(torch.randn(1, 4), target, dtype=torch.float32)
    return EagerNetwork(Pair(log).eval(), inputs, target, torch.device("cuda", 0), True, 0.0)


def test_a_run_is_waited_for_and_timed_on_its_own_device(device: Log) -> None:
    network = eager(device)
    network.run()
    assert device == ["enter cuda:0", "forward", "synchronised", "leave"]
    device.clear()
    assert network.timed_run() == 1.0
    assert device == ["enter cuda:0", "record", "forward", "record", "event synchronised", "leave"]
    held = weakref.ref(network._inputs.args[0])
    network.close()
    assert held() is None, "a closed network must not hold the device's memory"
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


# What a user may have set, by newer and older ways.
SETTINGS = [
    "pass",
    "matmul.fp32_precision = 'tf32'",
    "cudnn.conv.fp32_precision = 'ieee'",
    "cudnn.rnn.fp32_precision = 'ieee'; matmul.fp32_precision = 'ieee'",
    "cudnn.fp32_precision = 'ieee'",
    "backends.fp32_precision = 'tf32'",
    "backends.fp32_precision = 'bf16'; backends.mkldnn.fp32_precision = 'ieee'",
    "torch.set_float32_matmul_precision('medium')",
    "torch.set_float32_matmul_precision('high'); cudnn.allow_tf32 = False",
    "matmul.allow_tf32 = True; cudnn.benchmark = True",
]
# For each of them, what two new processes read, and go on to read when a setting that others follow changes: one without measurements, and
# one with three. What was once set cannot be unset, so that no test's own process would do.
PROCESSES = """
import contextlib, os, sys
import torch
from latprune.latency.engines.torch_network import cuda_conditions

backends, cudnn, matmul = torch.backends, torch.backends.cudnn, torch.backends.cuda.matmul
mkldnn = backends.mkldnn
torch.cuda.device = contextlib.nullcontext

def readable(read):
    try:
        return read()
    except RuntimeError:
        return "refused"

def state():
    owners = (backends, cudnn, matmul, cudnn.conv, cudnn.rnn, mkldnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    older = (torch.get_float32_matmul_precision, lambda: matmul.allow_tf32, lambda: cudnn.allow_tf32)
    return [owner.fp32_precision for owner in owners], [readable(read) for read in older], cudnn.benchmark

def measure(precision):
    wanted, older = ("tf32", "high") if precision == "tf32" else ("ieee", "highest")
    with contextlib.suppress(KeyError), cuda_conditions(torch.device("cuda", 0), precision):
        assert [owner.fp32_precision for owner in (matmul, cudnn.conv, cudnn.rnn)] == [wanted] * 3
        assert torch.get_float32_matmul_precision() == older and matmul.allow_tf32 == (wanted == "tf32") and not cudnn.benchmark
        raise KeyError

for setting in sys.argv[1:]:
    for precisions in ((), ("fp32", "tf32", "bf16")):
        if os.fork():
            assert os.wait()[1] == 0, setting
            continue
        exec(setting)
        for precision in precisions:
            measure(precision)
        states = [state()]
        for owner in (backends, cudnn):
            for precision in ("tf32", "ieee", "none"):
                owner.fp32_precision = precision
                states.append(state())
        print(states, flush=True)
        os._exit(0)
"""


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this PyTorch has no precision per operation")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_precision_is_what_the_target_says_and_the_process_gets_its_own_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROCESSES, *SETTINGS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    states = done.stdout.splitlines()
    for setting, without, measured in zip(SETTINGS, states[::2], states[1::2], strict=True):
        assert without == measured, setting


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_older_pytorch_gets_its_settings_back_too(device: Log, monkeypatch: pytest.MonkeyPatch, precision: str, tf32: bool) -> None:
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    newer = type(matmul).__getattr__

    def older(self: Any, name: str) -> Any:
        if name == "fp32_precision":
            raise AttributeError(name)
        return newer(self, name)

    monkeypatch.setattr(type(matmul), "__getattr__", older)
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    torch.set_float32_matmul_precision("medium")
    cudnn.benchmark = True
    try:
        with pytest.raises(KeyError), cuda_conditions(torch.device("cuda", 0), precision):
            assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (tf32, tf32, False)
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
        assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark) == (True, before[1], True)
    finally:
        torch.set_float32_matmul_precision(before[0])
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


LISTED = """GPU 0: Tesla T4 (UUID: GPU-1aaa-0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-2bbb-1)
  MIG 3g.20gb     Device  0: (UUID: MIG-4ddd-0)
GPU 2: Tesla T4 (UUID: GPU-1aac-2)
"""


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Two kinds of GPU, as nvidia-smi lists them; the caller says what CUDA is told of them."""
    listed = SimpleNamespace(stdout=LISTED)
    monkeypatch.setattr("subprocess.run", lambda command, **options: listed)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    cuda_name.cache_clear()
    yield monkeypatch
    cuda_name.cache_clear()


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["Tesla T4", "NVIDIA A100-SXM4-40GB", "Tesla T4", None]),
        ("1,0", ["NVIDIA A100-SXM4-40GB", "Tesla T4", None]),
        (" 1", ["NVIDIA A100-SXM4-40GB", None]),
        ("GPU-2bbb-1,GPU-1aaa", ["NVIDIA A100-SXM4-40GB", "Tesla T4", None]),
        ("MIG-4ddd-0", ["NVIDIA A100-SXM4-40GB MIG 3g.20gb"]),
        # CUDA sees none of these: the start of two identifiers, a number beyond the last, and nothing.
        ("GPU-1aa", [None]),
        ("7", [None]),
        ("-1", [None]),
        ("", [None]),
    ],
)
def test_gpus_are_named_by_the_numbers_that_cuda_gives_them(gpus: pytest.MonkeyPatch, visible: str | None, names: list[str | None]) -> None:
    gpus.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if visible is not None:
        gpus.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [cuda_name(index) for index in range(len(names))] == names


def test_a_gpu_whose_kind_cudas_order_leaves_open_has_no_name(gpus: pytest.MonkeyPatch) -> None:
    engine, target = get_engine("onnxruntime"), Target(engine="onnxruntime", device="cuda:1")
    for order, visible in ((None, None), ("FASTEST_FIRST", None), (None, "0,2")):
        for name, value in (("CUDA_DEVICE_ORDER", order), ("CUDA_VISIBLE_DEVICES", visible)):
            if value is not None:
                gpus.setenv(name, value)
        with pytest.raises(EngineError, match=r"device \(=cuda:1\).*NVIDIA A100-SXM4-40GB, Tesla T4.*set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
            engine.machine(target)
    # Identifiers leave nothing open.
    gpus.setenv("CUDA_VISIBLE_DEVICES", "GPU-1aaa-0,GPU-2bbb-1")
    assert engine.machine(target).startswith("NVIDIA A100-SXM4-40GB, ")
    # Nor does a machine with one kind of GPU.
    gpus.delenv("CUDA_VISIBLE_DEVICES")
    gpus.setattr("subprocess.run", lambda command, **options: SimpleNamespace(stdout=LISTED.replace("Tesla T4", "NVIDIA A100-SXM4-40GB")))
    cuda_name.cache_clear()
    assert engine.machine(target).startswith("NVIDIA A100-SXM4-40GB, ")


def test_models_and_inputs_are_brought_to_the_device() -> None:
    """The device without storage stands in for another one."""
    other = torch.device("meta")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    held = evaluation_copy(model, dtype=torch.float32, device=other)
    assert {tensor.device for tensor in (*held.parameters(), *held.buffers())} == {other}
    assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}
    assert evaluation_copy(model, dtype=torch.float32) is model
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    for keep in (True, False):
        moved = prepare_inputs(x, Target(batch=3), dtype=None, device=other, keep_format=keep).args[0]
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
