"""The baselines: shares that are even, walks that end just under the limit."""

import pytest
import torch

import latprune
from latprune.errors import BudgetInfeasibleError
from latprune.methods import get_method
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
