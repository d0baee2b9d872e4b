from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

import latprune
from latprune.errors import CaptureError, EngineError, InvalidArgumentError
from latprune.graph import trace
from latprune.graph.admission import check_derived_weights, check_kind, check_state, derived_weights
from latprune.importance import MagnitudeConfig


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


X = torch.randn(2, 3, 12, 12)


def part_compiled() -> nn.Module:
    model = net()
    model[0] = torch.compile(model[0], backend="eager")
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (part_compiled, r"module '0' is compiled.*put model.0._orig_mod in its place \(latprune.graph.unwrapped\(model, parts=True\)"),
        (lambda: nn.Sequential(nn.DataParallel(nn.Flatten())), "module '0' is a DataParallel: put model.0.module in its place"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten()), "'0.weight' of module '0'.*run the model once"),
        (lambda: "model", "model is a str"),
    ],
)
def test_wrappers_are_refused_with_what_to_pass_and_nothing_changes(make: Callable[[], nn.Module], says: str) -> None:
    model = make()
    before = {name: type(value) for name, value in model.state_dict().items()} if isinstance(model, nn.Module) else {}
    with pytest.raises(CaptureError, match=says):
        trace(model, X)
    if isinstance(model, nn.Module):
        assert {name: type(value) for name, value in model.state_dict().items()} == before


def test_a_scripted_model_is_refused_and_a_scripted_part_is_not() -> None:
    with pytest.warns(DeprecationWarning):
        scripted, part = torch.jit.script(net()), torch.jit.script(nn.ReLU())
    with pytest.raises(CaptureError, match="TorchScript module"):
        check_kind(scripted)
    check_kind(nn.Sequential(nn.Linear(2, 2), part))


class Stateful(nn.Linear):
    """A layer with a state that is no parameter."""

    value: object = None

    def get_extra_state(self) -> object:
        return self.value

    def set_extra_state(self, state: object) -> None:
        self.value = state


@pytest.mark.parametrize("value", [{"scale": torch.ones(2)}, (1, 2), {1: "one"}, b"pickled", float("nan"), {1, 2}])
def test_a_state_that_json_does_not_hold_is_refused_by_name(value: object) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Stateful(2, 2))
    model[1].value = value
    with pytest.raises(InvalidArgumentError, match=rf"module '1' \(Stateful\) keeps a {type(value).__name__} in its state"):
        check_state(model)


@pytest.mark.parametrize("value", [None, {"seen": 3, "names": ["a", None], "share": 0.5}, "text", [1, 2], torch.arange(3.0)])
def test_a_state_is_carried_through_cut_training_and_files(value: object, tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), Stateful(432, 24), nn.ReLU(), nn.Linear(24, 4))

    def same(found: object) -> bool:
        return torch.equal(found, value) if isinstance(value, torch.Tensor) and isinstance(found, torch.Tensor) else found == value

    model = make()
    model[1].value = value
    data = [(X, torch.tensor([1, 2])) for _ in range(2)]
    recipe = latprune.Recipe(epochs=1, learning_rate=0.01, ema=0.9)
    method = latprune.MDP(score=MagnitudeConfig())
    job = {"budget": "params=60%", "method": method, "measure_latency": False, "data": data, "fit": recipe, "evaluate": data}
    result = latprune.prune(model, X, folder=tmp_path / "run", **job)
    assert model[1].out_features < 24 and same(model[1].value)
    latprune.finetune(model, data, latprune.Recipe(epochs=1, learning_rate=0.01, ema=0.9))
    result.save(tmp_path / "saved")
    again = latprune.restore(make, tmp_path / "saved")
    assert same(again[1].value) and torch.equal(again(X), model.eval()(X))
    resumed = make()
    assert same(latprune.prune(resumed, X, folder=tmp_path / "run", **job).model[1].value)
    assert latprune.load_result(tmp_path / "saved").record.model.tensors["3.weight"] == (4, 24)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("derive", "kind", "remedy"),
    [
        (nn.utils.weight_norm, "weight_norm", "remove_weight_norm"),
        (parametrizations.weight_norm, "WeightNorm", "remove_parametrizations"),
        (nn.utils.spectral_norm, "spectral_norm", "remove_spectral_norm"),
        (parametrizations.spectral_norm, "SpectralNorm", "remove_parametrizations"),
        (parametrizations.orthogonal, "Orthogonal", "remove_parametrizations"),
        (lambda layer: l1_unstructured(layer, "weight", 0.3), "pruning mask", "prune.remove"),
    ],
)
def test_weights_that_are_derived_are_told_with_the_remedy(derive: Callable[[nn.Module], object], kind: str, remedy: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    derive(model[0])
    assert derived_weights(model) == {"0": kind}
    with pytest.raises(InvalidArgumentError, match=remedy):
        check_derived_weights(model)
    check_derived_weights(model, keep=["0"])
    little = nn.Sequential(model[0], nn.Linear(16, 400), nn.Linear(400, 2))
    check_derived_weights(little)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_result_goes_back_into_a_lazy_model(tmp_path: Path) -> None:
    def lazy() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(4)
        ).eval()

    model = lazy()
    model(X)
    result = latprune.prune(model, X, budget="flops=60%", method="uniform", measure_latency=False)
    result.save(tmp_path / "saved")
    assert torch.equal(latprune.restore(lazy, tmp_path / "saved")(X), model(X))


