from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune import zoo
from latprune.errors import CheckpointError, InvalidArgumentError, SurgeryError
from latprune.graph import ModelGraph, Selection, trace
from latprune.program import capture
from latprune.surgery import TrainingMask, mask_groups, mask_places, masked, prune
from support.equivalence import random_selection

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 5


class Small(nn.Module):
    """Two convolutions, and a residual block with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = Branch()
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(torch.tanh(self.stem(x))).mean((2, 3)))


class Branch(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


def small() -> tuple[nn.Module, ModelGraph]:
    torch.manual_seed(0)
    model = Small()
    return model, trace(model, X)


def halves(graph: ModelGraph, blocks: frozenset[str] = frozenset()) -> Selection:
    return Selection(
        kept={n: np.flatnonzero(np.tile(np.arange(g.columns) % 2 == 0, g.rows)) for n, g in graph.groups.items()}, removed_blocks=blocks
    )


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor = X, y: Tensor = Y) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_hard_masks_stay_zero_under_decay_and_old_momentum_and_bring_back_what_was_there(kind: str) -> None:
    model, graph = small()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(3):
        step(model, optimizer)
    before = values(model)
    mask = TrainingMask(model, graph, example_inputs=X)
    mask.attach(optimizer, optimizer)
    selection = halves(graph)
    mask.set(selection)
    found = mask_groups.find_group_masks(model, graph)
    gone = {m.tensor: (m, g) for g in graph.groups.values() for m in found[g.name].zeros}
    assert {"block.conv2.weight", "head.weight", "block.conv1.weight"} <= set(gone)
    for _ in range(5):
        step(model, optimizer)
        for name, (member, group) in gone.items():
            places = torch.from_numpy(member.positions[~np.isin(member.units, selection.kept[group.name])])
            parameter = model.get_parameter(name)
            assert bool((parameter.index_select(member.dim, places) == 0).all())
            states = [s for s in optimizer.state[parameter].values() if isinstance(s, Tensor) and s.shape == parameter.shape]
            assert states and all(bool((s.index_select(member.dim, places) == 0).all()) for s in states)
    trained = values(model)
    mask.set(None)
    after = values(model)
    for name, value in after.items():
        same = torch.ones_like(value, dtype=torch.bool)
        for group in graph.groups.values():
            for member in group.members:
                if member.tensor == name:
                    places = torch.from_numpy(member.positions[np.isin(member.units, selection.kept[group.name])])
                    same &= torch.zeros_like(same).index_fill_(member.dim, places, True)
        # ``same``: kept in all of its dimensions, so trained under the mask; the rest is as it was before.
        assert torch.equal(value[same], trained[name][same])
        assert torch.equal(value[~same], before[name][~same])
        assert bool(same.any()) and not torch.equal(value[same], before[name][same])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_under_a_hard_mask_is_training_the_cut_network(kind: str) -> None:
    model, graph = small()
    model, selection = model.double(), halves(graph)
    cut = copy.deepcopy(model)
    prune(cut, graph, selection)
    mask = TrainingMask(model, graph)
    mask.set(selection)
    optimizer, other = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](cut.parameters())
    mask.attach(optimizer)
    for _ in range(5):
        assert step(model, optimizer, X.double()) == pytest.approx(step(cut, other, X.double()), rel=1e-9)
    with mask.dense_values():
        copied = copy.deepcopy(model)
    prune(copied, graph, selection)
    for name, value in values(copied).items():
        assert torch.allclose(value, cut.get_parameter(name), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_straight_through_training_is_that_of_a_reference_written_by_hand(kind: str) -> None:
    """Two linear layers: the second one's columns are masked by hand, with the gradient passed on to the dense weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5)).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    graph = trace(model, x)
    (name,) = graph.groups
    reference = copy.deepcopy(model)
    keep = torch.zeros(6, dtype=torch.float64)
    keep[[0, 3]] = 1.0
    optimizer, other = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](reference.parameters())
    mask = TrainingMask(model, graph, straight_through=True, weight_decay=0.5, example_inputs=x)
    mask.attach(optimizer)
    mask.set(Selection(kept={name: np.array([0, 3])}))
    for _ in range(5):
        step(model, optimizer, x)
        last = reference[2]
        assert isinstance(last, nn.Linear)
        weight = last.weight + (last.weight * keep - last.weight).detach()  # the value is masked, the gradient is not
        other.zero_grad()
        F.cross_entropy(F.linear(torch.sigmoid(reference[0](x)), weight, last.bias), Y).backward()
        other.step()
        with torch.no_grad():
            last.weight.mul_(1.0 - (1.0 - keep) * other.param_groups[0]["lr"] * 0.5)
    with mask.dense_values():
        for key, value in values(model).items():
            assert torch.allclose(value, reference.get_parameter(key), rtol=1e-12, atol=0)
    assert bool((model.get_parameter("2.weight")[:, [1, 2, 4, 5]] == 0).all())
    mask.set(Selection(kept={name: np.array([0, 1, 3])}))  # one comes back
    assert torch.allclose(model.get_parameter("2.weight")[:, 1], reference.get_parameter("2.weight")[:, 1], rtol=1e-12, atol=0)
    assert bool((model.get_parameter("2.weight")[:, [2, 4, 5]] == 0).all())
    mask.close()
    for key, value in values(model).items():
        assert torch.allclose(value, reference.get_parameter(key), rtol=1e-12, atol=0)


