"""What a report says of the recovery, of each step's accuracy, and of what to do next."""

from __future__ import annotations

from typing import Any

import pytest

from latprune.export.record import ResultRecord
from latprune.report.data import compute_advice, compute_comparison, compute_recovery
from latprune.report.html import html_page
from latprune.report.terminal import summary_text
from support.sample_record import sample_dict, sample_record

_LAYERS = [
    {"layer": "conv1", "action": "refit", "at": "layer", "held_out_before": 0.5, "held_out_after": 0.02},
    {"layer": "block.conv2", "action": "refit", "at": "join", "held_out_before": 0.8, "held_out_after": 0.1},
    {"layer": "attn.q", "action": "refit", "at": "layer", "fitted_before": 0.4, "fitted_after": 0.1, "note": "add stands between"},
    {"layer": "attn.k", "action": "refit", "at": "logits", "held_out_before": 0.25, "held_out_after": 0.03},
    {"layer": "norm", "reason": "nothing is fitted here"},
    {"layer": "last", "at": "layer", "held_out_before": 0.1, "held_out_after": 0.2, "reason": "the error would grow"},
    {"layer": "place", "reason": "nothing is fitted here"},
]
_RECOVERY = {
    "strategy": "refit",
    "images": 900,
    "held_out": 100,
    "seconds": 12.0,
    "output_before": 1.5,
    "output_after": 0.2,
    "layers": _LAYERS,
}

_UNKNOWN = sample_dict()["dense"] | {"accuracy": None}
_NOT_TESTED: dict[str, Any] = {"dense": _UNKNOWN, "accuracies": []}


def _left(before: float | None, after: float | None, **changes: Any) -> dict[str, Any]:
    """A recovery with this error of the outputs before and after it."""
    return _RECOVERY | {"output_before": before, "output_after": after} | changes


def _record(cut: float, recovered: float | None, tuned: float | None = None, **changes: Any) -> ResultRecord:
    steps = [("dense", 0.93), ("pruned", cut), ("recovered", recovered), ("fine-tuned", tuned)]
    known = [{"stage": stage, "accuracy": value, "epoch": None} for stage, value in steps if value is not None]
    pruned = sample_dict()["pruned"] | {"accuracy": known[-1]["accuracy"]}
    trained = [{"name": "fine-tune", "seconds": 3.0}] if tuned is not None else []
    recovery = _RECOVERY if recovered is not None else None
    values = {"accuracies": known, "dense": sample_dict()["dense"] | {"accuracy": 0.93}, "pruned": pruned, "stages": trained}
    return sample_record(**(values | {"recovery": recovery} | changes))


def test_cut_recovered_and_fine_tuned_are_three_numbers() -> None:
    record = _record(0.11, 0.85, 0.92)
    rows = {row.label: (row.pruned, row.change) for row in compute_comparison(record)}
    assert rows["· after the cut"] == ("11.00 %", "−82.00 points")
    assert rows["· recovered without training"] == ("85.00 %", "−8.00 points")
    assert rows["· fine-tuned"] == ("92.00 %", "−1.00 points")
    for text in (html_page(record), summary_text(record)):
        assert all(value in text.replace("\u00a0", " ") for value in ("11.00 %", "85.00 %", "92.00 %", "recovered without training"))


def test_of_several_stages_the_last_counts() -> None:
    points = [("dense", 0.93), ("pruned 1", 0.5), ("recovered 1", 0.9), ("pruned 2", 0.2), ("recovered 2", 0.8)]
    record = _record(0.2, 0.8, accuracies=[{"stage": s, "accuracy": a, "epoch": None} for s, a in points])
    rows = {row.label: row.pruned for row in compute_comparison(record)}
    assert rows["· after the cut"] == "20.00 %" and rows["· recovered without training"] == "80.00 %"


