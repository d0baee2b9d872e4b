"""Engines run what was asked for, with the inputs in their places, or refuse."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latprune.errors import EngineError
from latprune.graph import trace
from latprune.latency import Target, get_engine, kit_runner, write_kit
from latprune.latency.engines import base
from latprune.latency.engines import openvino as openvino_engine
from latprune.latency.engines.inputs import prepare_inputs
from latprune.latency.engines.onnx_graph import export_onnx
from latprune.latency.engines.torch_network import flatten_outputs
from latprune.latency.machine import usable_processors
from latprune.latency.measuring.sampling import NetworkSampler
from support.openvino_precision import computes_in

X = torch.randn(2, 4)


def compiled(engine: str, model: nn.Module | None = None, x: Any = X, *, profile: bool = False, **conditions: Any) -> Any:
    target = Target(engine=engine, batch=2, **conditions)
    return get_engine(engine).compile(model or nn.Linear(4, 4).eval(), x, target, profile=profile)


class Conditions:
    """A compiled network that openvino would run in another way than asked."""

    def __init__(self, precision: str, threads: int) -> None:
        self.told = {"INFERENCE_PRECISION_HINT": SimpleNamespace(get_type_name=lambda: precision), "INFERENCE_NUM_THREADS": threads}

    def get_property(self, name: str) -> Any:
        return self.told[name]


@pytest.mark.parametrize(
    ("asked", "precision", "choice"),
    [("fp16", "bf16", "'bf16' instead; choose 'bf16' or 'fp32'"), ("bf16", "f32", "'fp32' instead; choose 'fp32'"), ("fp32", "f32", "")],
)
def test_openvino_refuses_to_compute_in_another_precision(asked: str, precision: str, choice: str) -> None:
    target = Target(precision=asked)
    if not choice:
        openvino_engine._check_conditions(Conditions(precision, 1), "CPU", target)
        return
    with pytest.raises(EngineError, match=rf"precision \(='{asked}'\).*CPU here.*{choice}$"):
        openvino_engine._check_conditions(Conditions(precision, 1), "CPU", target)


@pytest.mark.parametrize("profile", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_openvino_reads_its_precision_back(precision: str, profile: bool) -> None:
    if computes_in(precision):
        compiled("openvino", precision=precision, profile=profile).run()
    else:
        with pytest.raises(EngineError, match=rf"precision \(='{precision}'\)"):
            compiled("openvino", precision=precision, profile=profile)


@pytest.mark.parametrize("engine", ["torch", "torch_compile", "onnxruntime", "openvino"])
def test_more_threads_than_processors_are_refused(engine: str) -> None:
    most = usable_processors()
    refused = rf"threads \(={most + 1}\) must be at most {most}, the processors .* choose at most {most}$"
    with pytest.raises(EngineError, match=refused):
        get_engine(engine).check(Target(engine=engine, threads=most + 1))
    with pytest.raises(EngineError, match=refused):
        compiled(engine, threads=most + 1)
    get_engine(engine).check(Target(engine=engine, threads=most))


def test_openvino_refuses_more_threads_than_it_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take fewer than there are processors, and is asked what it took."""
    monkeypatch.setattr(base, "usable_processors", lambda: 4096)
    with pytest.raises(EngineError, match=r"threads \(=4096\) .* would take \d+ instead; choose at most \d+$"):
        compiled("openvino", threads=4096)
    # A GPU has no threads of this kind.
    openvino_engine._check_conditions(Conditions("f32", 1), "GPU.0", Target(threads=8))


@pytest.mark.parametrize("device", ["AUTO", "auto:cpu", "HETERO:CPU", "MULTI:CPU", "BATCH:CPU"])
def test_openvino_refuses_names_that_stand_for_other_devices(device: str) -> None:
    target = Target(device=device)
    for call in (lambda: get_engine("openvino").machine(target), lambda: compiled("openvino", device=device)):
        with pytest.raises(EngineError, match=rf"device \(='{device}'\) must be a device's own name.*here: .*CPU") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_openvino_says_in_one_line_which_devices_a_network_can_be_compiled_for() -> None:
    with pytest.raises(EngineError, match=r"device \(='QUARK'\) .* finds .*CPU.* here: .") as caught:
        compiled("openvino", device="QUARK")
    assert "\n" not in str(caught.value)


