from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from latprune.errors import EngineError
from latprune.graph import trace
from latprune.latency import KernelTime, LatencyTables, Target, get_engine
from latprune.latency.engines.inputs import prepare_inputs
from latprune.latency.engines.onnx_graph import export_onnx
from latprune.latency.features import LAYERS
from latprune.latency.measuring.design import DesignPoint
from latprune.latency.measuring.matching import match_profile
from latprune.latency.measuring.sampling import NetworkSampler
from latprune.latency.measuring.unseen import price_unseen, unseen_layers
from latprune.latency.samples import ContextInfo
from latprune.latency.tabulating.fitting import fit_tables
from latprune.latency.tabulating.residual import Residual, TableStats
from support.made_up_machine import axis, kernel

WIDTHS = {"x": 8, "y": 4, "z": 24}


def step(order: int, path: str, ms: float) -> KernelTime:
    return KernelTime(name=f"{order}", op="Conv", path=path, order=order, ms=ms, runs=1)


def test_an_unseen_layer_is_priced_at_the_rate_of_the_others() -> None:
    kernels = [kernel("a", (axis("x"), axis("z"))), kernel("b", (axis("x"), axis("y"))), kernel("n", (axis("x"),), kind="norm")]
    profile = match_profile([step(0, "a", 6.0)], kernels)
    names = unseen_layers(kernels, profile, WIDTHS, "made up")
    assert names == ("b",)
    priced = price_unseen(profile, kernels, names, WIDTHS)
    # A sixth of the multiply-adds; the sum stays that of the profile.
    assert priced.shares["b"].ms == pytest.approx(6.0 / 7.0) and priced.shares["a"].ms == pytest.approx(36.0 / 7.0)
    assert priced.shares["b"].attached == ("priced",)


def test_a_removed_layer_has_no_price() -> None:
    kernels = [kernel("a", (axis("x"), axis("z"))), kernel("b", (axis("x"), axis("y")), blocks=("block",))]
    profile = match_profile([step(0, "a", 6.0)], kernels, ["block"])
    assert set(price_unseen(profile, kernels, ("b",), WIDTHS, ["block"]).shares) == {"a"}


def test_more_than_half_unseen_is_refused_by_name() -> None:
    kernels = [kernel("a", (axis("x"), axis("y"))), kernel("b", (axis("x"), axis("z")))]
    with pytest.raises(EngineError, match=r"1 of the model's layers \(b\), which make more than half"):
        unseen_layers(kernels, match_profile([step(0, "a", 1.0)], kernels), WIDTHS, "made up")


class SecondHead(nn.Module):
    """Runs a head whose scores are dropped, as detectors with two assignments do when they are deployed."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(16, 32), nn.Linear(32, 10), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.body(x))
        return (self.head(x), self.other(x))[0]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_layers_that_no_output_reads_need_no_step(engine: str) -> None:
    model = SecondHead().eval()
    graph = trace(model, ROWS)
    kernels = list(graph.kernels.values())
    assert [kernel.name for kernel in kernels if not kernel.read] == ["other"]
    with get_engine(engine).compile(model, ROWS, Target(engine=engine, batch=len(ROWS)), profile=True) as network:
        profile = match_profile(network.profile(5), kernels)
    assert ("other" in profile.shares) == (engine == "torch")
    assert unseen_layers(kernels, profile, graph.dense_widths(), engine) == ()


class Functional(nn.Module):
    """A product whose weight the model's own forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 64) * 0.1)
        self.first, self.last = nn.Linear(16, 64), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(functional.relu(functional.linear(functional.relu(self.first(x)), self.weight)))


