"""What the examples in docstrings are about: a small network and its trace, batches, a selection, and the folder that they write to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import latprune
from latprune import zoo
from latprune.graph import ModelGraph, Selection


@pytest.fixture(scope="session")
def traced() -> tuple[nn.Module, torch.Tensor, ModelGraph]:
    """The network, its inputs and its graph; examples get a copy of the network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = zoo.digits_resnet(blocks=1, widths=(16, 16, 32)).eval()
    x = torch.randn(8, 1, 32, 32)
    return model, x, latprune.trace(model, x)


@pytest.fixture(autouse=True)
def names_of_examples(
    doctest_namespace: dict[str, Any],
    traced: tuple[nn.Module, torch.Tensor, ModelGraph],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names that stand for what a user has at hand."""
    monkeypatch.chdir(tmp_path)
    dense, x, graph = traced
    model = copy.deepcopy(dense)
    selection, narrower = (Selection(kept={name: np.arange(g.columns // part) for name, g in graph.groups.items()}) for part in (2, 4))
    batches = [(x, torch.arange(8) % 10)] * 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    doctest_namespace.update(
        latprune=latprune,
        torch=torch,
        dense=dense,
        model=model,
        x=x,
        graph=graph,
        selection=selection,
        narrower=narrower,
        batches=batches,
        optimizer=optimizer,
    )
