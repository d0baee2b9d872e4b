"""NetAdapt's loop, step by step against one written down here."""

from __future__ import annotations

import numpy as np
import pytest

from latprune.errors import BudgetInfeasibleError, InvalidArgumentError
from latprune.importance import MagnitudeConfig
from latprune.methods import Greedy, StageContext
from support.stages import chain, stage_of


def lost(context: StageContext, name: str, before: int, after: int) -> float:
    """The sum of the scores of the units that go."""
    return float(np.sort(context.importance.units[name])[::-1][after:before].sum())


def next_widths(context: StageContext, widths: dict[str, int], saving: float) -> dict[str, int]:
    """Every group proposes its widest width that saves enough; the proposal that loses the least is taken."""
    now = context.predict(widths)
    proposals = []
    for name, width in widths.items():
        enough = [w for w in range(1, width) if now - context.predict({**widths, name: w}) >= saving]
        if enough:
            proposals.append((lost(context, name, width, enough[-1]), name, enough[-1]))
    _, name, width = min(proposals)
    return {**widths, name: width}


@pytest.mark.parametrize("step", [0.02, 0.1])
def test_each_step_takes_the_proposal_that_loses_the_least(step):
    context = stage_of(chain(), criterion=MagnitudeConfig())
    proposer = Greedy(score=MagnitudeConfig(), step=step).prepare(context)
    widths = dict(context.widths)
    for _ in range(4):
        before = context.predict(widths)
        widths = next_widths(context, widths, step * context.current)
        assert proposer.propose(0.999 * before).widths == widths
        assert before - context.predict(widths) >= step * context.current


def test_the_first_network_under_the_limit_is_taken_and_none_below_the_end():
    context = stage_of(chain(), criterion=MagnitudeConfig())
    proposer = Greedy(score=MagnitudeConfig(), step=0.05).prepare(context)
    for share in (0.7, 0.3):
        found = proposer.propose(share * context.current)
        assert (share - 0.15) * context.current < found.predicted <= share * context.current and not found.removed_blocks
    smallest = context.predict(dict.fromkeys(context.widths, 1))
    with pytest.raises(BudgetInfeasibleError, match="end of the greedy loop") as refused:
        proposer.propose(0.5 * smallest)
    assert refused.value.floor["flops"] == smallest


def test_a_step_that_is_no_share_is_refused():
    with pytest.raises(InvalidArgumentError, match="step .=0.6. must be the share"):
        Greedy(step=0.6)
