"""MDP: the best widths and blocks under the budget by brute force, what its options leave out of the problem, and its default scores."""

from __future__ import annotations

import itertools

import pytest
import torch

from latprune.importance import DivergenceConfig, MagnitudeConfig, TaylorConfig
from latprune.methods import MDP, SinglePass, SoftMasks
from latprune.methods.assemble import assemble
from latprune.resources.terms import block_variable
from pruning.test_verbs import network, pruner_of, sgd, trained_under_masks
from support.one_block import Residual, X
from support.stages import stage_of


def small() -> Residual:
    torch.manual_seed(3)
    return Residual(width=8).eval()


@pytest.fixture(scope="module")
def context():
    model = small()
    found = stage_of(model, X, criterion=MagnitudeConfig())
    choices = {name: tuple(width for width in options if width % 2 == 0 or width == 1) for name, options in found.choices.items()}
    return stage_of(model, X, criterion=MagnitudeConfig(), choices=choices)


@pytest.mark.parametrize("share", [0.95, 0.7, 0.4, 0.1])
def test_no_other_choice_of_widths_and_blocks_under_the_limit_keeps_more(context, share):
    """Maximise ``sum z_b (y . I)`` subject to ``sum z_b (y_in . C y_out) <= limit`` (eq. 8, 9)."""
    assert context.removable
    limit = share * context.current
    found = MDP(score=MagnitudeConfig()).prepare(context).propose(limit)
    problem = assemble(context, limit=None)
    best = 0.0
    for widths in itertools.product(*context.choices.values()):
        for kept in itertools.product((0, 1), repeat=len(context.removable)):
            chosen = dict(zip(context.choices, widths, strict=True))
            removed = [block for block, stays in zip(context.removable, kept, strict=True) if not stays]
            if context.predict(chosen, removed) <= limit:
                blocks = {block_variable(block): stays for block, stays in zip(context.removable, kept, strict=True)}
                best = max(best, problem.evaluate({**chosen, **blocks}).gain)
    assert best > 0 and found.predicted <= limit
    assert found.solution.gain == pytest.approx(best, rel=1e-9)
    assert found.predicted == pytest.approx(context.predict(found.widths, found.removed_blocks))


def test_what_may_not_go_has_one_choice_or_no_variable(context):
    problems = {
        name: MDP(score=MagnitudeConfig(), **options).prepare(context).propose(context.current).problem
        for name, options in {"both": {}, "channels": {"blocks": False}, "blocks": {"channels": False}}.items()
    }
    kinds = {name: {v.kind for v in problem.variables if len(v.choices) > 1} for name, problem in problems.items()}
    assert kinds == {"both": {"width", "block"}, "channels": {"width"}, "blocks": {"block"}}


def test_without_bilayer_latency_a_layer_costs_its_output_at_the_input_width_of_now(context):
    whole = {name: options[-1] for name, options in context.choices.items()}
    narrow = {**whole, "stem.0": 2}
    cost = {}
    for bilayer in (True, False):
        problem = MDP(score=MagnitudeConfig(), blocks=False, bilayer=bilayer).prepare(context).propose(context.current).problem
        cost[bilayer] = problem.evaluate(whole).costs["flops"] - problem.evaluate(narrow).costs["flops"]
    assert cost[True] == context.current - context.predict(narrow)
    kernels = context.graph.kernels.values()
    made = sum(
        kernel.macs * (kernel.axes[0].size(whole, ()) * (kernel.axes[-1].size(whole, ()) - kernel.axes[-1].size(narrow, ())))
        for kernel in kernels
        if kernel.macs
    )
    assert cost[False] == made < cost[True]


def test_scores_are_measured_unless_training_gives_them():
    assert MDP().importance == DivergenceConfig() and MDP(soft_masks=SoftMasks()).importance == TaylorConfig(side="readers")
    assert MDP(score=MagnitudeConfig()).importance == MagnitudeConfig()


def returned(method) -> list[int]:
    """Units that came back, solution by solution, in 48 steps."""
    model = network()
    pruner = pruner_of(model, method)
    return [change.returned for change in trained_under_masks(pruner, steps=48, optimizer=sgd(model)).changes]


def test_under_soft_masks_channels_come_back_to_the_end():
    """Nothing reads a masked channel, so that what makes it has no gradient: by such scores what went stays away."""
    masks = SoftMasks(every=2, warmup=0.1, cooldown=0.4)
    found = returned(MDP(soft_masks=masks))
    makers = returned(MDP(soft_masks=masks, score=TaylorConfig()))
    assert len(found) == len(makers) == 19
    assert sum(found) >= 3 * max(sum(makers), 5) and sum(found[-6:]) > sum(makers[-6:]) == 0


def test_one_pass_steps_or_masks():
    assert MDP().schedule == SinglePass()
    steps = MDP(stages=10, score=TaylorConfig()).schedule
    assert (steps.count, steps.ramp) == (10, "exponential") and [steps.measured(stage) for stage in (1, 9, 10)] == [False, False, True]
    masks = SoftMasks(every=5)
    assert MDP(soft_masks=masks).schedule is masks
