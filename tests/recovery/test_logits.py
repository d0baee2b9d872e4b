"""Queries and keys through their product: its laws, on attention of every make."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graph.test_attention import ByHand, Coupled, Fused, FusedRotary, Multi, Positional, Rotary
from latprune.graph import ModelGraph, Selection, trace
from latprune.recovery import RecoveryReport, Refit, recover
from latprune.recovery.attention import find_products
from latprune.recovery.sites import find_sites
from latprune.recovery.stepper import record_operations
from latprune.surgery import prune
from recovery.nets import half


class Grouped(nn.Module):
    """Two query heads share each head of keys and values, left to the attention function."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, width // 2) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, -1).transpose(1, 2)
        k, v = (f(x).view(n, t, self.heads // 2, -1).transpose(1, 2) for f in (self.k, self.v))
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(*self.split(x), enable_gqa=True)
        return self.proj(out.transpose(1, 2).flatten(2))


class Repeated(Grouped):
    """The same by hand: heads of keys and values are repeated, with one bias fewer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.k = nn.Linear(width, width // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class TokensFirst(nn.Module):
    """PyTorch's attention with the tokens before the examples."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.attn(x, x, x, need_weights=False)[0].transpose(0, 1)


class Cross(nn.Module):
    """Queries of one half of the sequence read keys of the other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (
            f(y).view(n, t // 2, self.heads, -1).transpose(1, 2)
            for f, y in ((self.q, x[:, : t // 2]), (self.k, x[:, t // 2 :]), (self.v, x[:, t // 2 :]))
        )
        out = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return torch.cat([out, out], 1)


class Net(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(5, 48), nn.GELU(), nn.Linear(48, 16))
        self.attention = attention(16, 4)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x))


def net(attention: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    """Queries and keys are large, so that attention is far from even and its logits matter."""
    torch.manual_seed(0)
    model = Net(attention).eval()
    with torch.no_grad():
        model.embed[0].weight.mul_(4)
        model.embed[2].weight.mul_(4)
    return model, torch.randn(160, 6, 5)


def recovered(model: nn.Module, x: Tensor, selection: Selection, graph: ModelGraph, **options: bool) -> tuple[nn.Module, RecoveryReport]:
    network = copy.deepcopy(graph.program if graph.program is not None else model)
    dense = copy.deepcopy(network)
    prune(network, graph, selection)
    return network, recover(network, dense, [x], graph=graph, selection=selection, strategy=Refit(**options))


THROUGH = [
    pytest.param(attention, form, id=f"{attention.__name__}-{form}")
    for attention, form in (
        (Fused, "class"),
        (ByHand, "class"),
        (Coupled, "program"),
        (Grouped, "class"),
        (Repeated, "class"),
        (Multi, "program"),
        (TokensFirst, "program"),
        (Cross, "class"),
    )
]


@pytest.mark.parametrize(("attention", "form"), THROUGH)
def test_the_error_of_the_logits_falls_and_never_rises(attention: type[nn.Module], form: str) -> None:
    model, x = net(attention)
    graph = trace(model, x[:2], form=form)
    _, report = recovered(model, x, half(graph), graph)
    entries = [layer for layer in report.layers if layer.at == "logits"]
    assert entries and all(layer.action for layer in entries)
    for layer in entries:
        assert layer.fitted_after is not None and layer.fitted_before is not None and layer.fitted_after < layer.fitted_before
        assert layer.held_out_after is not None and layer.held_out_before is not None and layer.held_out_after <= layer.held_out_before
    assert report.output_after is not None and report.output_before is not None and report.output_after < report.output_before


@pytest.mark.parametrize(("attention", "form"), THROUGH)
def test_with_everything_kept_nothing_changes(attention: type[nn.Module], form: str) -> None:
    model, x = net(attention)
    graph = trace(model, x[:2], form=form)
    dense = graph.program if graph.program is not None else model
    network, report = recovered(model, x, half(graph, 1.0), graph)
    assert report.output_after is not None and report.output_after < 1e-8
    for (key, value), other in zip(network.state_dict().items(), dense.state_dict().values(), strict=True):
        assert torch.allclose(value.double(), other.double(), atol=2e-4), key


def _logits(model: nn.Module, x: Tensor, heads: int) -> Tensor:
    """``(images, heads, tokens, tokens)`` logits of ``ByHand``, each query's from their mean, at the dense scale."""
    with torch.no_grad():
        x = model.embed(x)
        q, k = (f(x).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (model.attention.q, model.attention.k))
        logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        return logits - logits.mean(-1, keepdim=True)


def _only_places(graph: ModelGraph, size: int) -> Selection:
    """All kept but ``size`` places of each head's queries and keys."""
    kept = dict(half(graph, 1.0).kept)
    name = next(n for n, g in graph.groups.items() if g.rows == 4 and any(m.tensor == "attention.q.weight" for m in g.members))
    kept[name] = half(graph, size / graph.groups[name].columns).kept[name]
    return Selection(kept=kept)


class ByHandWide(ByHand):
    """Heads of eight places."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.q, self.k = nn.Linear(width, 8 * heads), nn.Linear(width, 8 * heads)


def test_the_product_comes_nearer_to_the_dense_logits_than_its_parts() -> None:
    """Measured here from the two networks: places of the heads cut, all else dense, three fits of the same network."""
    model, x = net(ByHandWide)
    graph = trace(model, x[:2])
    selection = _only_places(graph, 4)
    wanted = _logits(model, x, 4)
    errors = {}
    for name, options in {"cut": None, "values": {"logits": False}, "product": {}}.items():
        if options is None:
            network = copy.deepcopy(model)
            prune(network, graph, selection)
        else:
            network, _ = recovered(model, x, selection, graph, **options)
        errors[name] = float((_logits(network, x, 4) - wanted).square().sum() / wanted.square().sum())
    # The values at the places that stay are the dense ones already: a fit of the values alone has nothing to gain.
    assert errors["values"] == pytest.approx(errors["cut"], rel=0.05)
    assert errors["product"] < 0.7 * errors["cut"]


def test_the_product_is_as_near_as_alternating_regressions_bring_it() -> None:
    """The truncated decomposition against regressions of queries and keys in turns, in one head, on the same inputs."""
    model, x = net(ByHandWide)
    graph = trace(model, x[:2])
    network, report = recovered(model, x, _only_places(graph, 3), graph)
    with torch.no_grad():
        inputs = model.embed(x).double()
    wanted = _logits(model, x, 4).double()[:, 0]
    centred = inputs - inputs.mean(1, keepdim=True)
    scale = 3**-0.5
    left = torch.cat([network.attention.q.weight, network.attention.q.bias[:, None]], 1)[:3].double().T
    right = network.attention.k.weight[:3].double().T
    ones = torch.cat([inputs, torch.ones_like(inputs[:, :, :1])], 2)

    def error() -> float:
        found = scale * (ones @ left) @ (centred @ right).transpose(1, 2)
        return float((found - wanted).square().sum() / wanted.square().sum())

    with torch.no_grad():
        start = error()
        for _ in range(15):
            for side in (0, 1):
                fixed = centred @ right if side == 0 else ones @ left
                moving = ones if side == 0 else centred
                target = wanted if side == 0 else wanted.transpose(1, 2)
                # sum over images of (X'X) W (F'F) = X' L F, as one linear system
                system = torch.einsum("nai,naj,nbk,nbl->ikjl", moving, moving, fixed, fixed) * scale**2
                cross = scale * torch.einsum("nai,nab,nbk->ik", moving, target, fixed)
                size = cross.numel()
                system = system.reshape(size, size) + 1e-6 * system.reshape(size, size).diagonal().mean() * torch.eye(size)
                found = torch.linalg.solve(system, cross.reshape(-1)).reshape(cross.shape)
                left, right = (found, right) if side == 0 else (left, found)
        assert report.changed and start < 1.1 * error()


def test_what_stands_between_a_layer_and_its_logits_is_said() -> None:
    for attention, expected in ((Rotary, "stands between"), (FusedRotary, "stands between"), (Positional, "beside the logits")):
        model, x = net(attention)
        graph = trace(model, x[:2])
        _, report = recovered(model, x, half(graph), graph)
        noted = [layer for layer in report.layers if expected in layer.note]
        assert noted and all(layer.at == "layer" and layer.action for layer in noted), attention


def test_heads_that_share_their_keys_are_seen() -> None:
    for attention in (Grouped, Repeated):
        model, x = net(attention)
        run = record_operations(model, x[:2])
        (product,) = find_products(run, find_sites(run, model), 2)[0]
        assert product.query_columns.unique().numel() == 16 and product.key_columns.unique(dim=0).shape == (2, 4)
        assert product.query_rows.pattern.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_packed_projections_have_an_entry_for_each_part() -> None:
    model, x = net(Fused)
    graph = trace(model, x[:2])
    _, report = recovered(model, x, half(graph), graph)
    names = [layer.layer for layer in report.layers]
    assert "attention.qkv (queries, keys)" in names and "attention.qkv (other outputs)" in names
    assert len(names) == len(set(names))


class Decoder(Cross):
    """What the keys read is made after the queries, by a layer of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.encode = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, self.heads, -1).transpose(1, 2)
        memory = self.encode(x)
        k, v = (f(memory).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_keys_of_layers_that_are_fitted_later_wait_for_them() -> None:
    model, x = net(Decoder)
    graph = trace(model, x[:2])
    _, report = recovered(model, x, half(graph), graph)
    noted = {layer.layer for layer in report.layers if "fitted after the other" in layer.note}
    assert noted == {"attention.q", "attention.k"} and not any(layer.at == "logits" for layer in report.layers)


def test_sequences_of_several_lengths_are_fitted_to_their_values() -> None:
    model, x = net(Fused)
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    selection = half(graph)
    prune(network, graph, selection)
    data = [x[:40], torch.randn(40, 9, 5), x[40:80], torch.randn(40, 9, 5)]
    report = recover(network, model, data, graph=graph, selection=selection)
    noted = [layer for layer in report.layers if "several lengths" in layer.note]
    assert [layer.layer for layer in noted] == ["attention.qkv"] and noted[0].action
