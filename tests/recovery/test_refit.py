"""The laws of the refit, on networks of all kinds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, Selection, trace
from latprune.recovery import Refit, recover
from latprune.recovery.recover import output_error
from latprune.surgery import masked, prune
from latprune.surgery.plan import plan_step
from recovery.nets import half, line, mixed, packed, resnet, transformer

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet": resnet,
    "mixed": mixed,
    "conv1d": lambda: line(1),
    "conv3d": lambda: line(3),
    "transformer": transformer,
    "packed": packed,
}


def first(inputs: Any, count: int = 2) -> Any:
    return {k: v[:count] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:count]


def run(model: nn.Module, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return out["logits"] if isinstance(out, dict) else out


def cut(model: nn.Module, graph: ModelGraph, selection: Selection) -> nn.Module:
    network = copy.deepcopy(model)
    prune(network, graph, selection)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_with_everything_kept_nothing_changes(name: str) -> None:
    model, inputs = NETWORKS[name]()
    graph = trace(model, first(inputs))
    network = copy.deepcopy(model)
    report = recover(network, model, [inputs], graph=graph, selection=half(graph, 1.0))
    for (key, value), other in zip(network.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.allclose(value.double(), other.double(), atol=2e-4), key
    assert report.output_after is not None and report.output_after < 1e-8


@pytest.mark.parametrize("name", NETWORKS)
def test_the_refit_lowers_the_error_and_never_raises_that_of_a_layer(name: str) -> None:
    model, inputs = NETWORKS[name]()
    graph = trace(model, first(inputs))
    selection = half(graph)
    network = cut(model, graph, selection)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    unfitted = output_error(network, model, [inputs])
    report = recover(network, model, [inputs], graph=graph, selection=selection)
    assert report.changed > 0
    fitted = output_error(network, model, [inputs])
    assert fitted is not None and unfitted is not None and fitted < unfitted  # of those that it was fitted to, and all others
    assert report.output_before is not None and report.output_after is not None and report.output_after < report.output_before
    for layer in report.layers:
        if layer.action:
            assert layer.fitted_after is not None and layer.fitted_before is not None and layer.fitted_after <= layer.fitted_before
            assert layer.held_out_after is not None and layer.held_out_before is not None
            assert layer.held_out_after <= layer.held_out_before
        else:
            assert layer.reason
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes


@pytest.mark.parametrize("name", ["resnet", "conv1d", "transformer", "packed"])
def test_the_masked_network_with_the_refitted_weights_is_the_refitted_network(name: str) -> None:
    model, inputs = NETWORKS[name]()
    graph = trace(model, first(inputs))
    selection = half(graph)
    network = cut(model, graph, selection)
    recover(network, model, [inputs], graph=graph, selection=selection)
    wide = copy.deepcopy(model)
    step = plan_step(model, graph, selection)
    edits = {edit.name: edit for edit in step.tensors}
    refitted = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.no_grad():
        for key, value in [*wide.named_parameters(), *wide.named_buffers()]:
            if key not in refitted:
                continue
            keep = edits[key].keep if key in edits else {}
            where = np.ix_(*(np.asarray(keep.get(d, range(n))) for d, n in enumerate(value.shape)))
            value[where] = refitted[key]
            for scale in step.scales:  # the masked network keeps the dense scale of the attention
                if scale.name == key:
                    at = slice(None) if scale.positions is None else torch.tensor(scale.positions)
                    value[at] /= scale.factor
    example = first(inputs)
    executor = masked(wide, graph, selection)
    expected = executor(**example) if isinstance(example, dict) else executor(example)
    expected = expected["logits"] if isinstance(expected, dict) else expected
    assert torch.allclose(run(network, example), expected, atol=2e-4)


def test_permuted_channels_give_the_permuted_network() -> None:
    model, x = line(1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.a.weight.copy_(model.a.weight[order])
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            getattr(other.n, tensor).copy_(getattr(model.n, tensor)[order])
        other.b.weight.copy_(model.b.weight[:, order])
    graph = trace(model, x[:2])
    kept = np.arange(0, 12, 2)
    there = np.sort(np.flatnonzero(np.isin(order.numpy(), kept)))
    results = []
    for network, units in ((model, kept), (other, there)):
        selection = Selection(kept={"a": units.astype(np.int64)})
        small = cut(network, graph, selection)
        recover(small, network, [x], graph=graph, selection=selection)
        results.append(run(small, x))
    assert torch.allclose(results[0], results[1], atol=1e-4)


def test_removed_blocks_are_corrected_at_the_sums_that_stay() -> None:
    model, x = resnet()
    graph = trace(model, x[:2])
    name = next(b.name for b in graph.blocks.values() if b.removable)
    selection = half(graph, 1.0, (name,))
    errors = {}
    for ahead in (False, True):
        network = cut(model, graph, selection)
        report = recover(network, model, [x], graph=graph, selection=selection, strategy=Refit(ahead=ahead))
        assert report.output_before is not None and report.output_after is not None
        errors[ahead] = report.output_after / report.output_before
        assert any(layer.at == "join" and layer.action for layer in report.layers)
    assert max(errors.values()) < 0.7


def test_a_captured_program_is_refitted_like_the_class() -> None:
    model, x = resnet()
    results = {}
    for form in ("class", "program"):
        graph = trace(model, x[:2], form=form)
        dense = graph.program if graph.program is not None else model
        removed = tuple(b.name for b in graph.blocks.values() if b.removable)[:1]
        selection = half(graph, 0.6, removed)
        network = cut(dense, graph, selection)
        report = recover(network, dense, [x], graph=graph, selection=selection)
        assert report.changed > 3
        results[form] = run(network, x)
    assert torch.allclose(results["class"], results["program"], atol=1e-3)


class Whole(nn.Module):
    """A trunk inside a model that does something else around it."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flipped = x.flip(3) if float(x.mean()) > 100 else x
        return self.trunk(flipped).softmax(1)