class OwnTensor(torch.Tensor):
    """A tensor type of its own, as quantisation libraries have them."""


class NamedParameter(nn.Parameter):
    """A parameter class without behaviour of its own."""


def _with_weight(weight: torch.Tensor) -> nn.Module:
    model = net()
    model[1].weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    return model


def _on_meta() -> nn.Module:
    with torch.device("meta"):
        return net()


def _for_inference() -> nn.Module:
    with torch.inference_mode():
        return net()


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: _with_weight(torch.randn(8, 8, 3, 3).as_subclass(OwnTensor)), "'1.weight'.*is a OwnTensor, a tensor type of its own"),
        (_on_meta, "'0.0.weight'.*on the meta device"),
        (_for_inference, r"'0.0.weight'.*torch.inference_mode\(\)"),
        (lambda: nn.Sequential(nn.Flatten(), _sparse()), "'1.weight'.*is a sparse tensor.*to_dense"),
        (lambda: torch.export.export(net().eval(), (X,)).module(), "module of an exported program"),
    ],
)
def test_tensors_without_values_to_cut_are_refused(make: Callable[[], nn.Module], says: str) -> None:
    model = make()
    for call in (lambda: trace(model, X), lambda: latprune.prune(model, X, budget="flops=60%", method="uniform", measure_latency=False)):
        with pytest.raises(CaptureError, match=says):
            call()


def _sparse() -> nn.Module:
    layer = nn.Linear(432, 4)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    return layer


def test_a_parameter_class_without_behaviour_is_taken() -> None:
    assert "1" in trace(_with_weight(NamedParameter(torch.randn(8, 8, 3, 3))), X).groups


def test_inputs_of_a_tensor_type_of_their_own_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="tensor 0 of the example inputs is a OwnTensor"):
        trace(net(), X.as_subclass(OwnTensor))


