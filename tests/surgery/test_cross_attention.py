"""Branches that read more than the stream they are added to: attention over another sequence, a time embedding inside a convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.copying import copied
from latprune.graph import ModelGraph, Selection, trace
from latprune.surgery import check_equal, masked, prune
from support.equivalence import random_selection


class Attention(nn.Module):
    """Attention over ``other``; returns its result and the bias that it used, zeros in a size of its own where none is given."""

    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.heads, self.head = heads, head
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, heads * head) for _ in range(3))
        self.out = nn.Linear(heads * head, width)

    def forward(self, x: Tensor, other: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        other = x if other is None else other
        q, k, v = (
            layer(y).view(*y.shape[:-1], -1, self.head).transpose(1, 2) for layer, y in ((self.q, x), (self.k, other), (self.v, other))
        )
        if bias is None:
            bias = torch.zeros((1, self.heads, x.shape[1], other.shape[1]), dtype=x.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1)), bias


class Feed(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


class Decoder(nn.Module):
    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.own, self.cross, self.feed = Attention(width, heads, head), Attention(width, heads, head), Feed(width, 2 * width)

    def forward(self, x: Tensor, other: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x + self.own(x)[0]
        mixed, bias = self.cross(x, other, bias)
        x = x + mixed
        return x + self.feed(x), bias


class Both(nn.Module):
    """An encoder and a decoder over two inputs; the decoder's layers share the bias of their attention over the encoder's result."""

    def __init__(self, layers: int = 3, heads: int = 4, head: int = 4, *, shared: bool = True) -> None:
        super().__init__()
        width = heads * head
        self.shared = shared
        self.table, self.answers = nn.Embedding(30, width), nn.Embedding(30, width)
        self.encoder = nn.ModuleList(Feed(width, 2 * width) for _ in range(2))
        self.decoder = nn.ModuleList(Decoder(width, heads, head) for _ in range(layers))
        self.head = nn.Linear(width, 7)

    def forward(self, ids: Tensor, answer: Tensor) -> Tensor:
        x, y, bias = self.table(ids), self.answers(answer), None
        for layer in self.encoder:
            x = x + layer(x)
        for layer in self.decoder:
            y, made = layer(y, x, bias)
            bias = made if self.shared else None
        return self.head(y)


IDS = (torch.randint(0, 30, (2, 7)), torch.randint(0, 30, (2, 5)))


def _agree(model: nn.Module, graph: ModelGraph, selection: Selection, inputs: object) -> nn.Module:
    pruned = copied(model)
    prune(pruned, graph, selection)
    assert check_equal(pruned, masked(model, graph, selection), inputs).equal
    return pruned


@pytest.mark.parametrize(("heads", "head"), [(2, 6), (4, 4), (6, 2)])
@pytest.mark.parametrize("shared", [True, False])
def test_random_cuts_with_their_blocks(heads: int, head: int, shared: bool) -> None:
    model = Both(heads=heads, head=head, shared=shared).eval()
    graph = trace(model, IDS)
    for seed in range(3):
        _agree(model, graph, random_selection(graph, np.random.default_rng(seed), blocks=2), IDS)


@pytest.mark.parametrize("form", ["class", "program"])
def test_an_attention_over_another_sequence_is_a_block(form: str) -> None:
    model = Both(shared=False).eval()
    graph = trace(model, IDS, form=form)
    model = graph.program if graph.program is not None else model
    crossing = {block.name for block in graph.blocks.values() if any(".cross.k" in kernel for kernel in block.kernels)}
    assert len(crossing) == 3 and all(graph.blocks[name].removable for name in crossing)
    pruned = _agree(model, graph, Selection(kept={}, removed_blocks=frozenset(crossing)), IDS)
    assert not [name for name, _ in pruned.named_parameters() if ".cross." in name]


def test_what_makes_a_bias_that_others_read_stays() -> None:
    graph = trace(Both().eval(), IDS)
    crossing = [block for block in graph.blocks.values() if any(".cross.k" in kernel for kernel in block.kernels)]
    assert [block.removable for block in crossing] == [False, True, True]
    assert "'decoder.0.cross' also returns values that are read outside of the branch" in crossing[0].reason


def test_heads_that_one_attribute_counts_go_together() -> None:
    """The first layer makes zeros for as many heads as it has, and hands them to layers that have their own number."""
    model = Both().eval()
    graph = trace(model, IDS)
    (name,) = [name for name, group in graph.groups.items() if name.endswith(":heads") and "cross" in name]
    assert {m.tensor for m in graph.groups[name].members if m.tensor.endswith(".q.weight")} == {
        f"decoder.{k}.cross.q.weight" for k in range(3)
    }
    pruned = _agree(model, graph, Selection(kept={name: np.array([0, 2])}), IDS)
    assert pruned.decoder[0].cross.heads == 2
    assert [layer.cross.q.out_features for layer in pruned.decoder] == [8, 8, 8]


def test_zeros_of_a_fixed_number_of_heads_keep_them() -> None:
    class Fixed(Attention):
        def forward(self, x: Tensor, other: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(x, other, torch.zeros((1, 4, x.shape[1], (x if other is None else other).shape[1])))

    model = Both().eval()
    for layer in model.decoder:
        layer.own.__class__ = Fixed
    graph = trace(model, IDS)
    assert not [name for name in graph.groups if name.endswith(":heads") and ".own" in name]
    _agree(model, graph, random_selection(graph, np.random.default_rng(0)), IDS)


def test_an_encoder_that_one_branch_reads() -> None:
    """In the class it runs on, for it is no part of the layer that goes; a program takes it along."""
    model = Both(layers=1).eval()
    for form in ("class", "program"):
        graph = trace(model, IDS, form=form)
        net = graph.program if graph.program is not None else model
        (crossing,) = [block for block in graph.blocks.values() if any(".cross.k" in kernel for kernel in block.kernels)]
        assert any(kernel.startswith("encoder") for kernel in crossing.kernels) == (form == "program")
        pruned = _agree(net, graph, Selection(kept={}, removed_blocks=frozenset({crossing.name})), IDS)
        assert any(name.startswith("encoder") for name, _ in pruned.named_parameters()) == (form == "class")


class Timed(nn.Module):
    """A residual block with a time embedding, as in networks that remove noise."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first, self.second, self.time = (
            nn.Conv2d(before, after, 3, padding=1),
            nn.Conv2d(after, after, 3, padding=1),
            nn.Linear(6, after),
        )
        self.short = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.first(x)) + self.time(F.silu(time))[:, :, None, None]
        return self.short(x) + self.second(F.silu(h))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.last = nn.Conv2d(3, 8, 3), nn.ModuleList([Timed(8, 8), Timed(8, 12)]), nn.Conv2d(12, 3, 3)
        self.time = nn.Linear(1, 6)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x, time = self.stem(x), self.time(time[:, None])
        for block in self.blocks:
            x = block(x, time)
        return self.last(x)


