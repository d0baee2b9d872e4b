"""One rule for a budget: what ``verify`` calls met is what the result's own verdict calls so, for every budget of a run."""

from __future__ import annotations

from typing import Any

import pytest

from latprune.latency import Measurement
from latprune.pruning.verification import _met
from support.sample_record import sample_dict, sample_record

COUNTED = {"text": "params=50%", "resource": "params", "value": 50.0, "unit": "%", "limit": 426509.0}
ELSEWHERE = {"text": "60%@torch", "resource": "latency", "value": 60.0, "unit": "%", "engine": "torch", "limit": 3.0, "uncertainty": 0.004}


def latency(ratio: float, half: float) -> dict[str, Any]:
    around = {"low": 3.2 * (ratio - half), "high": 3.2 * (ratio + half), "ratio_low": ratio - half, "ratio_high": ratio + half}
    return {**sample_dict()["pruned"]["latency"], "ms": 3.2 * ratio, "ratio": ratio, **around}


@pytest.mark.parametrize("unit", ["%", "ms"])
@pytest.mark.parametrize(("ratio", "met"), [(0.49, True), (0.4999, True), (0.503, True), (0.508, False), (0.55, False)])
def test_a_later_measurement_is_judged_as_the_first_one_was(unit: str, ratio: float, met: bool) -> None:
    measured = latency(ratio, half=0.002)
    budget = {**sample_dict()["budget"], "unit": unit, "value": 50.0 if unit == "%" else 1.6}
    record = sample_record(budget=budget, pruned={**sample_dict()["pruned"], "latency": measured})
    assert (record.verdict != "over") is met
    assert _met(record, Measurement(**measured), 0.01) is met
    assert _met(record, Measurement(**latency(0.9, half=0.002)), 0.01) is False


@pytest.mark.parametrize(
    ("further", "met"),
    [
        ([COUNTED], True),
        ([{**COUNTED, "limit": 412344.0}], False),
        ([{**ELSEWHERE, "share": 0.97}], True),
        ([{**ELSEWHERE, "share": 1.01}], True),
        ([COUNTED, {**ELSEWHERE, "share": 1.03}], False),
        ([ELSEWHERE], False),
    ],
)
def test_every_budget_of_several_counts(further: list[dict[str, Any]], met: bool) -> None:
    record = sample_record(further_budgets=further)
    assert _met(record, Measurement(**latency(0.49, half=0.002)), 0.01) is met