def test_a_removed_block_contributes_nothing_in_training_and_learns_straight_through() -> None:
    model, graph = small()
    (block,) = graph.blocks
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    mask = TrainingMask(model, graph, straight_through=True)
    mask.attach(optimizer)
    mask.set(Selection(kept={}, removed_blocks=frozenset([block])))
    features = torch.tanh(model.get_submodule("stem")(X))
    assert torch.equal(model.get_submodule("block")(features), features)
    with mask.dense_values():
        before = values(model)
    step(model, optimizer)
    assert torch.equal(model.get_submodule("block")(features.detach()), features)
    with mask.dense_values():
        after = values(model)
    assert not torch.equal(before["block.norm2.weight"], after["block.norm2.weight"])


class RootMeanSquare(nn.Module):
    """A norm as language models write it themselves."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attending(nn.Module):
    """Pre-norm attention and a perceptron over tokens, both kinds of norm."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.norm, self.late = nn.LayerNorm(8), RootMeanSquare(8)
        self.q, self.k, self.v, self.out = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        h = self.norm(x)
        q, k, v = (f(h).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))
        return self.head(self.late(x).mean(1))


def test_products_of_activations_keep_a_gradient_and_norms_count_kept_channels() -> None:
    torch.manual_seed(0)
    model, x = Attending(), torch.randn(4, 7, 6)
    graph = trace(model, x)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    mask = TrainingMask(model, graph, straight_through=True, example_inputs=x)
    assert not mask.unmaskable
    mask.attach(optimizer)
    selection = random_selection(graph, np.random.default_rng(3), low=0.5, high=0.5, blocks=0)
    mask.set(selection)
    with mask.dense_values():
        before = values(model)
        assert "forward" not in model.norm.__dict__
        expected = masked(model, graph, selection)(x)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert torch.allclose(copy.deepcopy(model)(x), expected, atol=1e-5)
    step(model, optimizer, x, Y[:4])
    with mask.dense_values():
        moved = {name: (value != before[name]).float().mean() for name, value in values(model).items()}
    assert all(share > 0.4 for name, share in moved.items() if name != "k.bias"), moved
    mask.set(None)
    assert "forward" not in model.norm.__dict__ and not model.norm._forward_hooks


