"""Weights that are computed of others become plain ones in a copy, on request, and the result goes back into the model as it is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

import latprune
from latprune.errors import InvalidArgumentError, SurgeryError
from latprune.graph import Selection, folded, trace
from latprune.graph.folding import folds_of
from latprune.surgery import ArchitectureEdits, EditStep, FoldEdit, prune, replay

X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
KINDS: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": nn.utils.weight_norm,
    "WeightNorm": parametrizations.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
    "SpectralNorm": parametrizations.spectral_norm,
    "Orthogonal": parametrizations.orthogonal,
    "pruning mask": lambda layer: l1_unstructured(layer, "weight", 0.3),
}
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
        latprune.prune(model, X, budget="params=60%", method="uniform", measure_latency=False)
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
