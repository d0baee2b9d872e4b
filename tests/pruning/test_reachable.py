"""A budget that the last of several stages cannot meet is refused before the first one, and a later stage's error says whose it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import latprune
from latprune.errors import BudgetInfeasibleError
from latprune.graph import Selection
from latprune.importance import MagnitudeConfig
from latprune.latency import Store, Target, build_tables
from latprune.methods import HALP, MDP, SMCP, SPLAMP, FromScratch, Greedy, Lamp, Method, RandomChoice, Stages, Uniform
from latprune.pruning import lowest
from latprune.pruning.proposing import ProposalSearch
from pruning.test_verbs import X as SMALL
from pruning.test_verbs import network, pruner_of
from support import explored
from support.stages import stage_of

SCORE = MagnitudeConfig()


def refused(method: Method, budget: str, **options: Any) -> tuple[BudgetInfeasibleError, list[int]]:
    """The error of a run, and the stages that it had trained by then."""
    trained: list[int] = []
    model, x, given = network(), SMALL, {"measure_latency": False, **options}
    if "tables" in given:
        model, x = explored.network(), explored.X
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BudgetInfeasibleError) as caught:
        latprune.prune(model, x, budget=budget, method=method, fit=lambda model, context: trained.append(context.stage), **given)
    if not trained:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return caught.value, trained


@pytest.mark.parametrize("between", ["cut", "mask"])
def test_what_a_method_keeps_counts_before_anything_is_trained(between):
    error, trained = refused(HALP(stages=10, floor=0.5, between=between, score=SCORE), "flops=20%")
    assert trained == []
    assert "method 'halp' with floor (=0.5)" in str(error) and "Raise the budget" in str(error)
    graph = pruner_of(network(), HALP(floor=0.5, score=SCORE)).graph
    assert error.floor == {"flops": graph.macs({name: -(-group.columns // 2) for name, group in graph.groups.items()})}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (HALP(stages=4, protect_stem=True, floor=0.3, score=SCORE), r"floor \(=0.3\) and protect_stem \(=True\)"),
        (MDP(stages=4, blocks=False, score=SCORE), r"blocks \(=False\)"),
        (MDP(stages=4, channels=False, score=SCORE), r"channels \(=False\)"),
        (FromScratch(structure=MDP(stages=4, blocks=False, score=SCORE)), r"blocks \(=False\)"),
        (SPLAMP(stages=4), "'sp_lamp'"),
        (SMCP(score=SCORE), "'smcp'"),
        (Uniform(), "'uniform'"),
        (Lamp(), "'lamp'"),
        (Greedy(score=SCORE), "'greedy'"),
        (RandomChoice(blocks=False), "'random'"),
    ],
    ids=lambda value: value.name if isinstance(value, Method) else "",
)
def test_each_method_says_what_its_smallest_network_is(method, words):
    """With all blocks gone, and the widths on offer, the network would meet this budget."""
    dense = pruner_of(network(), MDP(score=SCORE)).graph
    removable = [block.name for block in dense.blocks.values() if block.removable]
    all_gone = dense.macs(dict.fromkeys(dense.groups, 1), removable)
    with pytest.raises(BudgetInfeasibleError, match=words) as caught:
        pruner_of(network(), method, budget=f"flops={all_gone + 1}")
    floor = caught.value.floor["flops"]
    schedule = Stages(stages=2) if method.schedule.count == 1 else None
    pruner_of(network(), method, budget=f"flops={floor}", schedule=schedule)  # what it comes to itself is no less


@pytest.mark.parametrize(
    "method", [MDP(score=SCORE), MDP(score=SCORE, blocks=False), Uniform(), Lamp(score=SCORE), Greedy(score=SCORE)], ids=lambda m: m.name
)
def test_no_proposal_lies_below_the_smallest_network_on_offer(method):
    context = stage_of(network(), SMALL)
    offer = method.offer(context)
    floor = context.predict(offer.smallest, offer.removable)
    proposer = method.prepare(context)
    assert proposer.propose(proposer.just_above(floor)).predicted == pytest.approx(floor)
    with pytest.raises(BudgetInfeasibleError):
        proposer.propose(floor * 0.999)


def test_a_latency_below_the_tables_floor_is_refused_before_anything_is_trained():
    tables = explored.made_up_tables()
    method = HALP(stages=4, floor=0.5, between="cut", score=SCORE)
    error, trained = refused(method, "20%", tables=tables, target=explored.TARGET)
    assert trained == [] and "method 'halp' with floor (=0.5)" in str(error)
    # Widths are staircases, so the narrowest network need not be the one at the floor.
    graph = latprune.trace(explored.network(), explored.X)
    smallest = {name: min(w for w in tables.choices(name) if 2 * w >= group.columns) for name, group in graph.groups.items()}
    assert error.limit["latency"] < error.floor["latency"] <= tables.predict(smallest) * tables.residual.room * (1 + 1e-9)


def test_a_latency_above_the_tables_floor_is_not_asked_about(monkeypatch):
    """The linearisation's own floor, around the dense network, is no reason: later stages stand on narrower ones."""
    monkeypatch.setattr(lowest, "lowest_use", lambda *args: pytest.fail("the smallest network meets it"))
    pruner = latprune.Pruner(
        explored.network(),
        explored.X,
        budget="60%",
        method=HALP(stages=3, score=SCORE),
        tables=explored.made_up_tables(),
        target=explored.TARGET,
        measure_latency=False,
    )
    pruner.step()


@pytest.mark.usefixtures("made_up_engine")
def test_where_the_clock_decides_the_smallest_network_is_measured(tmp_path):
    target = Target(engine="made-up")
    with Store(tmp_path / "latency.sqlite") as store:
        tables = build_tables(explored.network(), latprune.trace(explored.network(), explored.X), explored.X, target, store=store)
    told: list[str] = []
    method = HALP(stages=4, floor=0.5, between="cut", score=SCORE)
    error, trained = refused(method, "20%", tables=tables, target=target, measure_latency=True, progress=told.append)
    assert trained == []
    (line,) = [line for line in told if line.startswith("the smallest network: measured")]
    assert f"{error.floor['latency']:.3f} ms" in line


def test_a_later_stages_error_names_the_users_budget_and_the_state_of_the_model(monkeypatch):
    model = network()
    pruner = pruner_of(model, SPLAMP(stages=3), budget=["flops=40%", "params=60%"])
    find = ProposalSearch.find

    def fails_later(self: ProposalSearch, importance: Any, since: Selection, **options: Any) -> Any:
        if since.kept:
            raise BudgetInfeasibleError("nothing fits", limit={"flops": 1.0}, floor={"flops": 2.0})
        return find(self, importance, since, **options)

    monkeypatch.setattr(ProposalSearch, "find", fails_later)
    pruner.step()
    with pytest.raises(BudgetInfeasibleError) as caught:
        pruner.step()
    said = str(caught.value)
    assert said.startswith("stage 2 of 3 on the way to 'flops=40%' and 'params=60%': nothing fits. Raise the budget")
    at = pruner.graph.macs(pruner.widths, pruner.cut_to.removed_blocks)
    assert f"partly cut: the stages before brought it to {at:.6g} multiply-adds" in said and "build the dense model anew" in said
    assert (caught.value.limit, caught.value.floor) == ({"flops": 1.0}, {"flops": 2.0})
    assert model(SMALL).shape == (1, 10)