@pytest.mark.parametrize("norm", [nn.LayerNorm((8, 4, 4)), nn.GroupNorm(2, 8), nn.GroupNorm(8, 8), nn.GroupNorm(2, 8, affine=False)])
@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_counted_norms_are_those_of_the_cut_network(norm: nn.Module, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), copy.deepcopy(norm), nn.ReLU(), nn.Conv2d(8, 4, 1)).double()
    graph = trace(model, x)
    selection = Selection(kept={"0": np.array([0, 1, 4, 6])})
    cut = copy.deepcopy(model)
    prune(cut, graph, selection)
    mask = TrainingMask(model.to(kind), graph)
    mask.set(selection)
    got, wanted = model(x.to(kind)), cut.to(kind)(x.to(kind))
    assert got.dtype == wanted.dtype
    assert torch.allclose(got, wanted, rtol=1e-9 if kind is torch.float64 else 0.05, atol=1e-9 if kind is torch.float64 else 0.05)


class Mixing(nn.Module):
    """A softmax over channels, or a mean over them."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.mix = nn.Linear(3, 6), nn.Linear(6, 5), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.mix(self.first(x)))


@pytest.mark.parametrize(
    ("mix", "word"),
    [
        (lambda x: x.softmax(-1), "_softmax"),
        (lambda x: x * x.var(-1, keepdim=True), "var"),
        (lambda x: x * x.mean(-1, keepdim=True) * torch.cat([x, x], -1).mean(-1, keepdim=True), "mean"),
        (lambda x: x * x.amax(-1, keepdim=True), "amax"),
    ],
)
def test_operations_that_mix_channels_are_refused_in_words(mix: Callable[[Tensor], Tensor], word: str) -> None:
    model = Mixing(mix)
    graph = trace(model, torch.randn(2, 3))
    mask = TrainingMask(model, graph)
    assert word in mask.unmaskable["first"]
    with pytest.raises(SurgeryError, match="'first' cannot be masked in training"):
        mask.set(Selection(kept={"first": np.array([0, 1])}))
    mask.set(Selection(kept={"first": np.arange(6)}))


class Permuted(nn.LayerNorm):
    """A layer norm over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x * x.mean(-1, keepdim=True),
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: F.rms_norm(x, x.shape[-1:]),
        lambda x: F.group_norm(x, 2),
        RootMeanSquare(6),
        nn.LayerNorm(6),
        nn.RMSNorm(6),
        Permuted(6),
    ],
)
def test_norms_and_means_that_a_forward_computes_itself_count_kept_channels(mix: Callable[[Tensor], Tensor], form: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, dtype=torch.float64)
    model: nn.Module = Mixing(mix).double()
    model = capture(model, x) if form == "program" else model
    graph = trace(model, x)
    mask = TrainingMask(model, graph)
    assert not mask.unmaskable
    selection = Selection(kept={"first": np.array([0, 2, 3, 5])})
    cut = copy.deepcopy(model)
    prune(cut, graph, selection)
    dense = model(x)
    mask.set(selection)
    assert torch.allclose(model(x), cut(x), rtol=1e-9)
    with mask.dense_values():
        assert torch.equal(model(x), dense)
    mask.set(None)
    assert torch.equal(model(x), dense)


def test_sums_over_channels_read_zero() -> None:
    x = torch.randn(2, 3)
    model = Mixing(lambda x: F.normalize(torch.tanh(x), dim=-1) + x.sum(-1, keepdim=True))
    graph = trace(model, x)
    mask = TrainingMask(model, graph, example_inputs=x)
    mask.set(Selection(kept={"first": np.array([0, 4])}))
    assert bool((model.first.weight[[1, 2, 3, 5]] == 0).all() and (model.first.bias[[1, 2, 3, 5]] == 0).all())
    model = Mixing(lambda x: torch.sigmoid(x) + torch.sigmoid(x).sum(-1, keepdim=True))
    assert "sigmoid" in TrainingMask(model, trace(model, x)).unmaskable["first"]


