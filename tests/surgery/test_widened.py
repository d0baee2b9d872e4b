"""A cut and trained network seen as a dense one again: what a further cut must equal."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from latprune.errors import SurgeryError
from latprune.graph import ModelGraph, Selection, trace
from latprune.program import capture
from latprune.surgery import check_equal, masked, prune, widened
from support.equivalence import randomise
from support.programs import NETWORKS as PROGRAMS
from support.staged import chain
from surgery.test_staged import NETWORKS


def _train(model: nn.Module, x: torch.Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        outputs = model(x + 0.1 * torch.randn_like(x))
        sum(o.square().mean() for o in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
        optimizer.step()
    model.eval()


def _check(model: nn.Module, graph: ModelGraph, x: torch.Tensor, seed: int, *, blocks: float = 0.2) -> None:
    dense = copy.deepcopy(model)
    since: Selection | None = None
    for number, selection in enumerate(chain(graph, np.random.default_rng(seed), 3, blocks=blocks, low=0.2)):
        now = dense if since is None else widened(dense, model, graph, since)
        if since is not None:
            check_equal(model, masked(now, graph, since), x)
        prune(model, graph, selection, since=since)
        check_equal(model, masked(now, graph, selection), x)
        _train(model, x, number)
        since = selection


@pytest.mark.parametrize("name", NETWORKS)
def test_a_further_cut_equals_the_masked_wide_network(name: str) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise(build())
    x = torch.randn(shape, dtype=torch.float64)
    _check(model, trace(model, x), x, seed=0)
    # In single precision the weights that keep attention's scale are rounded, which the comparison has to allow for.
    torch.manual_seed(1)
    model = build().eval()
    _check(model, trace(model, x.float()), x.float(), seed=1)


@pytest.mark.parametrize("name", ["vision transformer", "shuffle", "convolutions"])
def test_a_further_cut_of_a_program(name: str) -> None:
    torch.manual_seed(0)
    model, x = PROGRAMS[name]()
    program = capture(model.eval(), x)
    _check(program, trace(program, x), x, seed=0)


def test_a_model_that_was_not_cut_to_the_selection_is_refused() -> None:
    build, shape = NETWORKS["resnet20_a"]
    model = build().eval()
    graph = trace(model, torch.randn(shape))
    name = next(iter(graph.groups))
    with pytest.raises(SurgeryError, match=r"the selection that the model was cut to leaves \(8, 3, 3, 3\)"):
        widened(model, model, graph, Selection(kept={name: np.arange(8)}))