@pytest.mark.parametrize(
    ("record", "words", "warns"),
    [
        (_record(0.0, None), "recover without training", True),
        (_record(0.11, 0.85), "with the same images (--recover distil", True),
        (_record(0.11, 0.85), "fine-tune on labels", True),
        (_record(0.11, 0.6, 0.85), "train longer, to the dense network's outputs too (--recipe match-dense)", True),
        (_record(0.11, 0.92), "", False),
        (_record(0.11, 0.92, 0.925), "", False),
        (_record(0.11, 0.925, 0.92), "lowered the accuracy from the 92.5 % that recovery had", False),
        (_record(0.11, 0.85, 0.6), "lowered the accuracy from the 85.0 % that recovery had", True),
        (_record(0.1, None, dense=_UNKNOWN, accuracies=[]), "nothing was done", True),
        (_record(0.1, 0.5, dense=_UNKNOWN, accuracies=[]), "not known: give test data", False),
        (_record(0.1, 0.5, recovery=_left(1.24, 1.0), **_NOT_TESTED), "than a constant is (relative error 1): go on with", True),
        (_record(0.1, 0.5, recovery=_left(3.0, 0.7), **_NOT_TESTED), "far from the dense network's (relative error 0.7): go on", True),
        (
            _record(0.1, 0.5, recovery=_left(6.97, 6.97, strategy="norms", layers=[]), **_NOT_TESTED),
            "norms) changed nothing: recover by refit",
            True,
        ),
        (_record(0.1, 0.5, recovery=_left(0.2, 0.2, layers=[]), **_NOT_TESTED), "refit) changed nothing: go on", True),
        (_record(0.1, 0.5, recovery=_left(0.0, 0.0, layers=[]), **_NOT_TESTED), "not known: give test data", False),
        (_record(0.1, 0.5, recovery=_left(None, None), **_NOT_TESTED), "not known: give test data", False),
        (_record(0.1, 0.7, recovery=_left(None, None, strategy="fold", images=0)), "recover with images (--recover refit", True),
        (_record(0.1, 0.7, recovery=_left(2.0, 0.9, strategy="fold")), "recover by refit", True),
    ],
)
def test_no_unusable_network_has_a_green_tick(record: ResultRecord, words: str, warns: bool) -> None:
    advice = compute_advice(record)
    page, text = html_page(record), " ".join(summary_text(record, width=200).split())
    if not words:
        assert advice is None and "✓ Budget met" in page and "✓ Budget met" in text and "next:" not in text
        return
    assert advice is not None and words in advice.text and advice.warns == warns
    assert f"next: {advice.text}" in text and 'class="next' in page
    assert ("✓ Budget met" in text) != warns and ("! Budget met" in text) == warns
    assert ('class="verdict met"' in page) != warns and ('class="verdict warns"' in page) == warns


def test_a_network_over_its_budget_stays_over_it() -> None:
    pruned = sample_dict()["pruned"]
    pruned["latency"] = pruned["latency"] | {"ms": 2.0, "low": 1.99, "high": 2.01, "ratio": 0.6, "ratio_low": 0.59, "ratio_high": 0.61}
    record = _record(0.0, None, pruned=pruned | {"accuracy": 0.0})
    assert 'class="verdict over"' in html_page(record) and "✗ Over budget" in summary_text(record)


def test_every_layer_of_the_recovery_is_on_the_page_and_those_left_alone_in_the_terminal() -> None:
    record = _record(0.11, 0.85)
    found = compute_recovery(record)
    assert found is not None
    layers = {layer.name: layer for layer in found.layers}
    assert layers["block.conv2"].at == "the sum" and layers["attn.k"].at == "the logits"
    assert (layers["attn.q"].before, layers["attn.q"].after) == (0.4, 0.1)  # nothing was held out: the fitted images' error
    assert layers["norm"].at == "" and layers["norm"].before is None
    assert found.left == {"nothing is fitted here": ("norm", "place"), "the error would grow": ("last",)}
    page, text = html_page(record), summary_text(record, width=200)
    for layer in _LAYERS:
        assert f'<th scope="row">{layer["layer"]}</th>' in page
    assert "add stands between" in page
    assert "left alone: norm, place: nothing is fitted here" in text and "left alone: last: the error would grow" in text
    assert "attn.q: add stands between" in text
