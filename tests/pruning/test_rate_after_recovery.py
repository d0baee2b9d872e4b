"""The learning rate of a recipe follows what recovery left of the outputs' error, where the recipe says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import latprune
from latprune.recovery import RecoveryReport
from latprune.zoo import digits_resnet


def _pruned(**options: Any) -> tuple[list[str], latprune.Result]:
    torch.manual_seed(0)
    model, lines = digits_resnet(blocks=1, widths=(8, 16, 16)).eval(), list[str]()
    batches = [(torch.randn(32, 1, 16, 16), torch.randint(0, 10, (32,))) for _ in range(4)]
    result = latprune.prune(
        model,
        batches[0][0][:1],
        budget="flops=60%",
        method="uniform",
        data=batches,
        measure_latency=False,
        progress=lines.append,
        **options,
    )
    return lines, result


def test_the_rate_is_scaled_by_the_share_of_the_error_and_said() -> None:
    lines, result = _pruned(fit=latprune.Recipe(epochs=1, learning_rate=0.02, after_recovery="error"))
    assert result.record.recovery is not None
    share = RecoveryReport.from_dict(result.record.recovery).error_left
    assert share is not None and share < 1
    said = [line for line in lines if line.startswith("peak learning rate")]
    assert len(said) == 1 and f"{0.02 * max(share, 0.1):.3g} in place of 0.02" in said[0]


@pytest.mark.parametrize("options", [{"recover": False}, {"fit": latprune.Recipe(epochs=1, learning_rate=0.02)}])
def test_the_rate_stays_without_a_recovery_and_where_the_recipe_says_so(options: dict[str, Any]) -> None:
    lines, _ = _pruned(**({"fit": latprune.Recipe(epochs=1, learning_rate=0.02, after_recovery="error")} | options))
    assert not any("peak learning rate" in line for line in lines)
