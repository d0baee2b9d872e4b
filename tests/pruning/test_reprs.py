"""What a user prints is a line: tables, scores and indices stay out of it."""

from __future__ import annotations

import torch

import latprune
from latprune.importance import MagnitudeConfig
from latprune.zoo import digits_resnet


def test_whatever_a_user_meets_prints_as_a_line() -> None:
    model = digits_resnet().eval()
    method = latprune.MDP(score=MagnitudeConfig())
    pruner = latprune.Pruner(model, torch.randn(1, 1, 32, 32), budget="flops=50%", method=method, measure_latency=False)
    found = pruner.propose()
    report, result = pruner.step(), pruner.result()
    assert found.context is not None
    met = [pruner, found, found.proposal, found.proposal.problem, found.proposal.solution, found.selection, found.context]
    met += [found.context.importance, report, result, result.record, pruner.graph, pruner.graph.plan, *pruner.graph.groups.values()]
    met += [*pruner.edits, pruner.options, pruner.target, pruner.budget]
    assert {type(value).__name__: len(repr(value)) for value in met if len(repr(value)) > 400 or "\n" in repr(value)} == {}
    assert repr(pruner) == "Pruner(CifarResNet, mdp, budget flops=50%, stage 1 of 1)"
    assert repr(found.proposal.solution).startswith("Solution(exact, optimal, gain=")
