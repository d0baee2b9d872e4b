"""Weights that are computed of others become plain ones in a copy, on request, and the result goes back into the model as it is built."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

import latprune
from latprune.errors import BudgetInfeasibleError, CheckpointError, FileFormatError, InvalidArgumentError, SurgeryError, UnwrappedWarning
from latprune.graph import Selection, folded, trace
from latprune.graph.folding import fold_in_place, folds_of, norms_in_place, returning_norms
from latprune.latency.engines.base import CompiledNetwork
from latprune.latency.engines.torch_eager import TorchEngine
from latprune.pruning import verification
from latprune.surgery import ArchitectureEdits, EditStep, FoldEdit, NormEdit, prune, replay

X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
KINDS: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": nn.utils.weight_norm,
    "WeightNorm": parametrizations.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "SpectralNorm": parametrizations.spectral_norm,
    "Orthogonal": parametrizations.orthogonal,
    "pruning mask": lambda layer: l1_unstructured(layer, "weight", 0.3),
}
NORMS: dict[str, Callable[..., object]] = {"weight_norm": nn.utils.weight_norm, "WeightNorm": parametrizations.weight_norm}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def _network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )
    for layer in (net[0], net[2]):
        KINDS[kind](layer)
    net(X)  # a spectral norm finds its vectors in training
    return net.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_copy_is_pruned_and_restored(kind: str, tmp_path: Path) -> None:
    model = _network(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classes, wanted = [type(m) for m in model.modules()], model(X)
    result = latprune.prune(model, X, budget="params=60%", method="uniform", measure_latency=False, fold=True)
    assert result.model is not model and folds_of(result.model) == ()
    total = sum(p.numel() for p in folded(model)[0].parameters())
    assert 0.5 * total < sum(p.numel() for p in result.model.parameters()) <= 0.6 * total
    assert any(f"({kind}: '0', '2') are plain weights of the same values now" in note for note in result.record.notes)
    # The user's own model is as it was, and works.
    assert [type(m) for m in model.modules()] == classes and torch.equal(model(X), wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    result.save(tmp_path / "result")
    restored = latprune.restore(lambda: _network(kind), tmp_path / "result")
    assert torch.equal(restored(X), result.model.eval()(X))


@pytest.mark.parametrize("kind", KINDS)
def test_folding_keeps_values_and_what_is_trained(kind: str) -> None:
    model = _network(kind)
    model[0].requires_grad_(False)
    plain, folds = folded(model, X)
    assert [(fold.module, fold.tensor, fold.kind) for fold in folds] == [("0", "weight", kind), ("2", "weight", kind)]
    assert torch.allclose(plain(X), model(X), atol=1e-6)
    assert isinstance(plain[0].weight, nn.Parameter) and isinstance(plain[2].weight, nn.Parameter)
    assert (plain[0].weight.requires_grad, plain[2].weight.requires_grad) == (False, True)
    plain.load_state_dict(plain.state_dict())


def test_a_traced_copy_takes_the_place_of_the_model() -> None:
    model = _network("WeightNorm")
    with pytest.raises(InvalidArgumentError, match=r"fold=True \(--fold\)"):
        latprune.prune(_network("SpectralNorm"), X, budget="params=60%", method="uniform", measure_latency=False)
    graph = trace(model, X, fold=True)
    assert set(graph.groups) == {"0", "2"} and graph.folded is not None
    selection = Selection(kept={"0": torch.arange(6).numpy()})
    with pytest.raises(SurgeryError, match=r"prune graph\.folded"):
        prune(model, graph, selection)
    edits = prune(graph.folded, graph, selection)
    assert graph.folded[0].weight.shape[0] == 6
    fold = ArchitectureEdits(steps=(EditStep(folds=(FoldEdit(module="0", tensor="weight"), FoldEdit(module="2", tensor="weight"))),))
    both = ArchitectureEdits.from_dict(fold.then(edits).to_dict())
    assert torch.allclose(replay(_network("WeightNorm"), both)[0].weight, graph.folded[0].weight)


def test_a_model_without_such_weights_is_pruned_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2))
    result = latprune.prune(model, torch.randn(2, 4), budget="params=60%", method="uniform", measure_latency=False, fold=True)
    assert result.model is model
    assert trace(model, torch.randn(2, 4), fold=True).folded is None


@pytest.mark.parametrize("kind", ["weight_norm", "WeightNorm"])
def test_weight_norms_come_back_onto_what_was_cut(kind: str, tmp_path: Path) -> None:
    model = _network(kind)
    plainly = latprune.prune(_network(kind), X, budget="params=60%", method="uniform", measure_latency=False, fold=True)
    result = latprune.prune(model, X, budget="params=60%", method="uniform", measure_latency=False, fold="temporary")
    assert [(fold.module, fold.kind, fold.dim) for fold in folds_of(result.model)] == [("0", kind, 0), ("2", kind, 0)]
    assert torch.allclose(result.model(X), plainly.model(X), atol=1e-6)
    # What was cut are rows of one layer and columns of the next: lengths follow what is left of the directions.
    assert torch.allclose(result.model[2].weight, plainly.model[2].weight, atol=1e-7) and result.model[2].weight.shape[1] < 12
    assert set(result.model.state_dict()) == set(model.state_dict())
    assert any("compute the weights that were cut" in note for note in result.record.notes)
    result.save(tmp_path / "result")
    restored = latprune.restore(lambda: _network(kind), tmp_path / "result")
    assert folds_of(restored) == folds_of(result.model) and torch.equal(restored(X), result.model(X))
    assert result.export_onnx(tmp_path / "net.onnx").exporter
    # It trains through its norms, which can be taken off.
    before = restored[2].weight.detach().clone()
    optimizer = torch.optim.SGD(restored.parameters(), lr=0.1)
    restored(X).square().mean().backward()
    optimizer.step()
    trained = restored(X)
    assert not torch.equal(restored[2].weight, before)
    fold_in_place(restored, folds_of(restored))
    assert torch.allclose(restored(X), trained, atol=1e-6)


@pytest.mark.parametrize("kind", ["weight_norm", "WeightNorm"])
@pytest.mark.parametrize("layer", [nn.Conv1d(8, 8, 3, groups=2), nn.ConvTranspose1d(8, 6, 3), nn.Linear(5, 4)])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_a_norm_of_any_dimension_computes_the_weight_that_is_there(kind: str, layer: nn.Module, dim: int | None) -> None:
    net = nn.Sequential(copy.deepcopy(layer))
    NORMS[kind](net[0], dim=dim)
    plain, folds = folded(net)
    with torch.no_grad():
        plain[0].weight.mul_(torch.linspace(0.5, 2.0, plain[0].weight.numel()).view_as(plain[0].weight))
    wanted = plain[0].weight.detach().clone()
    plain[0].requires_grad_(False)
    assert returning_norms(plain, folds) == folds
    norms_in_place(plain, folds)
    assert torch.allclose(plain[0].weight, wanted, atol=1e-6) and not any(p.requires_grad for p in plain.parameters())
    assert [p.shape for p in plain.parameters()] == [p.shape for p in net.parameters()]


def test_a_filter_of_zeros_has_no_direction() -> None:
    net = _network("WeightNorm")
    plain, folds = folded(net)
    with torch.no_grad():
        plain[0].weight[3] = 0.0
    assert [fold.module for fold in returning_norms(plain, folds)] == ["2"]
    # Where its values come from a file (a restored result), the norm is put on all the same.
    norms_in_place(plain, folds)
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain(X), net(X))


def test_what_is_no_weight_norm_stays_plain() -> None:
    model = _network("pruning mask")
    result = latprune.prune(model, X, budget="params=60%", method="uniform", measure_latency=False, fold="temporary")
    assert folds_of(result.model) == () and not any("weight norms" in note for note in result.record.notes)


@pytest.mark.parametrize(
    ("options", "says"), [({"fold": "later"}, "must be True, False or 'temporary'"), ({"form": "program"}, "fold=True")]
)
def test_folding_for_a_time_is_refused_in_words(options: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        latprune.prune(_network("WeightNorm"), X, budget="params=60%", method="uniform", **{"fold": "temporary"} | options)


def test_edits_with_norms_are_read_back_and_checked() -> None:
    norms = ArchitectureEdits(steps=(EditStep(norms=(NormEdit(module="0", tensor="weight", kind="WeightNorm", dim=0),)),))
    assert ArchitectureEdits.from_dict(norms.to_dict()) == norms
    net = nn.Sequential(nn.Linear(3, 2))
    before = net[0].weight.detach().clone()
    assert folds_of(replay(net, norms))[0].kind == "WeightNorm" and torch.allclose(net[0].weight, before)
    with pytest.raises(CheckpointError, match="no module '0'"):
        replay(nn.Linear(3, 2), norms)
    broken = norms.to_dict()
    broken["steps"][0]["norms"][0]["kind"] = "spectral_norm"
    with pytest.raises(FileFormatError, match="kind"):
        ArchitectureEdits.from_dict(broken)


@pytest.mark.parametrize("kind", ["weight_norm", "WeightNorm"])
def test_a_model_is_pruned_in_place_through_its_weight_norms(kind: str, tmp_path: Path) -> None:
    model, copied = (
        _network(kind),
        latprune.prune(_network(kind), X, budget="params=60%", method="uniform", measure_latency=False, fold="temporary"),
    )
    model[0].requires_grad_(False)
    wanted = copied.model(X)
    result = latprune.prune(model.train(), X, budget="params=60%", method="uniform", measure_latency=False)
    assert result.model is model and model.training and [fold.kind for fold in folds_of(model)] == [kind, kind]
    assert torch.equal(model.eval()(X), wanted) and result.record.edits == copied.record.edits
    assert [p.requires_grad for p in model[0].parameters()] == [False] * 3 and all(p.requires_grad for p in model[2].parameters())
    result.save(tmp_path / "result")
    assert torch.equal(latprune.restore(lambda: _network(kind), tmp_path / "result")(X), wanted)


@pytest.mark.parametrize("kind", ["weight_norm", "WeightNorm"])
def test_norms_that_are_taken_off_the_result_stay_off(kind: str, tmp_path: Path) -> None:
    result = latprune.prune(_network(kind), X, budget="params=60%", method="uniform", measure_latency=False)
    wanted = result.model(X)
    fold_in_place(result.model, [fold for fold in folds_of(result.model) if fold.module == "0"])
    result.save(tmp_path / "result")
    restored = latprune.restore(lambda: _network(kind), tmp_path / "result")
    assert [fold.module for fold in folds_of(restored)] == ["2"] and torch.allclose(restored(X), wanted, atol=1e-6)
    fold_in_place(result.model, folds_of(result.model))
    result.save(tmp_path / "result")
    restored = latprune.restore(lambda: _network(kind), tmp_path / "result")
    assert folds_of(restored) == () and torch.allclose(restored(X), wanted, atol=1e-6)


def test_a_refusal_leaves_weight_norms_as_they_were() -> None:
    model = _network("WeightNorm")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BudgetInfeasibleError):
        latprune.prune(model, X, budget="params=1%", method="uniform", measure_latency=False)
    assert list(model.state_dict()) == list(before) and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_compiled_model_is_pruned_through_its_weight_norms() -> None:
    model = _network("WeightNorm")
    with pytest.warns(UnwrappedWarning):
        result = latprune.prune(torch.compile(model), X, budget="params=60%", method="uniform", measure_latency=False)
    assert result.model is model and model[0].weight.shape[0] < 12


def test_norms_beside_other_derived_weights_are_told_as_before() -> None:
    model = _network("WeightNorm")
    nn.utils.parametrizations.spectral_norm(model[6])
    with pytest.raises(InvalidArgumentError, match=r"fold=True \(--fold\)"):
        latprune.prune(model, X, budget="params=60%", method="uniform", measure_latency=False)


@pytest.mark.parametrize("fold", [False, True])
def test_a_result_is_verified_with_the_plain_weights_that_were_measured(
    fold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"budget": "params=60%", "method": "uniform", "measure_latency": False, "target": "torch", "fold": fold}
    latprune.prune(_network("weight_norm"), X, **options).save(tmp_path / "result")
    compiled: list[nn.Module] = []

    class Watched(TorchEngine):
        def compile(self, model: nn.Module, *args: object, **kwargs: object) -> CompiledNetwork:
            compiled.append(model)
            return super().compile(model, *args, **kwargs)

    monkeypatch.setattr(verification, "get_engine", lambda name: Watched())
    outcome = verification.verify(tmp_path / "result", lambda: _network("weight_norm"), save=False)
    assert outcome.met and len(compiled) == 2 and all(folds_of(network) == () for network in compiled)