def test_a_block_with_a_time_embedding() -> None:
    model, inputs = Denoiser().eval(), (torch.randn(2, 3, 9, 9), torch.rand(2))
    graph = trace(model, inputs)
    assert {name: (block.removable, block.shortcut) for name, block in graph.blocks.items()} == {
        "blocks.0": (True, "identity"),
        "blocks.1": (True, "projection"),
    }
    for seed in range(3):
        _agree(model, graph, random_selection(graph, np.random.default_rng(seed), blocks=1), inputs)
    _agree(model, graph, Selection(kept={}, removed_blocks=frozenset(graph.blocks)), inputs)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_t5(gated: bool, implementation: str) -> None:
    from support.vision import torchvision

    torchvision()
    transformers = pytest.importorskip("transformers")
    generator = np.random.default_rng([gated, implementation == "eager"])
    heads, head = int(generator.choice([2, 3, 4])), int(generator.choice([4, 6, 8]))
    config = transformers.T5Config(
        vocab_size=40,
        d_model=int(generator.choice([24, 32])),
        d_kv=head,
        d_ff=int(generator.choice([32, 40])),
        num_layers=2,
        num_heads=heads,
        feed_forward_proj="gated-gelu" if gated else "relu",
        use_cache=False,
        attn_implementation=implementation,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    inputs = {"input_ids": torch.randint(3, 40, (2, 7)), "decoder_input_ids": torch.randint(3, 40, (2, 5))}
    graph = trace(model, inputs)
    kept = {kept.what: kept.reason for kept in graph.kept_whole}
    assert not [what for what in kept if what.endswith(":heads")], kept
    removable = {name for name, block in graph.blocks.items() if block.removable}
    # The first attention of either kind makes the bias that the later ones read.
    assert set(graph.blocks) - removable == {"encoder.block.0.layer.0", "decoder.block.0.layer.0", "decoder.block.0.layer.1"}
    assert "decoder.block.1.layer.1" in removable
    for seed in range(2):
        _agree(model, graph, random_selection(graph, np.random.default_rng(seed), blocks=2), inputs)
