from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

import latprune
from latprune.errors import CaptureError, InvalidArgumentError
from latprune.graph import trace
from latprune.graph.admission import check_derived_weights, check_kind, check_state, derived_weights


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
        (lambda: torch.compile(net(), backend="eager"), "the model is compiled.*pass model._orig_mod"),
        (part_compiled, "module '0' is compiled.*put model.0._orig_mod in its place"),
        (lambda: nn.DataParallel(net()), "the model is a DataParallel: pass model.module"),
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


def test_a_state_that_is_no_tensor_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Stateful(2, 2))
    model[1].value = {"seen": 3}
    with pytest.raises(InvalidArgumentError, match=r"module '1' \(Stateful\) keeps a dict in its state"):
        check_state(model)
    model[1].value = torch.zeros(2)
    check_state(model)


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