def test_constant_buffers_among_what_makes_a_channel_are_masked_too() -> None:
    class Fused(nn.Module):
        """Queries and keys from one layer, the keys without a bias that trains."""

        def __init__(self) -> None:
            super().__init__()
            self.enter, self.out = nn.Linear(3, 4), nn.Linear(4, 5)
            self.weight, self.q_bias = nn.Parameter(torch.randn(12, 4)), nn.Parameter(torch.randn(4))
            self.register_buffer("k_bias", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            bias = torch.cat((self.q_bias, self.k_bias, self.q_bias))
            q, k, v = F.linear(self.enter(x), self.weight, bias).chunk(3, -1)
            return self.out((q @ k.transpose(-2, -1)).softmax(-1) @ v)

    torch.manual_seed(0)
    model, x = Fused(), torch.randn(2, 5, 3)
    graph = trace(model, x)
    mask = TrainingMask(model, graph, example_inputs=x)
    assert not mask.unmaskable
    mask.set(halves(graph))
    assert not bool((model.k_bias == 1).all())
    mask.set(None)
    assert bool((model.k_bias == 1).all())


def spoil(monkeypatch: pytest.MonkeyPatch, model: nn.Module, graph: ModelGraph) -> str:
    """From now on one group of the small network is masked by nothing; its name."""
    found = mask_groups.find_group_masks(model, graph)
    broken = next(name for name, group in found.items() if any(m.tensor == "block.conv2.weight" for m in group.zeros))
    found[broken] = mask_groups.GroupMask()
    monkeypatch.setattr(mask_places, "find_group_masks", lambda model, graph: found)
    return broken


def test_the_check_names_what_a_rule_got_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = small()
    broken = spoil(monkeypatch, model, graph)
    before = values(model)
    mask = TrainingMask(model, graph, straight_through=True, example_inputs=X)
    with pytest.raises(SurgeryError, match=f"because of '{broken}'"):
        mask.set(halves(graph))
    assert mask.selection is None
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())


class OneType(Small):
    """Runs in float32 alone."""

    error: type[Exception] = RuntimeError

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise self.error("float32 expected")
        return super().forward(x)


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (RuntimeError, SurgeryError, "float64 does not decide, as the dense model does not run in it: RuntimeError: float32 expected"),
        (AssertionError, SurgeryError, "relative difference"),
        (LookupError, LookupError, "float32 expected"),
    ],
)
def test_where_float64_does_not_decide_the_check_says_why(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], raised: type[Exception], words: str
) -> None:
    torch.manual_seed(0)
    model = OneType()
    graph = trace(model, X)
    spoil(monkeypatch, model, graph)
    before = values(model)
    model.error = error
    mask = TrainingMask(model, graph, example_inputs=X)
    with pytest.raises(raised, match=words):
        mask.set(halves(graph))
    assert mask.selection is None
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())


