"""Under schedules that mask, what masks cannot hold stays whole from the start, and that is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.errors import BudgetInfeasibleError, InvalidArgumentError
from latprune.importance import MagnitudeConfig, TaylorConfig
from latprune.methods import HALP, MDP, SMCP, SPLAMP, Method, SoftMasks
from pruning import test_verbs
from pruning.test_verbs import pruner_of

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
RECIPE = latprune.Recipe(epochs=1, learning_rate=0.01)


class Spread(nn.Module):
    """A standard deviation over channels, which no mask in training can count over the kept ones alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.std(1, correction=0, keepdim=True) + 1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, padding=1)
        self.c2 = nn.Conv2d(8, 12, 3, padding=1)
        self.spread = Spread()
        self.c3 = nn.Conv2d(12, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spread(torch.relu(self.c2(torch.relu(self.c1(x)))))
        return self.head(torch.relu(self.c3(x)).mean((2, 3)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 5, (4,), generator=generator)) for _ in range(12)]


def run(method: Method, told: list[str], **options: Any) -> latprune.Result:
    given = {"budget": "flops=50%", "data": data(), "fit": RECIPE, "recover": False, "measure_latency": False, "progress": told.append}
    return latprune.prune(network(), X, method=method, **{**given, **options})


@pytest.mark.parametrize(
    "method",
    [SMCP(masks=SoftMasks(every=2)), MDP(soft_masks=SoftMasks(every=2)), HALP(stages=3), SPLAMP(stages=2, between="mask")],
    ids=["smcp", "mdp soft masks", "halp", "sp_lamp"],
)
def test_a_group_that_cannot_be_masked_stays_whole_and_is_named(method):
    told: list[str] = []
    result = run(method, told)
    widths = {group.name: (group.kept, group.dense) for group in result.record.groups}
    assert widths["c2"] == (12, 12)
    assert any(kept < dense for kept, dense in widths.values())
    assert result.record.pruned.macs <= 0.5 * result.record.dense.macs
    for lines in (told, result.record.notes):
        (line,) = [line for line in lines if "cannot be masked in training" in line]
        assert "'c2' (std in 'spread' runs over the channels" in line and "A schedule that cuts prunes them too" in line


def test_a_schedule_that_cuts_prunes_it():
    for method in (MDP(score=MagnitudeConfig()), HALP(stages=2, between="cut", score=MagnitudeConfig())):
        told: list[str] = []
        result = run(method, told, budget="flops=10%", fit=None)
        assert next(group.kept for group in result.record.groups if group.name == "c2") < 12
        assert not any("cannot be masked" in line for line in told)


@pytest.mark.parametrize("method", [SMCP(), HALP(stages=3)], ids=["smcp", "halp"])
def test_the_floor_of_a_budget_has_it_whole(method):
    dense = pruner_of(network(), MDP(score=MagnitudeConfig()), example=X).graph
    floor = dense.macs({"c1": 1, "c2": 12, "c3": 1})
    with pytest.raises(BudgetInfeasibleError, match="must be at least") as refused:
        run(method, [], budget=f"flops={floor - 1}")
    assert refused.value.floor == {"flops": floor}
    assert dense.macs({"c1": 1, "c2": 1, "c3": 1}) < floor


def test_nothing_left_to_prune_is_refused():
    one = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Spread(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    with pytest.raises(InvalidArgumentError, match="'0' .*nothing is left to prune"):
        pruner_of(one, HALP(stages=3), example=X)


@pytest.mark.parametrize(("every", "steps", "masked"), [(1000, 12, False), (2, 12, True)])
def test_a_training_that_no_mask_took_part_in_is_told(every, steps, masked):
    told: list[str] = []

    def fit(model: nn.Module, context: latprune.FitContext) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        driver = context.attach(optimizer, steps)
        for images, labels in data()[:steps]:
            driver.before_forward()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            driver.after_backward()
            optimizer.step()

    result = run(SMCP(masks=SoftMasks(every=every)), told, fit=fit)
    assert any("solves for no mask within the 12 optimizer steps" in line for line in told) is not masked
    assert any("cut in one go" in note for note in result.record.notes) is not masked


def test_criteria_that_do_not_see_what_is_masked_are_named():
    def told(method: Method) -> list[str]:
        lines: list[str] = []
        pruner = pruner_of(test_verbs.network(), method, progress=lines.append)
        found = [line for line in lines if "hardly a masked channel comes back" in line]
        assert found == [note for note in pruner.mask_notes if note in found]
        return found

    masks = SoftMasks(every=2)
    for blind in (MDP(soft_masks=masks, score=TaylorConfig()), SMCP(masks=masks, score=TaylorConfig(reduction="per_group"))):
        (line,) = told(blind)
        assert "criterion TaylorConfig" in line and "side='readers'" in line
    for seen in (MDP(soft_masks=masks), SMCP(masks=masks), SMCP(masks=masks, score=MagnitudeConfig()), HALP(stages=3)):
        assert told(seen) == []


def test_scaling_in_front_of_norms_needs_norms() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(4)).eval()
    x = torch.randn(2, 3, 8, 8)
    plain(x)
    for norms in (True, False):
        method = SMCP(masks=SoftMasks(norm_scaling=norms))
        if not norms:
            assert latprune.Pruner(plain, x, budget="flops=50%", method=method, measure_latency=False).graph.groups
            continue
        with pytest.raises(InvalidArgumentError, match=r"norm_scaling \(=True\) .* this network has none"):
            latprune.Pruner(plain, x, budget="flops=50%", method=method, measure_latency=False)
