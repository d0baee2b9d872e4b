"""Packed attention whose queries, keys and values read different inputs: the layers are chunks of one projection."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph import ModelGraph, Selection, trace
from latprune.recovery import Distil, Recovery, RecoveryReport, recover
from latprune.recovery.pairing import Pairing
from latprune.recovery.sites import find_sites
from latprune.recovery.stepper import record_operations
from latprune.surgery import prune
from recovery.nets import half


class Cross(nn.Module):
    """Keys and values read another sequence than the queries: a chunk of one third and a chunk of two thirds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 16), nn.Linear(3, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory = self.c(y)
        return self.head(self.attention(self.a(x), memory, memory, need_weights=False)[0].mean(1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 16), nn.Linear(3, 16)
        self.layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.layer(self.a(x), self.c(y)).mean(1))


class Positions(nn.Module):
    """As in DETR: positions are added to queries and keys, not to values, which makes three chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.place = nn.Parameter(torch.randn(1, 5, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        v = self.a(x)
        q = k = v + self.place
        return self.head((v + self.attention(q, k, v, need_weights=False)[0]).mean(1))


NETWORKS = {"cross": Cross, "decoder": Decoder, "positions": Positions}


def cut(name: str) -> tuple[nn.Module, nn.Module, ModelGraph, Selection, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    dense = NETWORKS[name]().eval()
    inputs = torch.randn(96, 5, 6), torch.randn(96, 7, 3)
    graph = trace(dense, tuple(t[:2] for t in inputs))
    selection = half(graph)
    network = copy.deepcopy(dense)
    prune(network, graph, selection)
    return dense, network, graph, selection, inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_the_refit_lowers_the_error_strongly(name: str) -> None:
    dense, network, graph, selection, inputs = cut(name)
    report = recover(network, dense, [(inputs,)], graph=graph, selection=selection)
    assert report.output_after is not None and report.output_before is not None
    assert report.output_after < 0.15 * report.output_before
    packed = [layer for layer in report.layers if "attn" in layer.layer or "attention" in layer.layer]
    assert packed and all(layer.action for layer in packed)
    logits = [layer.held_out_after for layer in packed if layer.at == "logits"]
    assert logits and all(error is not None and error < 0.5 for error in logits)


@pytest.mark.parametrize("strategy", ["map", "shift", "norms", "fold", Distil(epochs=1)], ids=lambda s: s if isinstance(s, str) else s.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_strategy_runs(name: str, strategy: str | Recovery) -> None:
    dense, network, graph, selection, inputs = cut(name)
    report = recover(network, dense, [(inputs,)], graph=graph, selection=selection, strategy=strategy)
    assert report.output_after is not None and report.output_before is not None
    assert report.output_after <= report.output_before


def test_factors_of_a_chunk_are_those_of_its_own_rows() -> None:
    """Surgery puts a factor on the queries alone: attention then scales by the smaller head as it did by the dense one."""
    for name, sizes in (("cross", [8, 16]), ("positions", [8, 8, 8])):
        dense, network, graph, selection, inputs = cut(name)
        runs = [record_operations(model, inputs) for model in (dense, network)]
        pairing = Pairing(graph, selection, *runs, dense, network)
        chunks = [site for site in find_sites(runs[1], network) if site.tensor == "attention.in_proj_weight"]
        assert [site.outputs for site in chunks] == sizes
        queries, *others = (pairing.output_scale(site) for site in chunks)
        assert queries is not None and torch.allclose(queries, torch.full((8,), 2**-0.5, dtype=torch.float64))
        assert all(factors is not None and torch.equal(factors, torch.ones_like(factors)) for factors in others)
        assert [len(factors) for factors in others if factors is not None] == sizes[1:]


class ByMatrix(nn.Module):
    """Projections that are plain parameters, their filters along either dimension."""

    def __init__(self, columns: bool) -> None:
        super().__init__()
        self.columns = columns
        self.a, self.out, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        matrices = [torch.randn(16, 16) / 2 for _ in range(3)]
        self.q, self.k, self.v = (nn.Parameter(m.T.clone() if columns else m) for m in matrices)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        parts = [x @ w if self.columns else F.linear(x, w) for w in (self.q, self.k, self.v)]
        q, k, v = (p.unflatten(-1, (4, -1)).transpose(1, 2) for p in parts)
        return self.head(self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1))


def test_factors_are_found_along_either_dimension_of_the_parameter() -> None:
    x = torch.randn(128, 6, 6, generator=torch.Generator().manual_seed(1))
    reports: list[RecoveryReport] = []
    for columns in (False, True):
        torch.manual_seed(0)
        dense = ByMatrix(columns).eval()
        graph = trace(dense, x[:2])
        network = copy.deepcopy(dense)
        prune(network, graph, half(graph))
        reports.append(recover(network, dense, [x], graph=graph, selection=half(graph)))
    assert [r.output_after for r in reports] == [pytest.approx(reports[0].output_after, rel=1e-3)] * 2
    for one, other in zip(*(report.layers for report in reports), strict=True):
        assert one.held_out_after == pytest.approx(other.held_out_after, rel=1e-3, abs=1e-9)
