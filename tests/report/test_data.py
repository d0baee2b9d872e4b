from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latprune.report import formatting as fmt
from latprune.report.data import (
    compute_candidates,
    compute_comparison,
    compute_latency,
    compute_report,
    compute_solver,
    compute_verdict,
    compute_widths,
)
from latprune.report.html import html_page
from latprune.report.svg import nice_ticks
from support.sample_record import sample_dict, sample_record


def rows(**changes: Any) -> dict[str, tuple[str, str, str]]:
    return {row.label: (row.dense, row.pruned, row.change) for row in compute_comparison(sample_record(**changes))}


def test_the_comparison_has_the_records_numbers() -> None:
    found = rows()
    assert found["Accuracy"] == ("93.39 %", "92.12 %", "−1.27 points")
    assert found["Latency, median"] == ("3.20 ms", "1.57 ms", "49.1 % of dense")
    assert found["Throughput"] == ("312/s", "637/s", "2.04× as fast")
    assert found["Parameters"] == ("853.0K", "412.3K", "−51.7 %")
    assert found["FLOPs (multiply-adds)"] == ("125.5M", "60.1M", "−52.1 %")
    assert found["Removable blocks"] == ("27", "23", "4 removed")


def test_multiply_adds_of_several_example_inputs_are_named_so() -> None:
    model = sample_dict()["model"]
    for shape, label in (([8, 3, 32, 32], "FLOPs (multiply-adds, batch of 8 example inputs)"), ([1, 3, 32, 32], "FLOPs (multiply-adds)")):
        assert label in rows(model=model | {"inputs": [{"shape": shape}]})


def test_throughput_counts_the_batch() -> None:
    target = sample_dict()["target"] | {"batch": 32}
    assert rows(target=target)["Throughput"][:2] == ("10.0K/s", "20.4K/s")


def test_what_is_unknown_has_no_row() -> None:
    data = sample_dict()
    bare = {name: {"parameters": data[name]["parameters"], "macs": data[name]["macs"]} for name in ("dense", "pruned")}
    found = rows(**bare, groups=[], blocks=[], blocks_removed=[])
    assert list(found) == ["Parameters", "FLOPs (multiply-adds)"]
    record = sample_record(**bare)
    assert compute_latency(record) is None
    assert compute_verdict(record).outcome == "unknown"


def test_the_ratio_is_the_interleaved_one_where_there_is_one() -> None:
    data = sample_dict()
    data["pruned"]["latency"] |= {"ratio": 0.5, "ratio_low": 0.49, "ratio_high": 0.51}
    assert rows(pruned=data["pruned"])["Latency, median"][2] == "50.0 % of dense"
    data["pruned"]["latency"] |= {"ratio": None, "ratio_low": None, "ratio_high": None, "reference": None}
    assert rows(pruned=data["pruned"])["Latency, median"][2] == "49.1 % of dense"


@pytest.mark.parametrize(
    ("budget", "outcome", "words"),
    [
        (
            {"text": "50%", "resource": "latency", "value": 50.0, "unit": "%", "limit": 1.6},
            "met",
            "49.1 % of the dense latency, 1.9 % below the 50 % asked for",
        ),
        ({"text": "1.5ms", "resource": "latency", "value": 1.5, "unit": "ms", "limit": 1.5}, "over", "1.57 ms, 4.7 % above the 1.50 ms"),
        ({"text": "flops=50%", "resource": "flops", "value": 50.0, "unit": "%", "limit": 6.0e7}, "over", "60.1M multiply-adds"),
        ({"text": "params=0.5M", "resource": "params", "value": 5e5, "unit": "count", "limit": 5e5}, "met", "17.5 % below the 500.0K"),
        ({"text": "50%", "resource": "latency", "value": 50.0, "unit": "%", "limit": None}, "unknown", "not measured"),
    ],
)
def test_the_verdict_compares_value_and_limit(budget: dict[str, Any], outcome: str, words: str) -> None:
    verdict = compute_verdict(sample_record(budget=budget))
    assert verdict.outcome == outcome and words in verdict.text


def test_a_budget_on_another_engine_counts_as_it_was_measured_there() -> None:
    other = {"text": "60%@onnxruntime", "resource": "latency", "value": 60.0, "unit": "%", "engine": "onnxruntime", "limit": 2.0}
    counted = {"text": "params=500K", "resource": "params", "value": 500000.0, "unit": "count", "limit": 500000.0}
    unknown = sample_record(further_budgets=[counted, other])
    assert unknown.verdict == "under" and set(unknown.verdicts) == {"50%", "params=500K"}
    missed = sample_record(further_budgets=[counted, other | {"share": 1.04, "uncertainty": 0.01}])
    assert missed.verdicts == {"50%": "under", "params=500K": "under", "60%@onnxruntime": "over"} and missed.verdict == "over"
    shown = compute_verdict(missed)
    assert shown.outcome == "over"
    assert shown.text.startswith("Over budget: 49.1 % of the dense latency") and "on onnxruntime 4.0 % above 60%@onnxruntime" in shown.text
    assert "below params=500K" in shown.text
    counted_over = sample_record(further_budgets=[counted | {"limit": 1000.0}])
    assert (
        counted_over.verdicts["params=500K"] == "over" == counted_over.verdict and "above params=500K" in compute_verdict(counted_over).text
    )
    first_elsewhere = sample_record(budget=other)
    assert first_elsewhere.verdict is None and not first_elsewhere.verdicts, "what runs on the target says nothing of another engine"
    close = sample_record(further_budgets=[other | {"share": 1.015, "uncertainty": 0.006}])
    assert close.verdict == "close" and compute_verdict(close).outcome == "met"
    assert type(close).from_json(close.to_json()) == close


