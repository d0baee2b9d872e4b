"""The baselines: shares that are even, walks that end just under the limit, structures with fresh weights."""

import pytest
import torch

import latprune
from latprune.errors import BudgetInfeasibleError, InvalidArgumentError
from latprune.importance import L1Config, MagnitudeConfig
from latprune.methods import HALP, MDP, SPLAMP, FromScratch, Method, SoftMasks, get_method
from latprune.methods.base import StageContext
from latprune.resources import MultiplyAdds
from latprune.zoo import digits_resnet


@pytest.fixture(scope="module")
def context() -> StageContext:
    torch.manual_seed(0)
    graph = latprune.trace(digits_resnet(blocks=3, widths=(16, 32, 64)).eval(), torch.randn(1, 1, 32, 32))
    return StageContext(
        graph=graph,
        importance=None,
        resource=MultiplyAdds(graph),
        choices={name: tuple(range(4, group.columns + 1, 4)) for name, group in graph.groups.items()},
        widths=graph.dense_widths(),
    )


@pytest.mark.parametrize("share", [0.3, 0.5, 0.62, 0.9])
def test_uniform_keeps_one_share_everywhere_and_uses_the_limit_up(context, share):
    found = get_method("uniform").prepare(context).propose(share * context.current)
    assert 0.97 * share * context.current <= found.predicted <= share * context.current
    # One share explains every width, to less than a channel.
    groups = context.graph.groups
    assert max((found.widths[name] - 1) / group.columns for name, group in groups.items()) < min(
        (found.widths[name] + 1) / group.columns for name, group in groups.items()
    )
    assert len({found.widths[name] for name, group in groups.items() if group.columns == 64}) <= 2


@pytest.mark.parametrize("method", ["uniform", "random"])
def test_walks_end_under_the_limit_and_refuse_one_below_their_end(context, method):
    proposer = get_method(method).prepare(context)
    assert proposer.propose(0.5 * context.current).predicted <= 0.5 * context.current
    with pytest.raises(BudgetInfeasibleError) as caught:
        proposer.propose(1.0)
    assert caught.value.floor["flops"] > 1.0


X = torch.zeros(1, 1, 16, 16)
STRUCTURES = [
    MDP(score=MagnitudeConfig()),
    SPLAMP(stages=1),
    HALP(stages=1, score=MagnitudeConfig()),
    SPLAMP(stages=2),
    HALP(stages=2, score=MagnitudeConfig()),
]


def pruned(method: Method, *, seed: int = 0) -> latprune.Pruner:
    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 16, 16)).eval()
    pruner = latprune.Pruner(model, X, budget="flops=50%", method=method, measure_latency=False, seed=seed)
    while not pruner.done:
        pruner.step()
    return pruner


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda method: f"{method.name}, {method.schedule.count} stages")
def test_from_scratch_takes_a_methods_network_and_none_of_its_weights(structure):
    own, fresh = pruned(structure), pruned(FromScratch(structure=structure))
    assert fresh.stages == structure.schedule.count and fresh.widths == own.widths
    assert fresh.selection.removed_blocks == own.selection.removed_blocks
    before, after = own.model.state_dict(), fresh.model.state_dict()
    assert after.keys() == before.keys()
    weights = [name for name, value in before.items() if value.dim() > 1]
    assert weights and not any(torch.allclose(after[name], before[name]) for name in weights)
    norms = [module for module in fresh.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(torch.all(norm.weight == 1) and torch.all(norm.running_mean == 0) for norm in norms)


def test_the_seed_decides_the_fresh_weights_and_the_process_draws_on_as_before():
    method = FromScratch(structure="uniform")
    one, same, other = (pruned(method, seed=seed).model.state_dict() for seed in (0, 0, 1))
    weights = [name for name, value in one.items() if value.dim() > 1]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in weights)
    model = digits_resnet(blocks=1, widths=(8, 16, 16))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    method.finish(model, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_stages_before_the_last_are_recovered_and_fresh_weights_are_not():
    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 16, 16)).eval()
    told = []
    data = [(torch.randn(32, 1, 16, 16), torch.zeros(32, dtype=torch.int64))]
    result = latprune.prune(
        model,
        X,
        budget="flops=50%",
        method=FromScratch(structure=SPLAMP(stages=2)),
        data=data,
        fit=lambda network, context: told.append((context.stage, context.recovered)),
        measure_latency=False,
    )
    assert [stage for stage, _ in told] == [1, 2] and not told[1][1]
    assert result.record.recovery is None


def test_fresh_weights_that_would_never_train_are_refused():
    with pytest.raises(InvalidArgumentError, match="would then never train"):
        latprune.Pruner(digits_resnet(), X, budget="flops=50%", method=FromScratch(structure="uniform"), schedule=SoftMasks())


def test_from_scratch_needs_the_tables_that_its_structure_needs():
    assert FromScratch().needs_tables and not FromScratch(structure=SPLAMP(contributions="whole-network")).needs_tables


def test_from_scratch_takes_its_structures_options_as_plain_values():
    assert get_method("from_scratch", structure="halp", score="l1").importance == L1Config()
    made = get_method("from_scratch", structure={"name": "sp_lamp", "stages": 1, "score": "magnitude"})
    assert made.chooser == SPLAMP(stages=1, score=MagnitudeConfig())
    with pytest.raises(InvalidArgumentError, match="'random' has no option 'score'"):
        get_method("from_scratch", structure="random", score="l1")
    with pytest.raises(InvalidArgumentError, match="method .=None. must be a method's name"):
        get_method("from_scratch", structure={"stages": 1})