class OneToken(nn.Module):
    """A block over tokens, and a pooler that reads the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.pooler, self.classifier = nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.into(x)
        hidden = hidden + self.down(functional.gelu(self.up(hidden)))
        return self.classifier(torch.tanh(self.pooler(hidden[:, 0])))


class Tied(nn.Module):
    """A head whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(50, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        return self.head(hidden + self.down(functional.relu(self.up(hidden))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(16, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.into(x)
        return self.head((hidden + self.attention(hidden, hidden, hidden)[0]).mean(1))


def head(activation: Callable[[], nn.Module]) -> nn.Module:
    body = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(64, 64), activation(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


IMAGE, ROWS, TOKENS = torch.randn(1, 3, 10, 10), torch.randn(4, 16), torch.randn(1, 4, 16)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    **{
        kind.__name__: ((lambda kind=kind: head(kind)), IMAGE)
        for kind in (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.GELU, nn.Hardswish, nn.Softplus, nn.Identity)
    },
    "scaled convolution": (lambda: Scaled(), IMAGE),
    "functional": (Functional, ROWS),
    "one token": (OneToken, TOKENS),
    "tied": (Tied, torch.randint(0, 50, (1, 8))),
    "attention": (Attention, TOKENS),
}


class Scaled(nn.Module):
    """A convolution whose output is scaled per channel before it joins its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return x + self.scale * self.down(functional.gelu(self.up(x)))


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_layer_finds_its_step(name: str, engine: str) -> None:
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    graph = trace(model, inputs)
    kernels = list(graph.kernels.values())
    with get_engine(engine).compile(model, inputs, Target(engine=engine, batch=len(inputs)), profile=True) as network:
        entries = network.profile(15)
    profile = match_profile(entries, kernels, (), graph.dense_widths())
    unseen = {kernel.name for kernel in kernels if kernel.kind in LAYERS and kernel.name not in profile.shares}
    # Eager PyTorch is timed module by module, so what the model's own forward computes has no step there.
    assert unseen == ({"weight"} if (name, engine) == ("functional", "torch") else set())
    whole = profile.unmatched_ms + sum(share.ms for share in profile.shares.values())
    assert whole == pytest.approx(sum(entry.ms for entry in entries))


class OwnProduct(nn.Module):
    """A small product in the model's own forward beside larger layers: eager PyTorch shows no step for it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 64) * 0.1)
        self.first, self.last = nn.Linear(64, 64), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(functional.relu(functional.linear(functional.relu(self.first(x)), self.weight)))


def test_tables_say_which_layers_are_priced() -> None:
    torch.manual_seed(0)
    model, x = OwnProduct().eval(), torch.randn(4, 64)
    graph, target = trace(model, x), Target(engine="torch", batch=4)
    sampler = NetworkSampler(model, graph, x, target, get_engine("torch"))
    try:
        assert sampler.priced == ("weight",)
        samples = [sampler.sample(DesignPoint(widths={"first": width}, removed=())) for width in (64, 48, 32, 16, 8)]
    finally:
        sampler.close()
    assert all("weight" in {kernel.kernel for kernel in sample.kernels} for sample in samples)
    tables = fit_tables(
        samples, list(graph.kernels.values()), list(graph.groups.values()), ContextInfo(target=target, version="1", machine="this one"),
        residual=Residual.of([], []), stats=TableStats(),
    )  # fmt: skip
    assert tables.stats.priced == ("weight",)
    assert LatencyTables.from_dict(tables.to_dict()).stats.priced == ("weight",)


class OddPool(nn.Module):
    """An operation that the TorchScript exporter lacks: pooling to a size that does not divide the input's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Linear(16 * 25, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.adaptive_avg_pool2d(self.second(functional.relu(self.first(x))), 5)
        return self.head(x.flatten(1))


def test_the_other_exporter_takes_what_the_first_lacks_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(1, 3, 12, 12)
    exported = export_onnx(OddPool().eval(), prepare_inputs(x, Target(engine="onnxruntime"), dtype=None))
    assert exported.conversion == "dynamo -> onnx"
    assert {"first", "second", "head"} <= set(exported.paths.values())
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