@pytest.mark.parametrize("straight_through", [False, True])
def test_state_goes_on_exactly(straight_through: bool, tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    def begin() -> tuple[nn.Module, ModelGraph, torch.optim.Optimizer, TrainingMask]:
        model, graph = small()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        mask = TrainingMask(model, graph, straight_through=straight_through)
        mask.attach(optimizer)
        return model, graph, optimizer, mask

    model, graph, optimizer, mask = begin()
    mask.set(halves(graph, frozenset(graph.blocks)))
    step(model, optimizer)
    save_file(mask.state_dict(), tmp_path / "mask.safetensors")
    saved, progress = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    step(model, optimizer)
    mask.set(None)

    again, graph, optimizer, other = begin()
    other.set(Selection(kept={next(iter(graph.groups)): np.array([0])}))
    other.load_state_dict(load_file(tmp_path / "mask.safetensors"))
    again.load_state_dict(saved)
    optimizer.load_state_dict(progress)
    assert other.selection is not None and other.selection.removed_blocks == frozenset(graph.blocks)
    step(again, optimizer)
    other.set(None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    other.load_state_dict(other.state_dict())
    assert other.selection is None


def test_states_of_others_are_refused() -> None:
    model, graph = small()
    mask = TrainingMask(model, graph)
    mask.set(halves(graph))
    state = mask.state_dict()
    with pytest.raises(CheckpointError, match="straight_through=True"):
        TrainingMask(model, graph, straight_through=True).load_state_dict(state)
    with pytest.raises(CheckpointError, match="is missing or has another shape"):
        mask.load_state_dict({name: value for name, value in state.items() if not name.startswith("hidden.0.head")})
    with pytest.raises(CheckpointError, match="of another network"):
        mask.load_state_dict({**state, "kept.nothing": torch.tensor([0])})


def test_arguments_are_checked() -> None:
    model, graph = small()
    mask = TrainingMask(model, graph)
    name = next(iter(graph.groups))
    with pytest.raises(InvalidArgumentError, match="no channel group"):
        mask.set(Selection(kept={"nothing": np.array([0])}))
    with pytest.raises(InvalidArgumentError, match="increasing unit indices"):
        mask.set(Selection(kept={name: np.array([2, 1])}))
    with pytest.raises(InvalidArgumentError, match="no block"):
        mask.set(Selection(kept={}, removed_blocks=frozenset(["nothing"])))
    with pytest.raises(InvalidArgumentError, match="needs straight_through=True"):
        TrainingMask(model, graph, weight_decay=0.1)
    with pytest.raises(InvalidArgumentError, match="at least 0"):
        TrainingMask(model, graph, straight_through=True, weight_decay=-0.1)
    mask.set(halves(graph))
    with mask.dense_values(), pytest.raises(SurgeryError, match="within dense_values"):
        mask.set(None)
    with mask.dense_values(), pytest.raises(SurgeryError, match="within dense_values"):
        mask.load_state_dict(mask.state_dict())
    optimizer = torch.optim.LBFGS(model.parameters())
    mask.attach(optimizer)
    with pytest.raises(InvalidArgumentError, match="closure"):
        optimizer.step(lambda: 0.0)
    mask.detach()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_model_that_was_cut_since_is_refused() -> None:
    model, graph = small()
    prune(model, graph, halves(graph))
    with pytest.raises(SurgeryError, match="not the dense one that was traced"):
        TrainingMask(model, graph)
    with pytest.raises(SurgeryError, match="does not exist"):
        TrainingMask(nn.Linear(3, 3), graph)


def test_what_several_groups_share_tied_frozen_and_channels_last_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mid, self.last = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
            self.last.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.table(tokens)
            return self.last(x + torch.relu(self.mid(x)))

    torch.manual_seed(0)
    model, tokens = Tied(), torch.arange(10).reshape(2, 5)
    graph = trace(model, tokens)
    mask = TrainingMask(model, graph, example_inputs=tokens)
    selection = halves(graph)
    mask.set(selection)
    assert model.last.weight is model.table.weight
    with mask.dense_values():
        expected = masked(model, graph, selection)(tokens)
    assert torch.allclose(model(tokens), expected, atol=1e-6)

    other, graph = small()
    other.to(memory_format=torch.channels_last)
    other.get_parameter("block.conv2.weight").requires_grad_(False)
    before = values(other)
    mask = TrainingMask(other, graph, straight_through=True, example_inputs=X)
    optimizer = OPTIMIZERS["sgd"]([p for p in other.parameters() if p.requires_grad])
    mask.attach(optimizer)
    mask.set(halves(graph))
    with torch.autocast("cpu", torch.bfloat16):
        step(other, optimizer)
    mask.set(None)
    weight = other.get_parameter("block.conv2.weight")
    assert torch.equal(weight, before["block.conv2.weight"])
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("recorded", [torch.contiguous_format, torch.channels_last])
def test_a_mask_is_checked_whatever_layout_the_model_was_recorded_in(recorded: torch.memory_format) -> None:
    """Channels last, pooling to one pixel and flattening are other operations than contiguous."""
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    images = torch.randn(2, 3, 12, 12)
    graph = trace(model.to(memory_format=recorded), images)
    model.to(memory_format=torch.contiguous_format if recorded == torch.channels_last else torch.channels_last)
    dense = model(images)
    mask = TrainingMask(model, graph, example_inputs=images)
    mask.set(halves(graph))
    assert not torch.allclose(model(images), dense)
    mask.set(None)
    assert torch.equal(model(images), dense)


def test_fused_fast_paths_do_not_pass_by_the_mask() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 4)).eval(), torch.randn(2, 5, 3)
    graph = trace(model, x)
    selection = halves(graph)
    expected = masked(model, graph, selection)(x)
    mask = TrainingMask(model, graph)
    mask.set(selection)
    with torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-6)


