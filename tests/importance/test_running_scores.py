from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latprune.errors import InvalidArgumentError
from latprune.graph import Selection, trace
from latprune.importance import TaylorAccumulator, TaylorConfig
from latprune.surgery import TrainingMask
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


def test_masked_channels_are_scored_by_the_weights_that_read_them() -> None:
    """With a ReLU between, makers and readers tell the same term; under a mask only the readers have a gradient."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.ReLU(), torch.nn.Linear(6, 5)).double().eval()
    graph = trace(model, torch.randn(8, 4, dtype=torch.float64))
    batch = (torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 5)
    (name,) = graph.groups

    def scores(mask: TrainingMask | None = None) -> dict[str, np.ndarray]:
        found = {}
        for side in ("makers", "readers"):
            accumulator = TaylorAccumulator(model, graph, TaylorConfig(side=side))
            model.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            with mask.dense_values() if mask is not None else contextlib.nullcontext():
                accumulator.update()
            found[side] = accumulator.importance().units[name]
        return found

    dense = scores()
    assert np.allclose(dense["makers"], dense["readers"], rtol=1e-9)
    mask = TrainingMask(model, graph, straight_through=True)
    mask.set(Selection(kept={name: np.array([0, 2, 3])}))
    masked = scores(mask)
    assert np.allclose(masked["makers"][[0, 2, 3]], masked["readers"][[0, 2, 3]], rtol=1e-9)
    assert (masked["makers"][[1, 4, 5]] == 0).all() and (masked["readers"][[1, 4, 5]] > 0).any()
    with pytest.raises(InvalidArgumentError, match="must be one of makers, readers"):
        TaylorConfig(side="both")
