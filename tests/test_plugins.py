"""One new part of each kind, added from outside by registration alone, and used by name through the front door."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import latprune
from latprune.importance import Importance, get_criterion, register, registered_criteria
from latprune.importance.core import _CRITERIA
from latprune.latency import get_engine, measure, register_engine
from latprune.latency.engines.base import ENGINES
from latprune.methods import (
    Method,
    Proposal,
    Proposer,
    Schedule,
    StageContext,
    get_method,
    get_schedule,
    register_method,
    register_schedule,
    registered_methods,
    registered_schedules,
)
from latprune.methods.base import METHODS
from latprune.methods.schedule import SCHEDULES
from latprune.methods.walk import WalkProposer, nearest
from latprune.problem import Problem, Solution
from latprune.recovery import LayerRecovery, Recovery, Situation, get_strategy, register_strategy, strategies
from latprune.recovery.contract import _STRATEGIES
from latprune.solve import Control, Greedy, Solver, solver_named, solver_names
from latprune.solve import register as register_solver
from latprune.solve.base import SOLVERS
from latprune.zoo import digits_resnet

X = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, kw_only=True)
class FirstChannels:
    """Criterion: the first channels of a group are the best."""

    slope: float = 1.0


def score_first(model, graph, config, data, loss) -> Importance:
    units = {name: config.slope * np.arange(group.units, 0, -1, dtype=np.float64) for name, group in graph.groups.items()}
    return Importance(units=units, shares={(name, ()): values for name, values in units.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Halfway(Schedule):
    """Schedule: half of the way, then the rest."""

    name: ClassVar[str] = "halfway"

    @property
    def count(self) -> int:
        return 2

    def limit(self, *, stage: int, dense: float, limit: float) -> float:
        return limit if stage == 2 else (dense + limit) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrower(Method):
    """Method: one share for all, in two steps."""

    name: ClassVar[str] = "narrower"

    @property
    def importance(self) -> object:
        return get_criterion("first-channels")

    @property
    def schedule(self) -> Schedule:
        return Halfway()

    def prepare(self, context: StageContext) -> Proposer:
        def at(share: float) -> Proposal:
            widths = {name: nearest(context, name, round(share * group.columns)) for name, group in context.graph.groups.items()}
            return Proposal(widths=widths, removed_blocks=(), predicted=context.predict(widths))

        return WalkProposer(at, context, smallest="the narrowest network")


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowed(Solver):
    """Solver: what the greedy one says."""

    name: ClassVar[str] = "borrowed"
    proves: ClassVar[bool] = False

    def run(self, problem: Problem, control: Control) -> Solution:
        return Greedy().run(problem, control)


class Nothing(Recovery):
    """Strategy of recovery: leave everything alone."""

    name = "nothing"
    needs_data = False

    def run(self, situation: Situation) -> list[LayerRecovery]:
        return [LayerRecovery(layer="all", reason="asked to do nothing")]


@pytest.fixture
def engine() -> Iterator[str]:
    register_engine("borrowed", lambda: get_engine("torch"))
    yield "borrowed"
    ENGINES.remove("borrowed")


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """What a package of its own would do when it is imported; the other tests do not see it."""
    register(FirstChannels, name="first-channels")(score_first)
    register_method(Narrower)
    register_schedule(Halfway)
    register_solver(Borrowed)
    register_strategy(Nothing)
    yield
    _CRITERIA.remove("first-channels")
    METHODS.remove("narrower")
    SCHEDULES.remove("halfway")
    SOLVERS.remove("borrowed")
    _STRATEGIES.remove("nothing")


def network() -> nn.Module:
    torch.manual_seed(0)
    return digits_resnet(blocks=2, widths=(8, 16, 16)).eval()


def test_all_are_found_by_name():
    assert "first-channels" in registered_criteria() and get_criterion("first-channels", slope=2.0).slope == 2.0
    assert "narrower" in registered_methods() and isinstance(get_method("narrower").schedule, Halfway)
    assert "halfway" in registered_schedules() and isinstance(get_schedule("halfway"), Halfway)
    assert "borrowed" in solver_names() and isinstance(solver_named("borrowed"), Borrowed)
    assert "nothing" in strategies() and isinstance(get_strategy("nothing"), Nothing)


def test_a_method_with_a_criterion_and_a_schedule_of_its_own_runs_through_the_front_door():
    model = network()
    result = latprune.prune(model, X, budget="flops=50%", method="narrower", recover="nothing", measure_latency=False)
    assert result.record.pruned.macs <= 0.5 * result.record.dense.macs
    assert [step.stage for step in result.record.steps] == [1, 2]
    assert result.record.recovery is not None and result.record.recovery["strategy"] == "nothing"
    # The first channels stay.
    weight = network().state_dict()["layer1.0.conv1.weight"]
    kept = model.state_dict()["layer1.0.conv1.weight"]
    torch.testing.assert_close(kept, weight[: kept.shape[0], : kept.shape[1]])


def test_a_solver_solves_by_its_name():
    result = latprune.prune(
        network(), X, budget="flops=60%", method=latprune.MDP(score=FirstChannels()), solver="borrowed", measure_latency=False
    )
    assert result.solution.solver == "greedy" and result.record.pruned.macs <= 0.6 * result.record.dense.macs


def test_any_method_goes_by_a_schedule_by_its_name():
    result = latprune.prune(network(), X, budget="flops=50%", method="uniform", schedule="halfway", measure_latency=False)
    assert [step.stage for step in result.record.steps] == [1, 2]
    assert result.record.pruned.macs <= 0.5 * result.record.dense.macs


def test_an_engine_measures_by_its_name(engine):
    target = latprune.Target.of(engine)
    with get_engine(target.engine).compile(network(), X, latprune.Target(engine="torch")) as compiled:
        found = measure({"net": compiled}, max_seconds=0.5)
    assert found["net"].ms > 0
