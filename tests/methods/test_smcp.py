"""SMCP: costs around the dense network, scores of what is masked, masks that move and the cut at their end."""

from __future__ import annotations

import pytest
import torch

from latprune.methods import SMCP, SoftMasks
from latprune.pruning.state import selection_to_dict
from pruning.test_verbs import X, network, pruner_of, sgd, trained_under_masks
from support.stages import chain, layer_macs, stage_of


def test_costs_are_linear_around_the_dense_network():
    """A group pays for the layer that makes it, at the dense width of what that layer reads, whatever else is narrowed."""
    context = stage_of(chain())
    problem = SMCP().prepare(context).propose(context.current).problem
    (row,) = problem.costs
    dense = {"0": 2, "2": 6, "4": 8}
    for narrow in (context.widths, {"0": 1, "2": 1, "4": 1}):
        for name, options in context.choices.items():
            costs = [problem.evaluate({**narrow, name: width}).costs[row.name] for width in options]
            steps = [after - before for before, after in zip(costs, costs[1:], strict=False)]
            assert steps == [layer_macs(dense[name], 1)] * (len(costs) - 1)
    assert {variable.kind for variable in problem.variables} == {"width"}


def test_what_is_masked_goes_on_being_scored():
    pruner = pruner_of(network(), SMCP(masks=SoftMasks(every=2, warmup=0.1, cooldown=0.4)))
    trained_under_masks(pruner)
    units = pruner.scorer.importance(pruner.cut_to, None, None, None).units
    masked = {name: [u for u in range(len(units[name])) if u not in set(kept.tolist())] for name, kept in pruner.selection.kept.items()}
    assert any(masked.values())
    assert all(units[name][unit] > 0 for name, gone in masked.items() for unit in gone)


def test_soft_masks_move_return_and_end_in_a_cut():
    model = network()
    pruner = pruner_of(model, SMCP(masks=SoftMasks(every=2, warmup=0.1, cooldown=0.4)))
    optimizer = sgd(model)
    training = trained_under_masks(pruner, steps=24, optimizer=optimizer)
    limits = [change.limit for change in training.changes]
    assert limits == sorted(limits, reverse=True) and limits[-1] == pytest.approx(pruner.limit)
    assert training.changes[-1].masked > training.changes[0].masked
    assert sum(change.returned for change in training.changes) > 0
    before, mask = model(X), pruner.selection
    report = pruner.step(optimizers=optimizer)
    assert pruner.done and report.equality is not None
    assert pruner.graph.macs(pruner.widths, pruner.selection.removed_blocks) <= pruner.limit
    assert selection_to_dict(pruner.selection) == selection_to_dict(mask), "what trained under the mask is what is cut"
    torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-5)
    assert report.solution is not None and report.problem is not None


def test_a_mask_that_is_not_at_the_budget_yet_is_narrowed_by_the_cut():
    model = network()
    pruner = pruner_of(model, SMCP(masks=SoftMasks(every=2, warmup=0.1, cooldown=0.4)))
    optimizer = sgd(model)
    trained_under_masks(pruner, steps=40, ends_after=14, optimizer=optimizer)
    mask = pruner.selection
    assert mask.kept and pruner.graph.macs(pruner.widths, mask.removed_blocks) > pruner.limit
    pruner.step(optimizers=optimizer)
    assert pruner.graph.macs(pruner.widths, pruner.selection.removed_blocks) <= pruner.limit
    assert mask.removed_blocks <= pruner.selection.removed_blocks
    for name, kept in mask.kept.items():
        assert set(pruner.selection.kept[name].tolist()) <= set(kept.tolist())


def test_norm_scaling_reaches_a_loop_of_ones_own_behind_the_scores():
    """Scores are of the gradients as they arrive: with weights that stay, masks and scores are the same to the bit; steps are not."""

    def run(rate: float, **options: bool):
        pruner = pruner_of(network(), SMCP(masks=SoftMasks(every=2, warmup=0.1, cooldown=0.4, **options)))
        optimizer = torch.optim.SGD(pruner.model.parameters(), lr=rate)
        training = trained_under_masks(pruner, optimizer=optimizer)
        with training.dense_values():
            weights = [p.detach().clone() for p in pruner.model.parameters()]
        taken = [p.grad.clone() for p in pruner.model.parameters() if p.grad is not None]
        return pruner.scorer.state_dict(), [change.widths for change in training.changes], weights, taken

    off, on = run(0.0), run(0.0, norm_scaling=True)
    assert off[0].keys() == on[0].keys() and all(torch.equal(off[0][name], on[0][name]) for name in off[0])
    assert off[1] == on[1] and len(off[1]) > 2
    assert all(float(b.norm()) <= float(a.norm()) for a, b in zip(off[3], on[3], strict=True))
    assert any(float(b.norm()) < 0.95 * float(a.norm()) for a, b in zip(off[3], on[3], strict=True))
    default, told, moved = run(0.05), run(0.05, norm_scaling=False), run(0.05, norm_scaling=True)
    assert all(torch.equal(a, b) for a, b in zip(default[2], told[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(default[2], moved[2], strict=True))
