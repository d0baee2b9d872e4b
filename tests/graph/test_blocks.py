"""Residual branches: where they are found, how their removal is carried out, and why some stay."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune import zoo
from latprune.graph import Selection, trace
from latprune.surgery import RemovedBranch, RemovedPart, prune
from support.equivalence import assert_pruned_equals_masked, randomise


def test_kinds_of_shortcut() -> None:
    graph = trace(zoo.cifar_resnet(14, "A"), torch.randn(1, 3, 16, 16))
    assert {n: b.shortcut for n, b in graph.blocks.items()} == {
        "layer1.0": "identity",
        "layer1.1": "identity",
        "layer2.0": "pad",
        "layer2.1": "identity",
        "layer3.0": "pad",
        "layer3.1": "identity",
    }
    graph = trace(zoo.cifar_resnet(8, "B"), torch.randn(1, 3, 16, 16))
    assert [b.shortcut for b in graph.blocks.values()] == ["identity", "projection", "projection"]


def test_kernels_of_a_block_and_the_activation_after_the_sum() -> None:
    model = zoo.cifar_resnet(8, "B")
    graph = trace(model, torch.randn(1, 3, 16, 16))
    assert "layer1.0.conv1" in graph.blocks["layer1.0"].kernels
    assert "layer2.0.shortcut.0" not in graph.blocks["layer2.0"].kernels
    prune(model, graph, Selection(kept={}, removed_blocks=frozenset({"layer1.0", "layer2.0"})))
    first, second = model.layer1[0], model.layer2[0]
    assert isinstance(first, RemovedBranch) and isinstance(second, RemovedBranch)
    assert first.steps == []  # the ReLU of a ReLU's output is dropped
    assert [s[:2] for s in second.steps] == [("module", "shortcut"), ("op", "relu")]
    assert "layer2.0.shortcut.0.weight" in model.state_dict()
    assert not any(k.startswith("layer2.0.conv1") for k in model.state_dict())


class PreNorm(nn.Module):
    """Two branches in one module, as a transformer layer has them; attention returns a tuple."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 3 * width)
        self.fc2 = nn.Linear(3 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layers = nn.Sequential(PreNorm(), PreNorm())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x)).mean(1))


def test_two_branches_of_one_module() -> None:
    model = randomise(Encoder())
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    graph = trace(model, x)
    assert list(graph.blocks) == ["layers.0", "layers.0#2", "layers.1", "layers.1#2"]
    assert all(b.removable for b in graph.blocks.values())
    for removed in ({"layers.0"}, {"layers.1#2"}, {"layers.0", "layers.0#2"}, set(graph.blocks)):
        pruned = copy.deepcopy(model)
        prune(pruned, graph, Selection(kept={}, removed_blocks=frozenset(removed)))
        expected = graph.parameters(graph.dense_widths(), removed)
        assert sum(p.numel() for p in pruned.parameters()) == expected
    assert isinstance(pruned.layers[0].attn, RemovedPart)
    assert pruned.layers[0].fc2.zero == "scalar"
    for seed in range(3):
        assert_pruned_equals_masked(model, x, seed=seed)


class Scaled(nn.Module):
    """A branch that ends in the module's own code: a layer scale and a permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.fc1 = nn.Linear(8, 16)
        self.fc2 = nn.Linear(16, 8)
        self.gamma = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(x).permute(0, 2, 3, 1)
        y = self.gamma * self.fc2(F.gelu(self.fc1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


def test_a_scaled_branch_goes_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Scaled(), Scaled(), nn.Conv2d(8, 4, 1))
    graph = trace(model, torch.randn(1, 3, 6, 6))
    assert [(n, b.removable) for n, b in graph.blocks.items()] == [("1", True), ("2", True)]
    assert_pruned_equals_masked(randomise(model), torch.randn(2, 3, 6, 6, dtype=torch.float64), blocks=1)


class Nested(nn.Module):
    """A residual branch that holds another one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(6, 6, 1)
        self.inner = zoo.CifarBlock(6, 6, 1, "A")
        self.b = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.inner(torch.relu(self.a(x))))


def test_nested_branches_name_their_parents() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Nested(), nn.Conv2d(6, 2, 1))
    graph = trace(model, torch.randn(1, 3, 6, 6))
    assert graph.blocks["1.inner"].parents == ("1",)
    assert graph.kernels["1.inner.conv1"].blocks == ("1", "1.inner")
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for removed in ({"1"}, {"1.inner"}, {"1", "1.inner"}):
        pruned = copy.deepcopy(randomise(model))
        prune(pruned, graph, Selection(kept={}, removed_blocks=frozenset(removed)))
        with torch.no_grad():
            pruned(x)
        assert sum(p.numel() for p in pruned.parameters()) == graph.parameters(graph.dense_widths(), removed)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.block = zoo.CifarBlock(6, 6, 1, "A")
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(self.stem(x))))


def test_a_module_that_runs_twice_stays_with_a_reason() -> None:
    graph = trace(Shared(), torch.randn(1, 3, 6, 6))
    assert graph.blocks and not any(b.removable for b in graph.blocks.values())
    assert all("called several times" in b.reason for b in graph.blocks.values())


