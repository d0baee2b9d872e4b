"""Schedules: ramps, what happens between stages, and options that break their rules."""

import dataclasses
import json
import math

import pytest
import torch

import latprune
from latprune.errors import InvalidArgumentError
from latprune.importance import DivergenceConfig, L1Config, MagnitudeConfig
from latprune.methods import (
    HALP,
    MDP,
    SMCP,
    SPLAMP,
    FromScratch,
    GlobalThreshold,
    Greedy,
    Lamp,
    RandomChoice,
    Schedule,
    SinglePass,
    SoftMasks,
    Stages,
    Uniform,
    get_method,
    method_type,
    registered_methods,
)
from latprune.zoo import digits_resnet


def test_a_linear_ramp_is_sp_lamps_and_an_exponential_one_halps():
    linear, exponential = Stages(stages=4), Stages(stages=4, ramp="exponential")
    assert [linear.limit(stage=s, dense=8.0, limit=2.0) for s in (1, 2, 3, 4)] == [6.5, 5.0, 3.5, 2.0]
    found = [exponential.limit(stage=s, dense=8.0, limit=2.0) for s in (1, 2, 3, 4)]
    assert found == pytest.approx([8.0 * (2.0 / 8.0) ** (s / 4) for s in (1, 2, 3, 4)])
    assert found[-1] == 2.0


def test_the_last_stage_is_always_measured():
    assert [Stages(stages=3, measure="last").measured(s) for s in (1, 2, 3)] == [False, False, True]
    assert [Stages(stages=3).measured(s) for s in (1, 2, 3)] == [True, True, True]
    assert SinglePass().measured(1)


def test_soft_masks_warm_up_ramp_and_cool_down():
    soft = SoftMasks(warmup=0.2, cooldown=0.3, every=5)
    limits = [soft.limit_at(step=s, steps=100, dense=8.0, limit=2.0) for s in range(101)]
    assert limits[19] is None and limits[20] == pytest.approx(8.0)
    assert all(limit == 2.0 for limit in limits[70:])
    ramp = limits[20:70]
    assert all(a > b for a, b in zip(ramp, ramp[1:], strict=False))
    assert math.log(ramp[25]) == pytest.approx((math.log(8.0) + math.log(2.0)) / 2)
    assert [s for s in range(100) if soft.due(s, 100)] == list(range(0, 90, 5)), "the last tenth trains under the last mask"
    for warmup, cooldown in ((0.5, 0.5), (0.9, 0.1), (0.85, 0.15), (0.1, 0.3)):
        for steps in (12, 50, 100, 1000):
            few = SoftMasks(warmup=warmup, cooldown=cooldown, held=1.0)
            due = [s for s in range(1, steps) if few.due(s, steps) and few.limit_at(step=s, steps=steps, dense=8.0, limit=2.0) is not None]
            assert (due != []) == (few.every * max(1, math.ceil(warmup * steps / few.every)) < steps), (warmup, steps)
            assert not due or few.limit_at(step=due[-1], steps=steps, dense=8.0, limit=2.0) == 2.0
    for share, last in ((0.0, 95), (0.3, 65), (1.0, 65)):
        held = dataclasses.replace(soft, held=share)
        assert held.last_solution(100) == last and held.due(last, 100) and not held.due(last + 5, 100)
        assert held.limit_at(step=last, steps=100, dense=8.0, limit=2.0) == 2.0


def test_soft_masks_know_whether_a_training_has_any():
    for every in (1, 3, 10):
        for warmup in (0.0, 0.1, 0.5, 1.0):
            soft = SoftMasks(every=every, warmup=warmup, cooldown=min(0.3, 1.0 - warmup))
            for steps in (1, 2, 9, 10, 11, 40):
                for first, gradients in ((1, True), (0, False)):  # before the first step there are no gradients
                    due = [s for s in range(first, steps) if soft.due(s, steps)]
                    masked = [s for s in due if soft.limit_at(step=s, steps=steps, dense=8.0, limit=2.0) is not None]
                    assert soft.masks_within(steps, gradients=gradients) == bool(masked), (every, warmup, steps, gradients)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Stages(stages=0), r"stages \(=0\)"),
        (lambda: Stages(ramp="cubic"), r"ramp \(='cubic'\) must be one of linear, exponential"),
        (lambda: Stages(between="sleep"), "between"),
        (lambda: SoftMasks(warmup=0.7, cooldown=0.5), "together at most 1"),
        (lambda: SoftMasks(held=1.5), "from 0 to 1"),
        (lambda: SoftMasks(every=0), r"every \(=0\)"),
        (lambda: SoftMasks(straight_through=False, weight_decay=0.1), "needs straight_through=True: hard masks"),
        (lambda: SoftMasks(weight_decay=math.nan), r"weight_decay \(=nan\) must be a number of at least 0, or None"),
        (lambda: SoftMasks(norm_scaling=1), r"norm_scaling \(=1\) must be True or False"),
        (lambda: get_method("smcp", masks={"norm_scaling": "yes"}), "norm_scaling .*; on the command line write true or false"),
        (lambda: SMCP(masks=Stages()), r"masks \(=Stages\(.*\) must be a SoftMasks schedule"),
        (lambda: get_method("smcp", masks=False), r"masks \(=False\) must be a SoftMasks schedule"),
        (lambda: MDP(soft_masks=True), r"soft_masks \(=True\) must be a SoftMasks schedule"),
        (lambda: get_method("mdp", soft_masks={"evry": 20}), "schedule 'soft_masks' has no option 'evry'; it has warmup"),
        (lambda: get_method("mdp", soft_masks={"every": 2.5}), r"every \(=2.5\) must be a whole number"),
        (lambda: HALP(score="magnitude"), r"score \(='magnitude'\) must be .*; get_criterion\('magnitude'\) makes one by its name"),
        (lambda: MDP(channels=False, blocks=False), "nothing is left to prune"),
        (lambda: MDP(stages=3, soft_masks=SoftMasks()), "soft_masks"),
        (lambda: MDP(stages=0), r"stages \(=0\)"),
        (lambda: HALP(floor=1.5), r"floor \(=1.5\)"),
        (lambda: SPLAMP(between="later"), "between"),
        (lambda: FromScratch(structure="smcp"), "cuts before the training"),
        (lambda: FromScratch(structure=MDP(soft_masks=SoftMasks())), "cuts before the training"),
        (lambda: FromScratch(structure="from_scratch"), "must be another method"),
        (lambda: FromScratch(structure=MDP(), score=MagnitudeConfig()), "cannot be combined with a method object"),
        (lambda: get_method("mdp", steps=3), "has no option .steps.; it has score, channels"),
        (lambda: get_method("mpd"), "must be one of"),
    ],
)
def test_options_that_break_their_rules_are_told(make, words):
    with pytest.raises(InvalidArgumentError, match=words):
        make()


