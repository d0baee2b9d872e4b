"""Which of several readings' networks is taken: compared as they are after the recovery that follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.errors import InvalidArgumentError
from latprune.graph import Selection
from latprune.importance import DivergenceConfig, Importance, cross_entropy_loss, score
from latprune.importance.divergence import Divergences
from latprune.importance.magnitude import MagnitudeConfig
from latprune.methods import MDP
from latprune.problem import Problem, Solution
from latprune.recovery import Distil, Norms, Refit
from latprune.solve import solve
from latprune.zoo import digits_resnet

X = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))


def network() -> nn.Module:
    torch.manual_seed(0)
    return digits_resnet(blocks=1, widths=(8, 8, 16)).eval()


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 1, 32, 32, generator=generator) for _ in range(count)]


class Told:
    """Two readings, and a judge that keeps what it is shown: the second one's network is the nearer one where it was recovered."""

    left_out: Mapping[str, str] = {}
    caution: Mapping[str, float] = {}
    examples = 64

    def __init__(self, pruner: latprune.Pruner, data: Iterable[Any]) -> None:
        first = score(pruner.model, pruner.graph, MagnitudeConfig())
        second = Importance(units={name: values[::-1].copy() for name, values in first.units.items()}, shares={}, curves={})
        self.importances = {"first": first, "second": second}
        self.batches = data
        self.shown: list[tuple[Selection, nn.Module | None]] = []

    def divergences(self, selection: Selection, network: nn.Module | None = None) -> Any:
        self.shown.append((selection, network))
        return np.full(4, float(len(self.shown)) if network is None else -float(len(self.shown)))


def pruner_of(**options: Any) -> latprune.Pruner:
    return latprune.Pruner(network(), X, budget="flops=60%", method=MDP(), measure_latency=False, **options)


def group_of(pruner: latprune.Pruner) -> str:
    return next(name for name in pruner.graph.groups if "layer1.0.conv1" in name)


@torch.no_grad()
def error(cut: nn.Module, pruner: latprune.Pruner) -> float:
    return float((cut(batches()[0]) - pruner.dense_model(batches()[0])).square().mean())


@pytest.mark.parametrize(("recover", "taken"), [(True, "second"), (Refit(sweeps=2), "second"), ("distil", "second"), (False, "first")])
def test_networks_are_compared_as_they_are_after_recovery(recover: Any, taken: str) -> None:
    pruner = pruner_of(recover=recover)
    readings = Told(pruner, batches())
    name = group_of(pruner)
    cuts = [Selection(kept={name: np.arange(4)}), Selection(kept={name: np.arange(4, 8)})]

    def leads_to(importance: Importance) -> Selection:
        return cuts[importance is readings.importances["second"]]

    found, _ = pruner._search.least_divergent(readings, leads_to, Selection(kept={}))
    assert found == taken
    seen = len(readings.shown)
    assert pruner._search.least_divergent(readings, leads_to, Selection(kept={}))[0] == taken
    assert len(readings.shown) == seen  # the same networks are not compared again
    dense = [parameter.detach().clone() for parameter in pruner.model.parameters()]
    for selection, judged in readings.shown:
        if recover is False:
            assert judged is None
            continue
        assert judged is not None and not judged.training
        plain = pruner._search.network(selection)
        assert error(judged, pruner) < error(plain, pruner)  # it was recovered
    assert all(torch.equal(now, before) for now, before in zip(pruner.model.parameters(), dense, strict=True))


def test_after_a_stage_networks_are_compared_by_the_model_itself() -> None:
    pruner = pruner_of()
    readings = Told(pruner, batches())
    since = Selection(kept={group_of(pruner): np.arange(6)})
    pruner._search.least_divergent(readings, lambda importance: since, since)
    assert [network for _, network in readings.shown] == [None]


def test_batches_that_nothing_can_be_recovered_from_are_told() -> None:
    lines: list[str] = []
    pruner = pruner_of(progress=lines.append)
    readings = Told(pruner, [object()])
    cuts = iter(Selection(kept={group_of(pruner): np.arange(width)}) for width in (3, 4, 5, 6))
    for _ in range(2):
        assert pruner._search.least_divergent(readings, lambda importance: next(cuts), Selection(kept={}))[0] == "first"
    assert [network for _, network in readings.shown] == [None] * 4
    told = [line for line in lines if "compared as they are cut" in line]
    assert len(told) == 1 and "batch" in told[0]


def test_a_recovered_network_is_judged_in_evaluation_and_beside_the_dense_one() -> None:
    pruner = pruner_of()
    readings = Divergences(pruner.model, pruner.graph, DivergenceConfig(examples=16), batches(), cross_entropy_loss)
    whole = Selection(kept={})
    assert readings.examples == 64
    same = readings.divergences(whole, pruner.dense_model)
    assert same.shape == (4,) and np.abs(same).max() < 1e-6
    cut = Selection(kept={group_of(pruner): np.arange(4)})
    assert readings.divergences(cut, pruner._search.network(cut)).min() > 0
    assert not pruner.model.training


def test_the_strategy_is_one_option_of_pruner_and_prune() -> None:
    pruner = latprune.Pruner(network(), X, budget="flops=60%", method=MDP(score=MagnitudeConfig()), measure_latency=False, recover="norms")
    pruner.step()
    assert pruner.recover(batches()).strategy == "norms"
    assert pruner.recover(batches(), strategy="refit").strategy == "refit"
    assert pruner.settings["recover"]["strategy"] == "norms" and pruner_of(recover=False).settings["recover"] is None
    assert Distil().stand_in == Refit(sweeps=3).stand_in == Refit(rows=10, least_rows=4096, rounds=2, spread=False)
    assert isinstance(Norms().stand_in, Norms)
    with pytest.raises(InvalidArgumentError, match="refti"):
        pruner_of(recover="refti")


def test_what_is_only_compared_is_solved_near_and_what_is_delivered_to_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps: list[float] = []

    def solved(problem: Problem, **options: Any) -> Solution:
        gaps.append(options["gap"])
        return solve(problem, **options)

    monkeypatch.setattr("latprune.methods.solved.solve", solved)
    pruner = pruner_of(recover=False)
    proposal = pruner.propose(pruner.limit, data=batches())
    assert len(gaps) > 2 and all(0.0 < gap < 0.01 for gap in gaps[:-1])
    solution = proposal.proposal.solution
    assert gaps[-1] == 0.0 and solution is not None
    assert (solution.status, solution.gap) == ("optimal", 0.0)
