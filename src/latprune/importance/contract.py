"""The contract of a criterion as a test class: subclass it to check one of your own.

Example:
    >>> class TestMine(CriterionContract):  # doctest: +SKIP
    ...     @pytest.fixture
    ...     def config(self):
    ...         return MyConfig()
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.importance.core import GroupedModel, score

__all__ = ["CriterionContract"]


class CriterionContract:
    """What every criterion promises.

    The subclass has pytest fixtures ``config``, ``model``, ``graph`` and ``data`` (None where the criterion needs none).
    """

    def test_covers_every_unit(self, model: nn.Module, graph: GroupedModel, config: object, data: Iterable[Any] | None) -> None:
        """Each group gets finite scores of at least 0, one for each unit."""
        importance = score(model, graph, config, data)
        assert set(importance.units) == set(graph.groups)
        for name, group in graph.groups.items():
            values = importance.units[name]
            assert values.shape == (group.units,) and values.dtype == np.float64
            assert np.isfinite(values).all() and (values >= 0).all()

    def test_shares_add_up(self, model: nn.Module, graph: GroupedModel, config: object, data: Iterable[Any] | None) -> None:
        """The shares of a group are at least 0 and add up to its scores."""
        importance = score(model, graph, config, data)
        for name in graph.groups:
            shares = importance.shares_of(name)
            assert shares and all((values >= 0).all() for values in shares.values())
            np.testing.assert_allclose(np.sum(list(shares.values()), axis=0), importance.units[name], rtol=1e-12, atol=0)

    def test_is_deterministic(self, model: nn.Module, graph: GroupedModel, config: object, data: Iterable[Any] | None) -> None:
        """The same input gives the same scores, to the last bit."""
        first, second = score(model, graph, config, data), score(model, graph, config, data)
        for name in graph.groups:
            np.testing.assert_array_equal(first.units[name], second.units[name])

    def test_leaves_the_model_alone(self, model: nn.Module, graph: GroupedModel, config: object, data: Iterable[Any] | None) -> None:
        """Weights, buffers, gradients and training mode are as before."""
        model.train()
        before = copy.deepcopy(model.state_dict())
        score(model, graph, config, data)
        after = model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(module.training for module in model.modules())

    def test_refuses_nan(self, model: nn.Module, graph: GroupedModel, config: object, data: Iterable[Any] | None) -> None:
        """A NaN among the weights of the groups is refused in words."""
        broken = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in broken.parameters():
                parameter.view(-1)[0] = float("nan")
        try:
            score(broken, graph, config, data)
        except InvalidArgumentError as error:
            assert "NaN" in str(error) or "nan" in str(error)
        else:
            raise AssertionError("a model with NaN weights was scored without an error")
