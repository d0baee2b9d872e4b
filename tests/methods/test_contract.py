"""The method contract for every method and ablation that is offered."""

import pytest

from latprune.importance import MagnitudeConfig
from latprune.methods import (
    HALP,
    MDP,
    SMCP,
    SPLAMP,
    FromScratch,
    GlobalThreshold,
    Greedy,
    Lamp,
    Method,
    RandomChoice,
    SoftMasks,
    Uniform,
    method_type,
    registered_methods,
)
from latprune.pruning.contract import MethodContract

METHODS = {
    "mdp": MDP(),
    "mdp without blocks": MDP(blocks=False),
    "mdp by magnitude": MDP(score=MagnitudeConfig()),
    "mdp linear": MDP(bilayer=False),
    "mdp in 3 steps": MDP(stages=3),
    "mdp soft masks": MDP(soft_masks=SoftMasks(every=2)),
    "sp_lamp": SPLAMP(stages=2),
    "sp_lamp masked": SPLAMP(stages=3, between="mask"),
    "halp": HALP(stages=3),
    "halp with floor": HALP(stages=2, protect_stem=True, floor=0.1, between="cut"),
    "smcp": SMCP(masks=SoftMasks(every=2)),
    "lamp": Lamp(),
    "global": GlobalThreshold(normalise="mean"),
    "greedy": Greedy(),
    "uniform": Uniform(),
    "random": RandomChoice(),
    "from_scratch": FromScratch(structure="uniform"),
}


def test_every_registered_method_is_here():
    own = {name for name in registered_methods() if method_type(name).__module__.startswith("latprune.")}
    assert {method.name for method in METHODS.values()} == own


class TestMethods(MethodContract):
    @pytest.fixture(params=METHODS)
    def method(self, request: pytest.FixtureRequest) -> Method:
        return METHODS[request.param]