def test_widths_count_all_rows_and_mark_removed_blocks() -> None:
    groups = [
        {"name": "attn", "dense": 8, "kept": 5, "kind": "head_dim", "rows": 4, "blocks": []},
        {"name": "inner", "dense": 16, "kept": 0, "kind": "channels", "rows": 1, "blocks": ["a", "a.b"]},
    ]
    attn, inner = compute_widths(sample_record(groups=groups, blocks=["a", "a.b"], blocks_removed=["a.b"]))
    assert (attn.dense, attn.kept, attn.removed, attn.share) == (32, 20, False, 0.625)
    assert inner.removed and inner.kept == 0


def test_the_solver_section_is_read_from_the_solution() -> None:
    solver = compute_solver(sample_record())
    assert solver is not None
    assert (solver.name, solver.status, solver.gap, solver.seconds, solver.variables) == ("exact", "optimal", 0.0, 0.21, 1)
    assert compute_solver(sample_record(solution=None)) is None


def test_the_report_labels_epochs() -> None:
    data = compute_report(sample_record())
    assert [point.label for point in data.accuracies][:3] == ["dense", "pruned", "fine-tuned, epoch 1"]
    assert data.title == "cifar_resnet, MDP, budget 50%"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (999.4, "999"), (999.6, "1.00K"), (1000, "1.00K"), (853018, "853.0K"), (999_960, "1.00M"), (4.089e9, "4.09G")],
)
def test_counts_read_well(value: float, text: str) -> None:
    assert fmt.count(value) == text


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (fmt.milliseconds(0.4123), "0.412 ms"),
        (fmt.milliseconds(7.944), "7.94 ms"),
        (fmt.milliseconds(131.4), "131 ms"),
        (fmt.interval(7.9, 8.123), "7.900 – 8.123"),
        (fmt.points(-0.00001), "±0.00 points"),
        (fmt.points(0.0123), "+1.23 points"),
        (fmt.change(0, 3), ""),
        (fmt.seconds(0.314), "0.31 s"),
        (fmt.seconds(185), "3 min 05 s"),
        (fmt.shape((1, 3, 32, 32)), "1×3×32×32"),
    ],
)
def test_numbers_read_well(shown: str, text: str) -> None:
    assert shown == text


@given(low=st.floats(0, 1e4), span=st.floats(1e-6, 1e5), count=st.integers(2, 9))
def test_ticks_are_round_evenly_spaced_and_inside(low: float, span: float, count: int) -> None:
    ticks = nice_ticks(low, low + span, count)
    assert 0 < len(ticks) <= count + 2 or span / (low + 1) < 1e-6
    assert all(low - 1e-6 * (1 + abs(low)) <= tick <= (low + span) * (1 + 1e-6) + 1e-9 for tick in ticks)
    gaps = [later - earlier for earlier, later in zip(ticks, ticks[1:], strict=False)]
    assert all(gap == pytest.approx(gaps[0], rel=1e-3, abs=1e-9) for gap in gaps)


def test_limit_and_prediction_are_drawn_at_the_speed_of_the_final_measurement() -> None:
    now = sample_record()
    assert now.dense.latency is not None and now.budget.limit is not None
    # The machine was a tenth slower during the search: half of the dense network was 1.76 ms then.
    slower = sample_record(budget={**now.budget.model_dump(), "limit": 1.76}, predicted_ms=1.1 * 1.58)
    bars = compute_latency(slower)
    assert bars is not None and bars.limit == pytest.approx(1.6) and bars.predicted == pytest.approx(1.58)
    by_the_clock = sample_record(budget={**now.budget.model_dump(), "text": "1.76ms", "unit": "ms", "value": 1.76, "limit": 1.76})
    bars = compute_latency(by_the_clock)
    assert bars is not None and bars.limit == 1.76 and bars.predicted == 1.58


def test_a_network_that_several_rounds_led_to_is_shown_once() -> None:
    measured = [1.66, 1.575, 1.61, 1.575, 1.575]
    rounds = [
        {"iteration": index, "predicted_ms": 1.58, "measured_ms": ms, "limit_ms": 1.6 - 0.01 * index} for index, ms in enumerate(measured)
    ]
    found = compute_candidates(sample_record(corrections=rounds))
    assert [(row.first, row.again, row.measured_ms, row.limit_ms) for row in found] == [
        (0, 0, 1.66, 1.6),
        (1, 2, 1.575, pytest.approx(1.59)),
        (2, 0, 1.61, pytest.approx(1.58)),
    ]
    page = html_page(sample_record(corrections=rounds))
    assert page.count('<th scope="row">1 (+2)</th>') == 1 and '<th scope="row">3</th>' not in page
    assert "(+n): n later rounds" in page and "(+n)" not in html_page(sample_record())
