"""Parameters that lie in one storage, as flattening leaves them: each is known by its place there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latprune.graph import trace
from latprune.recovery import RecoveryReport, recover
from latprune.recovery.parameter_names import ParameterNames
from latprune.surgery import prune
from recovery.nets import half, mixed, packed, resnet, transformer

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "resnet": resnet,
    "mixed": mixed,
    "transformer": transformer,
    "packed": packed,
}


def flattened(model: nn.Module) -> nn.Module:
    """The model, all of its parameters views of one vector."""
    parameters = list(model.parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters).detach().clone(), parameters)
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == 1
    return model


def sliced(inputs: Any, count: int) -> Any:
    return {k: v[:count] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:count]


def recovered(name: str, flat: bool, strategy: str) -> tuple[Tensor, RecoveryReport]:
    """Outputs of the recovered network, and the report."""
    model, inputs = NETWORKS[name]()
    inputs = sliced(inputs, 96)
    graph = trace(model, sliced(inputs, 2))
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    if flat:
        flattened(model), flattened(network)
    report = recover(network, model, [inputs], graph=graph, selection=half(graph), strategy=strategy)
    with torch.no_grad():
        return (network(**inputs)["logits"] if isinstance(inputs, dict) else network(inputs)), report


@pytest.mark.parametrize(
    ("name", "strategy"), [*((name, "refit") for name in NETWORKS), *(("resnet", s) for s in ("map", "shift", "fold", "norms"))]
)
def test_flattened_networks_recover_to_the_same_outputs(name: str, strategy: str) -> None:
    (outputs, report), (flat, its) = (recovered(name, flat, strategy) for flat in (False, True))
    assert [(layer.layer, layer.action, layer.reason) for layer in report.layers] == [(a.layer, a.action, a.reason) for a in its.layers]
    assert torch.allclose(outputs, flat, atol=1e-3, rtol=1e-3)


def test_a_tensor_has_the_name_of_the_smallest_parameter_that_it_lies_in() -> None:
    whole = torch.randn(60)
    tensors = {"whole": whole, "first": whole[:24].view(6, 4), "second": whole[24:40], "last row": whole[20:24], "apart": torch.randn(3)}
    names = ParameterNames(tensors.items())
    assert {name: names.of(tensor) for name, tensor in tensors.items()} == {name: name for name in tensors}
    views = {
        "first": tensors["first"].t()[:, :5],
        "second": whole[30:34].view(torch.int32),
        "last row": tensors["first"][5],
        "whole": whole[38:42],
    }
    assert {name: names.of(view) for name, view in views.items()} == {name: name for name in views}
    assert names.of(torch.randn(60)) is None and names.of(whole[:0]) is None