def test_plain_values_make_options():
    method = get_method("mdp", score="sp_lamp", soft_masks=True)
    assert isinstance(method.schedule, SoftMasks) and type(method.importance).__name__ == "SpLampConfig"
    assert get_method("smcp", masks={"every": 3}).schedule.due(3, 100)
    assert get_method("mdp", soft_masks=False).schedule == SinglePass()


def test_options_are_json():
    for method in (HALP(), SMCP(), SPLAMP(), MDP(soft_masks=SoftMasks()), FromScratch(structure=MDP(blocks=False))):
        options = json.loads(json.dumps(method.options()))
        assert options
    assert [SMCP(masks=SoftMasks(norm_scaling=on)).options()["masks"]["norm_scaling"] for on in (False, True)] == [False, True]
    assert SoftMasks().norm_scaling is False
    assert MDP(stages=10).schedule.count == 10 and MDP(stages=10, blocks=True).schedule.after_stage == "cut"


def test_options_name_the_criteria_inside_a_criterion() -> None:
    """A saved run is resumed under the same settings only, and two criteria may have the same fields."""
    one, other = (MDP(score=DivergenceConfig(rank=rank)).options() for rank in (MagnitudeConfig(), L1Config()))
    assert one["score"]["rank"]["type"] == "MagnitudeConfig" and one != other
    assert [rival["type"] for rival in one["score"]["rivals"]] == ["SpLampConfig", "TaylorConfig"]
    assert json.loads(json.dumps(one)) == one


METHODS = {
    "mdp": MDP(score=MagnitudeConfig()),
    "sp_lamp": SPLAMP(),
    "halp": HALP(score=MagnitudeConfig()),
    "smcp": SMCP(score=MagnitudeConfig()),
    "lamp": Lamp(),
    "global": GlobalThreshold(score=MagnitudeConfig(), normalise="mean"),
    "greedy": Greedy(score=MagnitudeConfig()),
    "uniform": Uniform(),
    "random": RandomChoice(),
    "from_scratch": FromScratch(structure="uniform"),
}


def test_every_method_is_here() -> None:
    assert set(METHODS) == {name for name in registered_methods() if method_type(name).__module__.startswith("latprune.")}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("schedule", [SinglePass(), Stages(stages=2, ramp="exponential"), Stages(stages=2, between="mask")])
def test_any_method_goes_to_its_budget_by_any_schedule(name: str, schedule: Schedule) -> None:
    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 16, 16)).eval()
    x = torch.zeros(1, 1, 16, 16)
    pruner = latprune.Pruner(model, x, budget="flops=50%", method=METHODS[name], schedule=schedule, measure_latency=False)
    assert pruner.stages == schedule.count
    while not pruner.done:
        pruner.step()
    assert pruner.graph.macs(pruner.widths, pruner.selection.removed_blocks) <= 0.5 * pruner.limits.dense
    assert pruner.settings["schedule"] == schedule.options()
    assert len(pruner.edits) == (1 if schedule.after_stage == "mask" else schedule.count)


def test_masks_move_by_a_schedule_of_any_method_whose_scores_training_gives() -> None:
    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 16, 16))
    x = torch.zeros(1, 1, 16, 16)
    with pytest.raises(InvalidArgumentError, match="data of its own"):
        latprune.Pruner(model, x, budget="flops=50%", method="mdp", schedule="soft_masks", measure_latency=False)
    schedule = SoftMasks(warmup=0.0, every=1, held=0.0)
    pruner = latprune.Pruner(model, x, budget="flops=50%", method=Uniform(), schedule=schedule, measure_latency=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    training = pruner.masked_training(steps=3, optimizers=optimizer)
    for _ in range(3):
        training.before_forward()
        optimizer.zero_grad()
        model(torch.randn(4, 1, 16, 16)).square().mean().backward()
        training.after_backward()
        optimizer.step()
    pruner.step(optimizers=optimizer)
    assert len(training.changes) == 3 and pruner.graph.macs(pruner.widths) <= 0.5 * pruner.limits.dense
