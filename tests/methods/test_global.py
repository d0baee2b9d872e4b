"""One threshold over all groups: what stays scores at least as much as anything that goes."""

from __future__ import annotations

import numpy as np
import pytest

from latprune.errors import InvalidArgumentError
from latprune.importance import MagnitudeConfig, SpLampConfig, best_units
from latprune.methods import GlobalThreshold, Lamp, StageContext
from support.stages import chain, stage_of

SCALES = {"none": lambda values: 1.0, "mean": np.mean, "max": np.max}


def kept_and_gone(context: StageContext, widths: dict[str, int], normalise: str) -> tuple[list[float], list[float]]:
    """Scores of what stays (but for the last unit of a group, which must) and of what goes, each group's on its scale."""
    kept: list[float] = []
    gone: list[float] = []
    for name, width in widths.items():
        group, scores = context.graph.groups[name], context.importance.units[name]
        scaled = scores / SCALES[normalise](scores)
        best = set(best_units(group, scores, width).tolist())
        kept += [scaled[unit] for unit in best if width > group.min_width]
        gone += [scaled[unit] for unit in range(group.units) if unit not in best]
    return kept, gone


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
@pytest.mark.parametrize("normalise", SCALES)
def test_what_stays_scores_at_least_what_goes(normalise, share):
    context = stage_of(chain(), criterion=MagnitudeConfig())
    limit = share * context.current
    found = GlobalThreshold(score=MagnitudeConfig(), normalise=normalise).prepare(context).propose(limit)
    kept, gone = kept_and_gone(context, found.widths, normalise)
    assert found.predicted <= limit and not found.removed_blocks
    assert kept and gone and min(kept) >= max(gone)
    # The lowest threshold that the budget allows: the best unit that went no longer fits.
    name = max(
        (name for name in found.widths if found.widths[name] < context.widths[name]),
        key=lambda name: np.sort(context.importance.units[name] / SCALES[normalise](context.importance.units[name]))[
            -found.widths[name] - 1
        ],
    )
    assert context.predict({**found.widths, name: found.widths[name] + 1}) > limit


def test_lamp_is_sp_lamps_scores_under_one_threshold():
    context = stage_of(chain(), criterion=SpLampConfig())
    assert Lamp().importance == SpLampConfig()
    limit = 0.3 * context.current
    found = Lamp().prepare(context).propose(limit)
    assert found.widths == GlobalThreshold(score=SpLampConfig()).prepare(context).propose(limit).widths
    kept, gone = kept_and_gone(context, found.widths, "none")
    assert min(kept) >= max(gone)


def test_a_scale_that_there_is_not_is_refused():
    with pytest.raises(InvalidArgumentError, match="normalise .='median'. must be one of none, mean, max"):
        GlobalThreshold(normalise="median")
