from __future__ import annotations

import builtins
import copy
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latprune.errors import EngineError, InvalidArgumentError, MissingExtraError
from latprune.graph import trace
from latprune.latency import CompiledNetwork, Engine, KernelTime, Target, available_engines, get_engine, register_engine
from latprune.latency.engines import TorchEngine, base
from latprune.latency.engines.inputs import prepare_inputs
from latprune.latency.engines.onnx_graph import export_onnx
from latprune.latency.engines.torch_eager import EagerNetwork
from latprune.latency.measuring.matching import match_profile
from latprune.latency.testing import EngineContract
from support.openvino_precision import computes_in

needs_executorch = pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="executorch is not installed")


class TestTorch(EngineContract):
    engine_name = "torch"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestTorchCompile(EngineContract):
    engine_name = "torch_compile"


class TestOnnxRuntime(EngineContract):
    engine_name = "onnxruntime"


class TestOpenVino(EngineContract):
    engine_name = "openvino"


# Each test lowers the network anew, in Python, which takes seconds.
@pytest.mark.slow
@needs_executorch
class TestExecuTorch(EngineContract):
    engine_name = "executorch"


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bf16_differs_from_fp32_and_is_close(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
    x = torch.randn(1, 3, 16, 16)
    engine = get_engine(name)
    if name == "openvino" and not computes_in("bf16"):
        with pytest.raises(EngineError, match=r"precision \(='bf16'\)"):
            engine.compile(model, x, Target(engine=name, precision="bf16"))
        return
    outputs = {}
    for precision in ("fp32", "bf16"):
        with engine.compile(model, x, Target(engine=name, precision=precision)) as network:
            outputs[precision] = network.outputs()[0]
    difference = np.abs(outputs["fp32"] - outputs["bf16"]).max()
    assert difference < 0.05 * np.abs(outputs["fp32"]).max()
    assert difference > 0


class Unprofiled(TorchEngine):
    """An engine that tells nothing of what it runs."""

    profiles_kernels = False

    def compile(self, model: nn.Module, example_inputs: Any, target: Target, *, profile: bool = False) -> EagerNetwork:
        if profile:
            raise EngineError("profile (=True) must be False on this engine, which has none")
        return super().compile(model, example_inputs, target)


class TestAnEngineWithoutAProfile(EngineContract):
    engine_name = "torch"

    @property
    def engine(self) -> Engine:
        return Unprofiled()

    def test_contractions_that_were_not_timed_are_missed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        laps = EagerNetwork.laps

        def without_the_head(self: EagerNetwork, runs: int, *, ahead: bool = False) -> list[KernelTime]:
            return [entry for entry in laps(self, runs, ahead=ahead) if entry.path != "head"]

        monkeypatch.setattr(EagerNetwork, "laps", without_the_head)
        with pytest.raises(AssertionError):
            self.test_profile_names_every_contraction()

    def test_profiles_that_would_be_refused_later_are_missed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Unprofiled, "compile", TorchEngine.compile)
        with pytest.raises(AssertionError, match="profiles_kernels"):
            self.test_an_engine_without_a_profile_does_not_compile_for_one()


class Whole(nn.Module):
    """Two linear layers in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Halves(Whole):
    """What Dynamo cannot record stands between the layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


class Loop(Whole):
    """What Dynamo cannot record stands in a loop, which it cannot divide."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second):
            x = layer(x)
            torch._dynamo.graph_break()
        return x


class Around(nn.Module):
    """One graph within what cannot be divided."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Whole()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
            torch._dynamo.graph_break()
        return x


@pytest.fixture
def quick_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo's graphs as they are, without Inductor's C++ compiler."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs, options: graph.forward)


def torch_compiled(model: nn.Module) -> CompiledNetwork:
    return get_engine("torch_compile").compile(model, torch.randn(1, 4), Target(engine="torch_compile"))


@pytest.mark.usefixtures("quick_inductor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Whole, ""),
        (Halves, ", graphs: 2, graph breaks: 1"),
        (Loop, ", graphs: 0, graph breaks: 1"),
        (Around, ", graphs: 1, graph breaks: 1"),
    ],
)
def test_torch_compile_says_what_it_could_not_compile_in_one(make: Callable[[], nn.Module], said: str) -> None:
    # The second network is like the first one, for which Dynamo has all it needs already.
    for _ in range(2):
        with torch_compiled(make().eval()) as network:
            assert network.conversion == f"torch.compile (inductor, default){said}"