def test_within_refits_the_sub_module() -> None:
    trunk, x = resnet()
    model = Whole(trunk).eval()
    graph = trace(model, x[:2], within="trunk")
    selection = half(graph, 0.6)
    network = cut(model, graph, selection)
    report = recover(network, model, [x], graph=graph, selection=selection)
    assert report.changed > 3 and report.output_after is not None and report.output_before is not None
    assert report.output_after < 0.5 * report.output_before


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.same = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F_relu(self.inner(x))
        return self.out(F_relu(self.same(F_relu(self.same(x)))))


F_relu = torch.relu


def test_a_shared_weight_is_named_and_left_alone() -> None:
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(64, 6)
    graph = trace(model, x[:2])
    selection = half(graph)
    network = cut(model, graph, selection)
    report = recover(network, model, [x], graph=graph, selection=selection)
    reasons = {layer.layer: layer.reason for layer in report.left}
    assert "2 places" in reasons["same"]


@pytest.mark.parametrize("name", ["refit", "map", "distil"])
def test_an_interruption_leaves_the_network_as_it_was(name: str) -> None:
    model, x = resnet()
    graph = trace(model, x[:2])
    selection = half(graph)
    network = cut(model, graph, selection)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    seen: list[bool] = []

    def stop(text: str) -> None:
        seen.append(any(not torch.equal(before[key], value) for key, value in network.state_dict().items()))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(network, model, [x[:60]], graph=graph, selection=selection, progress=stop, strategy=name)
    assert name == "map" or any(seen)  # there was something to put back
    assert network.training and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_the_same_seed_gives_the_same_network() -> None:
    model, x = mixed()
    graph = trace(model, x[:2])
    selection = half(graph)
    results = []
    for _ in range(2):
        network = cut(model, graph, selection)
        recover(network, model, [x], graph=graph, selection=selection, seed=5, strategy=Refit(rows=20))
        results.append(network.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_the_dense_network_is_left_as_it_was() -> None:
    model, x = transformer()
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, x[:2])
    selection = half(graph)
    recover(cut(model, graph, selection), model, [x], graph=graph, selection=selection)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="ridge"):
        Refit(ridge=-1.0)
    with pytest.raises(InvalidArgumentError, match="keep"):
        Refit(keep=1.5)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.bfloat16), ("cuda", torch.float32), ("cuda", torch.bfloat16)], ids=lambda value: str(value)[-8:]
)
@pytest.mark.parametrize("name", ["conv1d", "transformer"])
def test_networks_on_a_gpu_and_in_half_precision_are_refitted_there(name: str, device: str, dtype: torch.dtype) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    model, inputs = NETWORKS[name]()
    model, inputs = model.to(device, dtype), inputs.to(device, dtype)
    graph = trace(model, first(inputs))
    selection = half(graph)
    network = cut(model, graph, selection)
    report = recover(network, model, [inputs.cpu()], graph=graph, selection=selection)
    assert all(p.dtype == dtype and p.device.type == device for p in network.parameters())
    assert report.changed > 0 and report.output_after is not None and report.output_before is not None
    assert report.output_after < 0.8 * report.output_before