def test_a_part_of_a_network_is_masked() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.body, self.after = nn.Linear(3, 4), Mixing(nn.LayerNorm(6)), nn.Linear(5, 2)
            self.body.first = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.body(torch.sort(self.before(x))[0])).softmax(-1)

    torch.manual_seed(0)
    model, x = Whole(), torch.randn(2, 3)
    mask = TrainingMask(model, trace(model, x, within="body"), example_inputs=x)
    mask.set(Selection(kept={"body.first": np.array([0, 3])}))
    assert bool((model.body.second.weight[:, [1, 2, 4, 5]] == 0).all())


def test_compiled_networks_train_alike() -> None:
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, x = Attending(), torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(1))
        graph = trace(model, x)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        mask = TrainingMask(model, graph, straight_through=True)
        mask.attach(optimizer)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        step(run, optimizer, x, Y[:4])
        mask.set(halves(graph))
        losses = [step(run, optimizer, x, Y[:4]) for _ in range(3)]
        mask.set(None)
        results.append((losses, values(model)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, value in results[0][1].items():
        assert torch.allclose(value, results[1][1][name], atol=1e-5)


def test_new_masks_are_no_reason_to_compile_again() -> None:
    from torch._dynamo.testing import CompileCounter

    model, x = Attending(), torch.randn(4, 7, 6)
    graph = trace(model, x)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    mask = TrainingMask(model, graph, straight_through=True)
    mask.attach(optimizer)
    counter = CompileCounter()
    run = torch.compile(model, backend=counter)
    for seed in range(4):
        mask.set(random_selection(graph, np.random.default_rng(seed), low=0.5, high=0.7, blocks=0))
        step(run, optimizer, x, Y[:4])
        with mask.dense_values():
            pass
        step(run, optimizer, x, Y[:4])
    assert counter.frame_count == 1


def test_optimizers_that_accelerate_wraps() -> None:
    from accelerate import Accelerator

    model, graph = small()
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    wrapped, optimizer = accelerator.prepare(model, OPTIMIZERS["sgd"](model.parameters()))
    mask = TrainingMask(model, graph)
    mask.attach(optimizer)
    mask.set(halves(graph))
    optimizer.zero_grad()
    accelerator.backward(F.cross_entropy(wrapped(X), Y))
    optimizer.step()
    assert bool((model.get_parameter("head.weight")[:, 1::2] == 0).all())


def test_zoo_network_trains_under_masks_that_move() -> None:
    torch.manual_seed(0)
    model = zoo.cifar_resnet(20, "A")
    graph = trace(model, X)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    mask = TrainingMask(model, graph, straight_through=True, example_inputs=X)
    mask.attach(optimizer)
    assert not mask.unmaskable
    for seed in range(3):
        mask.set(random_selection(graph, np.random.default_rng(seed)))
        assert np.isfinite(step(model, optimizer))
    with mask.dense_values():
        dense = values(model)
    mask.close()
    assert all(torch.equal(value, dense[name]) for name, value in values(model).items())
