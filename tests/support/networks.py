"""Random networks as hypothesis strategies: mixtures of the structures that channel groups and blocks are made of.

A network is drawn as a plain recipe (nested tuples of names and numbers), so that a failing case prints and shrinks well. :func:`build`
makes the module from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from latprune.zoo import PadShortcut

Recipe = tuple[Any, ...]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu_": lambda: nn.ReLU(inplace=True),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(2, channels)
    return nn.Identity()


class ConvUnit(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: str, activation: str, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=norm == "none")
        self.norm = _norm(norm, outputs)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, inner: int, convolution: bool) -> None:
        super().__init__()
        self.convolution = convolution
        if convolution:
            self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        else:
            self.down, self.up = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=self.convolution)
        scale = torch.sigmoid(self.up(F.relu(self.down(pooled))))
        return x * (scale if self.convolution else scale[:, :, None, None])


class Residual(nn.Module):
    """A branch added to its shortcut, with an activation after the sum."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, activation: str, branch_first: bool) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.act = ACTIVATIONS[activation]()
        self.branch_first = branch_first

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x) + self.shortcut(x) if self.branch_first else self.shortcut(x) + self.branch(x)
        return self.act(out)


class Sum(nn.Module):
    """Two branches of equal standing, added or multiplied."""

    def __init__(self, first: nn.Module, second: nn.Module, multiply: bool) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        return a * torch.sigmoid(b) if self.multiply else a + b


class Concat(nn.Module):
    """Branches side by side, the input itself among them on request."""

    def __init__(self, branches: list[nn.Module], with_input: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.with_input = with_input

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        return torch.cat([x, *parts] if self.with_input else parts, dim=1)


class Partial(nn.Module):
    """Cross-stage partial: cut into halves, one goes on, all are joined."""

    def __init__(self, channels: int, unit: nn.Module, residual: bool) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 1)
        self.unit = unit
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.enter(x).chunk(2, dim=1)
        new = self.unit(second)
        return torch.cat((first, second, second + new if self.residual else new), dim=1)


