"""Inputs in containers of every kind: rebuilt with their classes wherever tensors are exchanged."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import latprune
from latprune.graph.containers import like, rebuilt
from latprune.graph.example_inputs import random_inputs
from latprune.surgery.verify import in_double
from latprune.train import Recipe
from latprune.train.batches import move, shard

Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - as a user writes it
Short = namedtuple("Short", "a b", defaults=(None,))  # noqa: PYI024


class Typed(NamedTuple):
    a: Any
    b: Any = None


@dataclass
class Loose:
    a: Any
    b: Any = None


@dataclass(frozen=True, slots=True)
class Frozen:
    a: Any
    b: Any = None


T = torch.randn(2, 4)
KINDS = [Pair(T, None), Short(T), Typed(T), Loose(T), Frozen(T), {"a": T}, OrderedDict(a=T), Pair([T], Short(None))]
NAMES = ["namedtuple", "defaults", "NamedTuple", "dataclass", "frozen", "dict", "OrderedDict", "nested"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 12), nn.Linear(12, 16), nn.Linear(16, 2)

    def forward(self, given: Any) -> torch.Tensor:
        a = given["a"] if isinstance(given, Mapping) else given.a
        return self.last(torch.relu(self.middle(torch.relu(self.first(a[0] if isinstance(a, list) else a)))))


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize("given", KINDS, ids=NAMES)
def test_models_of_such_inputs_are_pruned_checked_and_trained(given: Any, form: Any) -> None:
    fit = Recipe(epochs=1, learning_rate=0.01) if form == "class" else None
    data = [((given,), torch.tensor([0, 1]))] * 2
    result = latprune.prune(
        Net().eval(), (given,), budget="flops=60%", method="uniform", measure_latency=False, form=form, data=data, fit=fit
    )
    assert result.model(given).shape == (2, 2)


@pytest.mark.parametrize("given", KINDS, ids=NAMES)
def test_containers_keep_their_classes(given: Any) -> None:
    for changed in (random_inputs(given, 1), in_double(given), move(given, torch.device("cpu")), shard(given, 1, 2)):
        assert type(changed) is type(given)
    assert type(rebuilt((given,), lambda leaf: leaf)[0]) is type(given)
    assert Net()(given).shape == (2, 2)  # the given one is left as it is


def test_other_containers() -> None:
    found = rebuilt(defaultdict(list, a=[T]), lambda leaf: leaf[:1])
    assert type(found) is defaultdict and found["a"][0].shape == (1, 4) and found["b"] == []
    pooled = torch.max(T, dim=1)
    assert type(like(pooled, (T, T))) is type(pooled)


class Two(tuple):
    """Its constructor takes the items one by one."""

    __slots__ = ()

    def __new__(cls, a: Any, b: Any) -> Two:
        return super().__new__(cls, (a, b))


class TwoListed(list[Any]):
    def __init__(self, a: Any, b: Any) -> None:
        super().__init__([a, b])


class ReadOnly(dict[str, Any]):
    def __setitem__(self, *_: Any) -> None:
        raise TypeError("read only")


@dataclass
class Unset:
    a: Any
    size: int = field(init=False)


UNUSUAL = [Two(T, 1), TwoListed(T, 1), ReadOnly(a=T), Unset(T), UserDict(a=T)]


@pytest.mark.parametrize("given", [*UNUSUAL, Pair([T], {"a": T})], ids=lambda given: type(given).__name__)
def test_what_does_not_change_is_handed_on_itself(given: Any) -> None:
    assert rebuilt(given, lambda leaf: leaf) is given
    assert move(given, torch.device("cpu")) is given


def test_containers_that_cannot_be_made_again_become_plain_ones() -> None:
    two, listed, read_only, unset, other = (shard(given, 0, 2) for given in UNUSUAL)
    assert type(two) is tuple and type(listed) is list and type(read_only) is dict and type(other) is dict
    assert {len(found) for found in (two[0], listed[0], read_only["a"], unset.a, other["a"])} == {1}
    assert type(unset) is Unset and not hasattr(unset, "size") and len(T) == 2