@pytest.mark.usefixtures("quick_inductor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_compiles_again_rather_than_to_run_eagerly() -> None:
    settings: Any = torch._dynamo.config
    counted: Any = torch._dynamo.utils.counters["stats"]
    with torch_compiled(Whole().eval()) as network, settings.patch(recompile_limit=1, accumulated_recompile_limit=1):
        graphs = counted["unique_graphs"]
        torch.set_default_dtype(torch.float64)
        try:
            network.run()
        finally:
            torch.set_default_dtype(torch.float32)
        assert counted["unique_graphs"] == graphs + 1
        assert settings.recompile_limit == 1, "the process's own limit must come back"


@pytest.mark.usefixtures("quick_inductor")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("training", [True, False])
def test_torch_compile_copies_the_model_once(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    copied: list[Any] = []
    original = copy.deepcopy

    def watched(value: Any, *rest: Any) -> Any:
        copied.append(value)
        return original(value, *rest)

    monkeypatch.setattr(copy, "deepcopy", watched)
    with torch_compiled(Whole().train(training)):
        assert sum(isinstance(value, Whole) for value in copied) == 1


def test_torch_compile_refuses_a_profile_at_once() -> None:
    with pytest.raises(EngineError, match=r"profile \(=True\) must be False.*Profiler"):
        get_engine("torch_compile").compile(Whole(), torch.randn(1, 4), Target(engine="torch_compile"), profile=True)


def test_onnxruntime_refuses_bf16() -> None:
    with pytest.raises(EngineError, match="bf16"):
        get_engine("onnxruntime").compile(nn.Linear(3, 4), torch.randn(1, 3), Target(engine="onnxruntime", precision="bf16"))


@pytest.mark.parametrize("device", ["cpu:x", "cuda:first"])
def test_onnxruntime_refuses_a_device_without_a_number(device: str) -> None:
    target, engine = Target(engine="onnxruntime", device=device), get_engine("onnxruntime")
    assert engine.machine(target)
    with pytest.raises(EngineError, match="device"):
        engine.compile(nn.Linear(3, 4), torch.randn(1, 3), target)


def test_openvino_says_in_one_line_which_devices_it_has() -> None:
    with pytest.raises(EngineError, match=r"'QUARK'.* finds .*CPU.* here: .") as caught:
        get_engine("openvino").machine(Target(engine="openvino", device="QUARK"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_model_that_cannot_be_exported_is_an_engine_error(name: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(EngineError, match="Odd"):
        get_engine(name).compile(Odd(), torch.randn(1, 3), Target(engine=name))


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("onnxruntime", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino"), ("executorch", "executorch", "executorch")],
)
def test_a_missing_engine_says_which_extra(monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str) -> None:
    real = builtins.__import__

    def fake(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.split(".")[0] == package:
            raise ModuleNotFoundError(module, name=module)
        return real(module, *args, **kwargs)

    for loaded in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(MissingExtraError, match=rf"latprune\[{extra}\]") as caught:
        get_engine(name).version()
    assert caught.value.exit_code == 5
    assert available_engines()[name] is None


def test_registry() -> None:
    assert {"torch", "onnxruntime", "openvino"} <= set(available_engines())
    with pytest.raises(InvalidArgumentError, match="no-engine"):
        get_engine("no-engine")
    with pytest.raises(InvalidArgumentError, match="already registered"):
        register_engine("torch", lambda: get_engine("torch"))


class Twice(nn.Module):
    """One convolution that runs twice, with a functional activation between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 1)), nn.Sequential(nn.Conv2d(8, 8, 1))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(torch.relu(self.conv(x)))
        for block in self.blocks:
            y = block(torch.relu(y))
        return y


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_exported_nodes_know_their_modules(exporter: str) -> None:
    pytest.importorskip("onnxscript")
    exported = export_onnx(Twice().eval(), prepare_inputs(torch.randn(1, 8, 8, 8), Target(), dtype=None), exporter=exporter)
    convolutions = sorted(exported.paths[node] for node, op in exported.ops.items() if op == "Conv")
    assert convolutions == ["blocks.0.0", "blocks.1.0", "conv", "conv"]


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_a_module_called_twice_is_profiled_twice(name: str) -> None:
    target = Target(engine=name)
    with get_engine(name).compile(Twice(), torch.randn(1, 8, 8, 8), target, profile=True) as network:
        entries = [entry for entry in network.profile(10) if entry.path == "conv" and "conv" in entry.op.lower()]
    assert len(entries) == 2


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_keyword_inputs(name: str) -> None:
    class Add(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.linear(x) - 2 * y

    model, x, y = Add().eval(), torch.randn(2, 4), torch.randn(2, 4)
    with get_engine(name).compile(model, {"x": x, "y": y}, Target(engine=name, batch=2)) as network:
        (output,) = network.outputs()
    with torch.no_grad():
        assert np.allclose(output, model(x, y).numpy(), atol=1e-5)


def test_prepare_inputs_brings_the_batch() -> None:
    x, mask = torch.arange(6.0).reshape(2, 3), torch.ones(5)
    inputs = prepare_inputs((x, mask), Target(batch=5), dtype=None)
    assert inputs.args[0].shape == (5, 3)
    assert torch.equal(inputs.args[0][2], x[0])
    assert inputs.args[1].shape == (5,)
    with pytest.raises(InvalidArgumentError, match="at least one tensor"):
        prepare_inputs((1, 2), Target(), dtype=None)
    with pytest.raises(InvalidArgumentError, match="must be a tensor"):
        prepare_inputs("x", Target(), dtype=None)


@pytest.mark.slow
@needs_executorch
class TestExecuTorchAlone:
    """What the contract does not ask of an engine."""

    target = Target(engine="executorch")

    def test_repeated_modules_and_keywords(self) -> None:
        with get_engine("executorch").compile(Twice(), {"x": torch.randn(1, 8, 8, 8)}, self.target, profile=True) as network:
            entries = network.profile(10)
        # The pointwise convolutions run as fully connected layers, and still are their modules' convolutions.
        paths = [entry.path for entry in entries if entry.op.startswith("convolution")]
        assert paths == ["conv", "conv", "blocks.0.0", "blocks.1.0"]

    def test_kernels_outside_of_xnnpack_have_their_place(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.LayerNorm(36), nn.Linear(36, 4)).eval()
        graph = trace(model, torch.randn(1, 3, 8, 8))
        with get_engine("executorch").compile(model, torch.randn(1, 3, 8, 8), self.target, profile=True) as network:
            entries = network.profile(10)
        assert {"0", "2", "3"} <= {entry.path for entry in entries}
        assert {"0", "2", "3"} <= set(match_profile(entries, list(graph.kernels.values())).shares)

    def test_threads_are_pinned_for_the_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(base, "usable_processors", lambda: 2)
        engine, x = get_engine("executorch"), torch.randn(1, 8, 8, 8)
        with engine.compile(Twice(), x, self.target) as network:
            network.run()
            with pytest.raises(EngineError, match="close that network first"):
                engine.compile(Twice(), x, Target(engine="executorch", threads=2))
        with engine.compile(Twice(), x, Target(engine="executorch", threads=2)) as network:
            network.run()

    def test_refusals(self) -> None:
        class Odd(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.special.bessel_j0(x)

        engine = get_engine("executorch")
        with pytest.raises(EngineError, match="Odd"):
            engine.compile(Odd(), torch.randn(1, 3), self.target)
        with pytest.raises(EngineError, match="bf16"):
            engine.compile(Twice(), torch.randn(1, 8, 8, 8), Target(engine="executorch", precision="bf16"))


def test_threads_are_given_back_when_the_last_network_of_pytorch_closes() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        engine, x = TorchEngine(), torch.randn(1, 3, 8, 8)
        first, second = (engine.compile(nn.Conv2d(3, 4, 3), x, Target(engine="torch", threads=1)) for _ in range(2))
        second.run()
        assert torch.get_num_threads() == 1
        first.close()
        assert torch.get_num_threads() == 1, "the other one is still open"
        second.close()
        second.close()
        assert torch.get_num_threads() == 2
        third = engine.compile(nn.Conv2d(3, 4, 3), x, Target(engine="torch", threads=1))
        third.run()
        del third
        assert torch.get_num_threads() == 2, "one that nobody closed"
    finally:
        torch.set_num_threads(before)