def test_openvino_takes_names_in_small_letters() -> None:
    assert [openvino_engine._device(Target(device=name)) for name in ("cpu", "gpu.0", "GPU.1", "npu")] == ["CPU", "GPU.0", "GPU.1", "NPU"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(engine="openvino", device="no-such-device"), "no-such-device"),
        (Target(engine="openvino", device="AUTO"), "AUTO"),
        (Target(engine="openvino", precision="tf32"), "tf32"),
        (Target(engine="onnxruntime", device="NoSuchProvider"), "NoSuchProvider"),
        (Target(engine="onnxruntime", device="cuda:x"), "cuda:x"),
        (Target(engine="onnxruntime", precision="bf16"), "bf16"),
        (Target(engine="torch", device="cuda:99"), "cuda:99"),
        (Target(engine="torch", precision="tf32"), "tf32"),
        (Target(engine="torch_compile", device="mps"), "mps"),
    ],
)
def test_what_no_network_could_run_under_is_refused_without_one(target: Target, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        get_engine(target.engine).check(target)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("device", ["cpu:0", "CPU:7"])
def test_the_processor_has_no_number(engine: str, device: str) -> None:
    with pytest.raises(EngineError, match=rf"device \(='{device}'\) must be 'cpu'"):
        compiled(engine, device=device)


def test_an_error_of_openvino_is_one_line() -> None:
    trace = "Exception from src/core.cpp:117:\nException from src/plugin.cpp:54:\nCheck 'a' failed at b.cpp:2:\nno such thing\n\n"
    assert openvino_engine._reason(RuntimeError(trace)) == "Check 'a' failed at b.cpp:2:; no such thing"


class Started:
    """Stands in for a session of a provider that starts and takes every step."""

    def __init__(self, data: bytes, options: Any, providers: list[Any]) -> None:
        self.name = providers[0][0]
        try:
            self.alone = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        except RuntimeError:
            self.alone = None

    def get_providers(self) -> list[str]:
        return [self.name, "CPUExecutionProvider"]


@pytest.mark.parametrize(("device", "alone"), [("cpu", None), ("CPUExecutionProvider", None), ("XnnpackExecutionProvider", "1")])
def test_onnxruntime_leaves_nothing_to_the_processor_beside_another_device(
    monkeypatch: pytest.MonkeyPatch, device: str, alone: str | None
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["XnnpackExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Started)
    assert compiled("onnxruntime", device=device)._session.alone == alone
    assert compiled("onnxruntime", device=device, profile=True)._open("prefix").alone == alone


@pytest.mark.parametrize("profile", [False, True])
def test_onnxruntime_refuses_a_network_that_the_device_cannot_run_alone(profile: bool) -> None:
    import onnxruntime

    # It comes with the processor's builds, and takes no step but its own.
    device = "AzureExecutionProvider"
    if device not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider beside the processor's")
    with pytest.raises(EngineError, match=rf"device \(='{device}'\) must run the whole network.*choose a device.*default CPU EP"):
        compiled("onnxruntime", device=device, profile=profile).profile(3)


def test_onnxruntime_says_why_a_provider_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def session(data: bytes, options: Any, providers: list[Any]) -> None:
        raise ValueError("conflicting configuration") from RuntimeError("no such card")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(EngineError, match="says: no such card"):
        compiled("onnxruntime", device="cuda:5")


def test_onnxruntimes_processor_computes_in_fp32_alone() -> None:
    for precision in ("fp16", "bf16"):
        with pytest.raises(EngineError, match=rf"precision \(='{precision}'\).*'fp32'") as caught:
            compiled("onnxruntime", precision=precision)
        assert "or 'fp16'" not in str(caught.value)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_is_pinned_is_stated(engine: str) -> None:
    pins = get_engine(engine).describe()["pins"]
    assert all(word in pins for word in ("threads", "precision", "batch", "contiguous"))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)


class Ordered(Base):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.linear(left) - 2 * right


class Defaults(Base):
    def forward(
        self, left: torch.Tensor, scale: float = 2.0, right: torch.Tensor | None = None, *, more: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = self.linear(left) if right is None else self.linear(left) - scale * right
        return y if more is None else y + 3 * more


class AnyKeyword(Base):
    def forward(self, x: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
        return self.linear(x) - 2 * others["z"] + 3 * others["y"]


class Nested(Base):
    def forward(self, pair: Any, named: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.linear(pair[1]) - 2 * pair[0] + 3 * named["b"] - named["a"]


class NestedUnused(Base):
    def forward(self, pair: Any, named: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.linear(pair[1]) + 3 * named["b"]


class Unused(Base):
    def forward(self, a: torch.Tensor, unused: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.linear(a) - 2 * b


class ShapeAlone(Base):
    def forward(self, a: torch.Tensor, like: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.linear(a) - (like.shape[0] * b + torch.ones_like(like))


class Through(Base):
    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.linear(c), b, a


def tensors(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 2, 4))


def named(*names: str) -> dict[str, torch.Tensor]:
    return dict(zip(names, tensors(len(names)), strict=True))


CALLS: list[tuple[type[nn.Module], Callable[[], Any]]] = [
    (Ordered, lambda: named("right", "left")),
    (Defaults, lambda: named("more", "right", "left")),
    (Defaults, lambda: {"right": tensors(1)[0], "scale": 0.5, "left": tensors(1)[0], "more": None}),
    (Defaults, lambda: (tensors(1)[0], 3, tensors(1)[0])),
    (AnyKeyword, lambda: named("y", "z", "x")),
    (Nested, lambda: (tuple(tensors(2)), named("b", "a"))),
    (Nested, lambda: {"named": named("b", "a"), "pair": tensors(2)}),
    (NestedUnused, lambda: (tensors(2), named("a", "b"))),
    (NestedUnused, lambda: {"named": named("b", "a"), "pair": tensors(2)}),
    (Unused, lambda: tuple(tensors(3))),
    (Unused, lambda: {"b": tensors(1)[0], "unused": torch.randn(2, 3), "a": tensors(1)[0]}),
    (ShapeAlone, lambda: tuple(tensors(3))),
    (Through, lambda: named("c", "a", "b")),
]


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize(("kind", "inputs"), CALLS)
def test_every_input_arrives_in_its_place(engine: str, kind: type[nn.Module], inputs: Callable[[], Any]) -> None:
    model, call = kind().eval(), inputs()
    with torch.no_grad():
        expected = flatten_outputs(model(**call) if isinstance(call, dict) else model(*call))
    with compiled(engine, model, call, profile=True) as network:
        found = network.outputs()
        assert "linear" in {entry.path for entry in network.profile(3)}
    assert len(found) == len(expected)
    for output, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(output, wanted, atol=1e-5)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_keywords_keep_the_modules_paths(exporter: str) -> None:
    pytest.importorskip("onnxscript")

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # A name that the exporters' own wrapper could have too.
            self.network = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
            self.blocks = nn.ModuleDict({"one": nn.Linear(4, 4)})

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.blocks["one"](self.network(left)) + self.network(right)

    inputs = prepare_inputs(named("right", "left"), Target(batch=2), dtype=None)
    exported = export_onnx(Deep().eval(), inputs, exporter=exporter)
    assert exported.input_names == ("input_0", "input_1")
    paths = sorted(exported.paths[node] for node, op in exported.ops.items() if op == "Gemm")
    assert paths == ["blocks.one", "network.0.0", "network.0.0", "network.1", "network.1"]
    assert all(np.array_equal(array, tensor) for array, tensor in zip(exported.feed(inputs).values(), inputs.tensors, strict=True))


class TwoInputs(nn.Module):
    """Nothing reads its second and third input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor, extra: torch.Tensor, unused: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.stem(x))
        return self.conv(y).mean(dim=(2, 3)) + last


def test_a_kits_runner_gives_every_input_to_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TwoInputs().eval()
    # In another order than the signature's, and of four shapes: none fits another one's place.
    inputs = {"last": torch.zeros(1, 16), "unused": torch.zeros(1, 5), "extra": torch.zeros(1, 7), "x": torch.zeros(1, 3, 8, 8)}
    kit = tmp_path / "kit.zip"
    write_kit(kit, model, trace(model, inputs), inputs, Target(engine="onnxruntime"), networks=2)
    given: list[dict[str, tuple[int, ...]]] = []
    real = kit_runner.runner

    def runner(ort: Any, session: Any, plan: dict[str, Any], feed: dict[str, Any]) -> Callable[[], Any]:
        given.append({name: array.shape for name, array in feed.items()})
        return real(ort, session, plan, feed)

    monkeypatch.setattr(kit_runner, "runner", runner)
    monkeypatch.setattr(sys, "argv", ["run.py", str(kit), str(tmp_path / "results.json")])
    assert kit_runner.main() == 0
    assert len(json.loads((tmp_path / "results.json").read_text())["networks"]) == 3
    assert given and all(feed == {"input_0": (1, 16), "input_3": (1, 3, 8, 8)} for feed in given)
    with zipfile.ZipFile(kit) as file:
        plan = json.loads(file.read("plan.json"))
    assert [spec["shape"] for spec in plan["inputs"]] == [[1, 16], [1, 5], [1, 7], [1, 3, 8, 8]]


def test_a_networks_inputs_are_those_that_its_own_steps_read() -> None:
    network = {"names": {"inputs_of": {"/a/Conv": ["input_0"], "/b/Add": ["/a/Conv_output_0", "input_2"]}}}
    assert kit_runner.used({"input_0": 0, "input_1": 1, "input_2": 2}, network) == {"input_0": 0, "input_2": 2}


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_steps_read_what_their_branches_read() -> None:
    @torch.jit.script
    def either(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            y = x + a
        else:
            y = x - b
        return y

    class Branches(Base):
        def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Any:
            return either(self.linear(x), a, b)

    exported = export_onnx(Branches().eval(), prepare_inputs(tuple(tensors(3)), Target(batch=2), dtype=None))
    read = {name for names in exported.inputs_of.values() for name in names}
    assert set(exported.input_names) == {"input_0", "input_1", "input_2"} <= read


class RootSteps(nn.Module):
    """What follows a layer stands in the model's own forward, where engines fuse it into the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(512, 640), nn.Linear(640, 480), nn.Linear(480, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(self.a(x) + 0.5) * 2.0))


class FreeWeight(nn.Module):
    """A convolution with a weight of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.weight = nn.Conv2d(3, 32, 3), nn.Parameter(torch.randn(64, 32, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(torch.relu(self.c(x)), self.weight)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_a_layer_keeps_its_name_under_what_the_models_forward_adds(engine: str) -> None:
    model, x = RootSteps().eval(), torch.randn(4, 512)
    sampler = NetworkSampler(model, trace(model, x), x, Target(engine=engine, batch=4), get_engine(engine))
    sampler.close()
    assert set(sampler.signatures) >= {"a", "b", "c"}


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_layer_with_a_weight_of_the_models_own_finds_its_step(engine: str) -> None:
    model, x = FreeWeight().eval(), torch.randn(1, 3, 24, 24)
    sampler = NetworkSampler(model, trace(model, x), x, Target(engine=engine), get_engine(engine))
    sampler.close()
    assert set(sampler.signatures) >= {"c", "weight"}


def test_a_layer_that_no_step_shows_is_refused_by_name() -> None:
    model, x = FreeWeight().eval(), torch.randn(1, 3, 24, 24)
    with pytest.raises(EngineError, match=r"1 of the model's layers \(weight\)"):
        NetworkSampler(model, trace(model, x), x, Target(engine="torch"), get_engine("torch"))


def test_a_layer_shorter_than_openvinos_clock_is_in_the_profile() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with get_engine("openvino").compile(model, torch.randn(1, 3, 6, 6), Target(), profile=True) as network:
        entries = {entry.path: entry.ms for entry in network.profile(40)}
    assert {"0", "4"} <= set(entries) and all(0.0 < entries[path] < 0.1 for path in ("0", "4"))


def test_a_step_whose_mean_fell_by_a_tick_keeps_the_mean_since_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin floors its mean over all runs: when that falls, the sum since compilation stands still, though the step still runs."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with get_engine("openvino").compile(model, torch.randn(1, 3, 6, 6), Target(), profile=True) as network:
        network.profile(10)
        (name, (kind, _)) = next(
            (name, value) for name, value in network._totals().items() if value[0] in ("Convolution", "FullyConnected")
        )
        monkeypatch.setattr(network, "_totals", lambda: {name: (kind, 90.0)})
        (entry,) = network.profile(10)
        assert entry.ms == pytest.approx(90.0 / network._done * 1e-3)


def test_a_sampler_that_cannot_start_leaves_no_network_open(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, opened, closed = get_engine("torch"), [], []
    compile_as_ever = engine.compile

    def compile_and_note(*args: Any, **options: Any) -> Any:
        network = compile_as_ever(*args, **options)
        opened.append(network)
        close = network.close
        monkeypatch.setattr(network, "close", lambda: (closed.append(network), close()))
        return network

    monkeypatch.setattr(engine, "compile", compile_and_note)
    model, x = FreeWeight().eval(), torch.randn(1, 3, 24, 24)
    with pytest.raises(EngineError, match="weight"):
        NetworkSampler(model, trace(model, x), x, Target(engine="torch"), engine)
    assert opened and {id(network) for network in closed} == {id(network) for network in opened}


def test_a_kits_runner_refuses_a_network_that_its_provider_leaves_to_the_processor() -> None:
    entries: dict[str, str] = {}

    class Options:
        def __setattr__(self, name: str, value: Any) -> None: ...

        def add_session_config_entry(self, key: str, value: str) -> None:
            entries[key] = value

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("nodes were left to the CPU\nand more lines")

    modes = SimpleNamespace(ORT_SEQUENTIAL=0, ORT_ENABLE_ALL=99)
    runtime = SimpleNamespace(SessionOptions=Options, ExecutionMode=modes, GraphOptimizationLevel=modes, InferenceSession=refuse)
    plan = {"target": {"device": "cuda:0", "threads": 1, "precision": "fp32"}}
    with pytest.raises(SystemExit, match=r"CUDAExecutionProvider: nodes were left to the CPU$"):
        kit_runner.open_session(runtime, b"", plan)
    assert entries["session.disable_cpu_ep_fallback"] == "1"