class _Within(nn.Module):
    """Convolutions in int8 between convolutions in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.first = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3))
        self.inside = nn.Conv2d(8, 8, 3)
        self.last = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.leave(self.inside(self.enter(self.first(x)))))


def _dynamic() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    return torch.ao.quantization.quantize_dynamic(model.eval(), {"6"}, dtype=torch.qint8)


def _static() -> nn.Module:
    torch.manual_seed(0)
    model = _Within().eval()
    model.inside.qconfig = model.enter.qconfig = model.leave.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.ao.quantization.prepare(model, inplace=True)
    model(X)
    return torch.ao.quantization.convert(model, inplace=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "x", "groups", "whole"),
    [(_dynamic, torch.randn(2, 6), {"0", "2"}, "4"), (_static, X, {"first.0", "last.0"}, "first.2")],
    ids=["dynamic", "static"],
)
def test_quantised_parts_stay_whole_with_what_they_touch(
    make: Callable[[], nn.Module], x: torch.Tensor, groups: set[str], whole: str, tmp_path: Path
) -> None:
    model = make()
    graph = trace(model, x)
    assert set(graph.groups) == groups
    assert "a quantised part reads them" in {kept.what: kept.reason for kept in graph.kept_whole}[whole]
    result = latprune.prune(model, x, budget="params=80%", method="uniform", measure_latency=False)
    result.save(tmp_path / "result")
    assert torch.equal(latprune.restore(make, tmp_path / "result")(x), result.model.eval()(x))


@pytest.mark.filterwarnings("ignore")
def test_quantised_parts_that_no_file_holds_and_prepared_ones_are_refused() -> None:
    recurrent = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.LSTM(8, 4, batch_first=True))
    recurrent = torch.ao.quantization.quantize_dynamic(recurrent.eval(), {nn.LSTM}, dtype=torch.qint8)
    with pytest.raises(InvalidArgumentError, match=r"module '3' \(LSTM of torch.ao.nn.quantized.*no file.*Prune the float model"):
        latprune.prune(recurrent, torch.randn(2, 3, 6), budget="params=80%", method="uniform", measure_latency=False)
    model = _Within().train()
    model.inside.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.prepare_qat(model, inplace=True)
    with pytest.raises(InvalidArgumentError, match=r"module 'inside' \(Conv2d of torch.ao.nn.qat.*prepare the pruned one"):
        latprune.prune(model.eval(), X, budget="params=80%", method="uniform", measure_latency=False)
    words = nn.Sequential(nn.Embedding(10, 16)).eval()
    words[0].qconfig = torch.ao.quantization.float_qparams_weight_only_qconfig_4bit
    words = torch.ao.quantization.convert(torch.ao.quantization.prepare(words))
    with pytest.raises(InvalidArgumentError, match=r"module '0' \(Embedding of torch.ao.nn.quantized.*no file"):
        check_state(words)


def test_masked_and_spectral_weights_stay_whole_with_what_they_are_tied_to() -> None:
    for put in (lambda layer: l1_unstructured(layer, "weight", 0.3), nn.utils.spectral_norm, parametrizations.spectral_norm):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), put(nn.Conv2d(8, 8, 3)), nn.ReLU(), nn.Conv2d(8, 64, 3), nn.Conv2d(64, 4, 1))
        model.train()(X)
        graph = trace(model, X)
        assert set(graph.groups) == {"4"}
        reasons = {kept.reason for kept in graph.kept_whole} - {"the network's output", "reads the network's input"}
        assert len(reasons) == 1 and "the weight of '2' is computed of others" in next(iter(reasons)) and "--fold" in next(iter(reasons))
        result = latprune.prune(model, X, budget="params=60%", method="uniform", measure_latency=False)
        assert result.model[2].out_channels == 8 and result.model[2](torch.randn(1, 8, 6, 6)).shape[1] == 8


def test_where_nothing_can_be_pruned_the_reasons_are_told() -> None:
    with pytest.raises(InvalidArgumentError, match=r"nothing in this model can be pruned \(.*the network's output"):
        latprune.prune(nn.Sequential(nn.Linear(4, 3)), torch.randn(1, 4), budget="params=60%", method="uniform", measure_latency=False)


def _smooth(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


_scripted = cache(lambda: torch.jit.script(_smooth))


class _Smooth(nn.Module):
    """An activation that is a scripted function, as many networks have theirs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _scripted()(x)  # type: ignore[no-any-return]


SCRIPTED = {
    "layer": lambda: (torch.jit.script(nn.Conv2d(8, 8, 3)), nn.ReLU()),
    "traced layer": lambda: (torch.jit.trace(nn.Conv2d(8, 8, 3), torch.randn(1, 8, 6, 6)), nn.ReLU()),
    "chain": lambda: (torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()), nn.Identity()),
    "activation": lambda: (nn.Conv2d(8, 8, 3), torch.jit.script(nn.ReLU())),
    "function": lambda: (nn.Conv2d(8, 8, 3), _Smooth()),
}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("kind", SCRIPTED)
def test_scripted_parts_are_cut_with_what_is_around_them(kind: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        rest = (nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 1))
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *SCRIPTED[kind](), *rest).eval()

    model = make()
    assert [kept.reason for kept in trace(model, X).kept_whole] == ["the network's output"]
    result = latprune.prune(model, X, budget="params=60%", method="uniform", measure_latency=False)
    weights = [tensor.shape for tensor in result.model.state_dict().values() if tensor.ndim == 4]
    assert all(later[1] == earlier[0] < full for earlier, later, full in zip(weights, weights[1:], (8, 8, 12), strict=False))
    result.save(tmp_path / "result")
    assert torch.equal(latprune.restore(make, tmp_path / "result")(X), result.model.eval()(X))
    if kind != "function":  # which the exporters do follow
        with pytest.raises(EngineError, match=r"module '\d' is TorchScript.*form='program'"):
            result.export_onnx(tmp_path / "net.onnx")


class Silent(nn.Sequential):
    def forward(self, x: torch.Tensor) -> None:
        super().forward(x)


@pytest.mark.parametrize(
    ("model", "inputs", "error", "words"),
    [
        (
            Silent(nn.Linear(4, 8), nn.Linear(8, 2)),
            torch.randn(2, 4),
            CaptureError,
            r"returns no tensor on the example inputs \(but a NoneType\)",
        ),
        (
            nn.Linear(4, 2),
            torch.randn(0, 4),
            InvalidArgumentError,
            r"of shape \(0, 4\) are a batch of 0: the first dimension must be at least 1",
        ),
        (nn.Linear(4, 2), {"input": torch.randn(0, 4)}, InvalidArgumentError, "are a batch of 0"),
    ],
)
def test_nothing_in_and_nothing_out_is_refused(model: nn.Module, inputs: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        trace(model, inputs)