class Inline(nn.Module):
    """The branch is written with bare parameters in the forward of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + torch.relu(F.linear(x, self.weight)))


def test_a_branch_in_the_networks_own_code_stays_with_a_reason() -> None:
    graph = trace(Inline(), torch.randn(2, 4))
    (block,) = graph.blocks.values()
    assert not block.removable
    assert "forward of" in block.reason


def test_sums_without_a_nonlinearity_are_no_blocks() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(x + self.b(x))

    assert not trace(Linear(), torch.randn(2, 4)).blocks


def test_dense_networks_have_no_blocks() -> None:
    assert not trace(zoo.dense_network(4, (2, 2)), torch.randn(1, 3, 16, 16)).blocks


@pytest.mark.parametrize("depth", [8, 20])
def test_all_blocks_removed_leaves_the_stem_and_the_shortcuts(depth: int) -> None:
    model = randomise(zoo.cifar_resnet(depth, "A"))
    graph = trace(model, torch.randn(1, 3, 16, 16, dtype=torch.float64))
    prune(model, graph, Selection(kept={}, removed_blocks=frozenset(graph.blocks)))
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == {"conv1", "bn1", "linear"}
    assert model(torch.randn(1, 3, 16, 16, dtype=torch.float64)).shape == (1, 10)


class Dampened(nn.Module):
    """The branch changes the width, and is multiplied by numbers in the forward before the sum."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, out, 1)
        self.conv1, self.conv2 = nn.Conv2d(width, 6, 1), nn.Conv2d(6, out, 3, padding=1)
        self.act = nn.ReLU()
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) * 0.9
        out = self.conv2(self.act(self.conv1(x)))
        out.mul_(self.gain)
        return out * 0.3 + self.down(x)


class Change(nn.Module):
    """Branches that add a share of what a module changes, behind one drop path for all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.rand(2, width))
        self.norm = nn.GroupNorm(1, width)
        self.first = nn.Sequential(nn.Conv2d(width, 5, 1), nn.ReLU(), nn.Conv2d(5, width, 1))
        self.second = nn.Sequential(nn.Conv2d(width, 7, 1), nn.SiLU(), nn.Conv2d(7, width, 1))
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        share = self.share.sigmoid().view(2, -1, 1, 1)
        x = x + self.drop_path(share[0] * (self.first(self.norm(x)) - x))
        return x + self.drop_path(share[1] * (self.second(x) - x))


@pytest.mark.parametrize(("branch", "count"), [(lambda: Dampened(8, 10), 1), (lambda: Change(8), 2)])
def test_zeros_that_are_computed_with_before_the_sum(branch: object, count: int) -> None:
    last = 10 if count == 1 else 8
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), branch(), nn.Conv2d(last, 4, 1)))  # type: ignore[operator]
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = trace(model, x)
    assert [b.removable for b in graph.blocks.values()] == [True] * count, [b.reason for b in graph.blocks.values()]
    for seed in range(4):
        assert_pruned_equals_masked(model, x, seed=seed, blocks=1 + seed % count, graph=graph)


class Batched(nn.Module):
    """The images are copied into a batch that is made first, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(Change(8), Change(8))

    def forward(self, images: list[Tensor]) -> Tensor:
        batch = images[0].new_full((len(images), 3, 8, 8), 0.0)
        for place, image in enumerate(images):
            batch[place, :, : image.shape[1], : image.shape[2]].copy_(image)
        return self.blocks(self.stem(batch)).mean((1, 2, 3))


def test_blocks_behind_a_batch_that_is_filled_in_place() -> None:
    model = randomise(Batched())
    inputs = ([torch.rand(3, 6, 8, dtype=torch.float64), torch.rand(3, 8, 5, dtype=torch.float64)],)
    graph = trace(model, inputs)
    assert [b.removable for b in graph.blocks.values()] == [True] * 4
    assert_pruned_equals_masked(model, inputs, blocks=2, graph=graph)


class Memory:
    """What a decoder hands back to itself: no container that a tree of values knows."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []


class Both:
    """A memory inside of another object, as encoder-decoders have them."""

    def __init__(self, own: Memory) -> None:
        self.own = own


class Attend(nn.Module):
    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.query, self.key, self.value, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        keys = self.key(x)
        memory.keys.append(keys[:, -self.window :] if self.window else keys)
        return self.out(F.scaled_dot_product_attention(self.query(x), keys, self.value(x)))  # type: ignore[no-any-return]


class Remembering(nn.Module):
    def __init__(self, window: int) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(8), Attend(window)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = x + self.attend(self.norm(x), memory)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    def __init__(self, window: int, nested: bool) -> None:
        super().__init__()
        self.nested = nested
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.layers = nn.ModuleList(Remembering(window) for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, object]:
        x, memory = self.stem(x), Memory()
        for layer in self.layers:
            x = layer(x, memory)
        return {"logits": self.head(x), "memory": Both(memory) if self.nested else memory}


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("nested", [False, True])
def test_a_branch_whose_values_are_kept_stays(window: int, nested: bool) -> None:
    """Whether what is handed back lies in an object in an object, or is only a piece of what the branch computed."""
    graph = trace(Decoder(window, nested), torch.randn(2, 6, 8))
    assert {name: block.removable for name, block in graph.blocks.items()} == {
        "layers.0": False,
        "layers.0#2": True,
        "layers.1": False,
        "layers.1#2": True,
    }
    assert "returns values that are computed inside it" in graph.blocks["layers.0"].reason