class Shuffle(nn.Module):
    """Channel shuffle between two grouped convolutions."""

    def __init__(self, channels: int, groups: int, norm: str) -> None:
        super().__init__()
        self.enter = ConvUnit(channels, channels, 1, norm, "relu", groups)
        self.leave = nn.Conv2d(channels, channels, 1, groups=groups)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        out = self.enter(x)
        batch, channels, height, width = out.shape
        out = out.view(batch, self.groups, channels // self.groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.leave(out)


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self, channels: int, norm: str, activation: str) -> None:
        super().__init__()
        self.unit = ConvUnit(channels, channels, 3, norm, activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(self.unit(x))


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention over the places of a map, pre-norm, with its residual; queries, keys, values fused or apart."""

    def __init__(self, channels: int, heads: int, head_dim: int, fused: bool, by_hand: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.scale = head_dim**-0.5
        self.fused, self.by_hand = fused, by_hand
        inner = heads * head_dim
        self.norm = nn.LayerNorm(channels)
        if fused:
            self.qkv = nn.Linear(channels, 3 * inner)
        else:
            self.q, self.k, self.v = nn.Linear(channels, inner), nn.Linear(channels, inner), nn.Linear(channels, inner)
        self.out = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        h = self.norm(x)
        if self.fused:
            q, k, v = self.qkv(h).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(h).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.by_hand:
            mixed = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, self.heads * self.head_dim))


class Perceptron(nn.Module):
    """The two linear layers of a transformer, pre-norm, with their residual."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Tokens(nn.Module):
    """A map as a sequence of its places, and back."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        out = self.layers(x.flatten(2).transpose(1, 2))
        return out.transpose(1, 2).unflatten(2, (height, width))


def _layer(recipe: Recipe, channels: int) -> tuple[nn.Module, int]:
    """The module of one recipe and the channels that it leaves."""
    kind, *rest = recipe
    if kind == "conv":
        outputs, kernel, norm, activation = rest
        return ConvUnit(channels, outputs, kernel, norm, activation), outputs
    if kind == "depthwise":
        norm, activation = rest
        return ConvUnit(channels, channels, 3, norm, activation, groups=channels), channels
    if kind == "grouped":
        groups, per_group, norm, activation = rest
        enter = nn.Conv2d(channels, 2 * groups, 1)
        return nn.Sequential(enter, ConvUnit(2 * groups, groups * per_group, 3, norm, activation, groups)), groups * per_group
    if kind == "gate":
        return Gate(channels, *rest), channels
    if kind == "scale":
        return Scale(channels), channels
    if kind == "shared":
        return Shared(channels, *rest), channels
    if kind == "shuffle":
        half, norm = rest
        return nn.Sequential(nn.Conv2d(channels, 2 * half, 1), Shuffle(2 * half, 2, norm)), 2 * half
    if kind == "pool":
        return (nn.MaxPool2d(2) if rest[0] else nn.AvgPool2d(2)), channels
    if kind == "upsample":
        return nn.Upsample(scale_factor=2), channels
    if kind == "residual":
        inner, activation, branch_first = rest
        branch, left = _chain(inner, channels)
        return Residual(nn.Sequential(branch, nn.Conv2d(left, channels, 1)), nn.Identity(), activation, branch_first), channels
    if kind == "projection":
        inner, outputs, norm, activation, branch_first = rest
        branch, left = _chain(inner, channels)
        shortcut = nn.Sequential(nn.Conv2d(channels, outputs, 1, bias=False), _norm(norm, outputs))
        return Residual(nn.Sequential(branch, nn.Conv2d(left, outputs, 1)), shortcut, activation, branch_first), outputs
    if kind == "pad":
        inner, before, after, activation = rest
        outputs = before + channels + after
        branch, left = _chain(inner, channels)
        ending = nn.Sequential(nn.Conv2d(left, outputs, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(outputs))
        return Residual(nn.Sequential(branch, ending), PadShortcut(2, before, after), activation, False), outputs
    if kind == "sum":
        outputs, multiply = rest
        return Sum(nn.Conv2d(channels, outputs, 1), nn.Conv2d(channels, outputs, 3, padding=1), multiply), outputs
    if kind == "concat":
        chains, with_input = rest
        built = [_chain(chain, channels) for chain in chains]
        return Concat([module for module, _ in built], with_input), sum(left for _, left in built) + channels * with_input
    if kind == "partial":
        half, norm, activation, residual = rest
        unit = ConvUnit(half, half, 3, norm, activation)
        return nn.Sequential(nn.Conv2d(channels, 2 * half, 1), Partial(2 * half, unit, residual)), 3 * half
    if kind == "tokens":
        layers = []
        for name, *sizes in rest[0]:
            layers.append(Attention(channels, *sizes) if name == "attention" else Perceptron(channels, *sizes))
        return Tokens(layers), channels
    raise AssertionError(kind)


def _chain(recipes: tuple[Recipe, ...], channels: int) -> tuple[nn.Module, int]:
    layers = []
    for recipe in recipes:
        layer, channels = _layer(recipe, channels)
        layers.append(layer)
    return nn.Sequential(*layers), channels


class Network(nn.Module):
    """Stem, layers, and one or two heads."""

    def __init__(self, stem: int, layers: tuple[Recipe, ...], heads: tuple[str, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.body, channels = _chain(layers, stem)
        self.kinds = heads
        for index, kind in enumerate(heads):
            features = channels * 16 if kind == "flatten" else channels
            self.add_module(f"head{index}", nn.Conv2d(channels, 3, 1) if kind == "map" else nn.Linear(features, 5))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.body(self.stem(x))
        results = []
        for index, kind in enumerate(self.kinds):
            head = self.get_submodule(f"head{index}")
            if kind == "map":
                results.append(head(x))
            elif kind == "flatten":
                results.append(head(torch.flatten(F.adaptive_avg_pool2d(x, 4), 1)))
            else:
                results.append(head(x.mean((2, 3))))
        return results[0] if len(results) == 1 else tuple(results)


def build(recipe: Recipe) -> Network:
    """The network of a recipe."""
    return Network(*recipe)


_widths = st.integers(2, 6).map(lambda half: 2 * half)
_norms = st.sampled_from(("batch", "none", "group"))
_acts = st.sampled_from(tuple(ACTIVATIONS))
_booleans = st.booleans()

_conv = st.tuples(st.just("conv"), _widths, st.sampled_from((1, 3)), _norms, _acts)
_plain = st.one_of(
    _conv,
    st.tuples(st.just("depthwise"), st.sampled_from(("batch", "none")), _acts),
    st.tuples(st.just("grouped"), st.integers(2, 3), st.sampled_from((2, 4)), st.sampled_from(("batch", "none")), _acts),
    st.tuples(st.just("gate"), st.integers(2, 4), _booleans),
    st.tuples(st.just("scale")),
)
_branch = st.lists(_plain, min_size=0, max_size=2).flatmap(lambda rest: _conv.map(lambda first: (first, *rest)))
_nested = st.one_of(_branch, st.tuples(_conv, st.tuples(st.just("residual"), _branch, _acts, _booleans)))
_token_layers = st.lists(
    st.one_of(
        st.tuples(st.just("attention"), st.integers(1, 3), st.integers(2, 4), _booleans, _booleans),
        st.tuples(st.just("perceptron"), st.integers(3, 9)),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
_layers = st.one_of(
    _plain,
    st.tuples(st.just("residual"), _nested, _acts, _booleans),
    st.tuples(st.just("projection"), _branch, _widths, st.sampled_from(("batch", "none")), _acts, _booleans),
    st.tuples(st.just("pad"), _branch, st.integers(0, 4), st.integers(1, 4), _acts),
    st.tuples(st.just("sum"), _widths, _booleans),
    st.tuples(st.just("concat"), st.lists(_branch, min_size=1, max_size=3).map(tuple), _booleans),
    st.tuples(st.just("partial"), st.integers(2, 4), st.sampled_from(("batch", "none")), _acts, _booleans),
    st.tuples(st.just("shuffle"), st.integers(2, 4), st.sampled_from(("batch", "none"))),
    st.tuples(st.just("shared"), st.sampled_from(("batch", "none")), _acts),
    st.tuples(st.just("pool"), _booleans),
    st.tuples(st.just("upsample")),
    st.tuples(st.just("tokens"), _token_layers),
)
_heads = st.sampled_from((("mean",), ("flatten",), ("map",), ("mean", "map"), ("flatten", "mean")))


@st.composite
def recipes(draw: st.DrawFn, max_layers: int = 5) -> Recipe:
    """Recipes of networks for ``(n, 3, 8, 8)`` inputs whose maps keep at least one pixel and stay small."""
    drawn = draw(st.lists(_layers, min_size=1, max_size=max_layers))
    side, kept = 8, []
    for layer in drawn:
        if layer[0] in ("pool", "pad"):
            if side <= 2:
                continue
            side //= 2
        elif layer[0] == "upsample":
            if side >= 8:
                continue
            side *= 2
        kept.append(layer)
    return draw(_widths), tuple(kept), draw(_heads)
