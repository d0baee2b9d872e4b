from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latprune.errors import InvalidArgumentError
from latprune.importance import TaylorAccumulator, TaylorConfig
from support.synthetic_residual import batches, residual


def feed(model: torch.nn.Module, accumulator: TaylorAccumulator, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    accumulator.update()


def test_decay_makes_the_mean_a_moving_average() -> None:
    model, graph = residual()
    model.eval()
    data = list(batches(3))
    single = []
    for batch in data:
        accumulator = TaylorAccumulator(model, graph, TaylorConfig())
        feed(model, accumulator, batch)
        single.append(accumulator.importance())
    running = TaylorAccumulator(model, graph, TaylorConfig())
    for batch in data:
        running.decay(0.5)
        feed(model, running, batch)
    resumed = TaylorAccumulator(model, graph, TaylorConfig())
    resumed.load_state_dict(copy.deepcopy(running.state_dict()))
    for accumulator in (running, resumed):
        found = accumulator.importance()
        for name in graph.groups:
            expected = sum(0.5 ** (2 - k) * single[k].units[name] for k in range(3)) / 1.75
            assert np.allclose(found.units[name], expected, rtol=1e-12)
    running.reset()
    with pytest.raises(InvalidArgumentError, match="no batch"):
        running.importance()
    feed(model, running, data[0])
    for name in graph.groups:
        assert np.array_equal(running.importance().units[name], single[0].units[name])
    with pytest.raises(InvalidArgumentError, match="from 0 to 1"):
        running.decay(1.5)


def test_states_from_before_running_scores_still_load() -> None:
    model, graph = residual()
    accumulator = TaylorAccumulator(model, graph, TaylorConfig())
    state = {**accumulator.state_dict(), "batches": torch.tensor(3)}
    accumulator.load_state_dict(state)
    assert accumulator.batches == 3


def test_reduce_alone_changes_nothing() -> None:
    model, graph = residual()
    model.eval()
    accumulator = TaylorAccumulator(model, graph, TaylorConfig())
    feed(model, accumulator, next(iter(batches(1))))
    before = accumulator.importance()
    accumulator.reduce()
    for name in graph.groups:
        assert np.array_equal(accumulator.importance().units[name], before.units[name])
