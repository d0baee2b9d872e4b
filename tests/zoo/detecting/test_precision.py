"""Mean average precision against a published evaluator's values, and by hand."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from latprune.errors import InvalidArgumentError
from latprune.zoo.detecting import Detections, Objects, average_precision, mean_average_precision

EVALUATOR = Path(__file__).parents[1] / "evaluator"


def detections(rows: list[list[float]]) -> Detections:
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return Detections(boxes=values[:, :4], labels=values[:, 4].long(), scores=values[:, 5])


def objects(rows: list[list[float]], difficult: list[bool] | None = None) -> Objects:
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    return Objects(boxes=values[:, :4], labels=values[:, 4].long(), difficult=torch.tensor(difficult) if difficult is not None else None)


@pytest.mark.parametrize("overlap", [0.5, 0.75])
@pytest.mark.parametrize("metric", ["area", "11-point"])
def test_a_published_evaluator_has_the_same_values(metric: str, overlap: float) -> None:
    data = json.loads((EVALUATOR / "values.json").read_text(encoding="utf-8"))
    found, wanted = [detections(rows) for rows in data["found"]], [objects(rows) for rows in data["wanted"]]
    mine = mean_average_precision(found, wanted, overlap=overlap, metric=metric)
    theirs = data["average_precision"][f"{metric} {overlap}"]
    assert list(mine.by_class.values()) == pytest.approx(theirs, abs=1e-6) and mine.mean == pytest.approx(np.mean(theirs), abs=1e-6)


def test_the_fixed_boxes_are_those_of_the_script() -> None:
    spec = importlib.util.spec_from_file_location("values", EVALUATOR / "values.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = json.loads((EVALUATOR / "values.json").read_text(encoding="utf-8"))
    assert module.boxes() == (data["found"], data["wanted"])


def test_both_metrics_by_hand() -> None:
    hits = np.array([True, False, True, False])
    assert average_precision(hits, 4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert average_precision(hits, 4, "11-point") == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert average_precision(np.zeros(0, dtype=bool), 3) == 0.0


def test_a_second_detection_is_wrong_and_difficult_objects_do_not_count() -> None:
    there = [objects([[0, 0, 10, 10, 0], [50, 50, 60, 60, 0]], [False, True])]
    twice = [detections([[0, 0, 10, 10, 0, 0.9], [0, 0, 10, 9, 0, 0.8]])]
    assert mean_average_precision(twice, there).mean == 1.0  # recall is full before the second one
    first_wrong = [detections([[0, 0, 10, 10, 0, 0.7], [20, 0, 30, 10, 0, 0.8], [50, 50, 60, 60, 0, 0.95]])]
    assert mean_average_precision(first_wrong, there).mean == 0.5  # the difficult one is neither right nor wrong
    assert mean_average_precision([detections([])], there).by_class == {0: 0.0}


def test_a_class_without_objects_is_no_part_of_the_mean() -> None:
    there = [objects([[0, 0, 10, 10, 2], [0, 0, 10, 10, 5]], [False, True])]
    found = [detections([[0, 0, 10, 10, 2, 0.9], [0, 0, 10, 10, 3, 0.9]])]
    assert mean_average_precision(found, there).by_class == {2: 1.0}
    assert math.isnan(mean_average_precision([detections([])], [objects([])]).mean)


def test_pixel_boxes_are_counted_with_both_edges() -> None:
    """A box over the pixels 1 to 2 goes from 0 to 2: its overlap with that over 1 to 1 is one half, as the development kit has it."""
    there = [objects([[0, 0, 2, 1, 0]])]
    assert mean_average_precision([detections([[0, 0, 1, 1, 0, 0.9]])], there).mean == 1.0


def test_misuse_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="as many as wanted"):
        mean_average_precision([], [objects([])])
    with pytest.raises(InvalidArgumentError, match="11-point"):
        average_precision(np.ones(1, dtype=bool), 1, "voc")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="count"):
        average_precision(np.ones(1, dtype=bool), 0)


def test_the_rest_of_a_row_is_no_class() -> None:
    """Rows of a batch end in labels of -1, as :class:`DetectionLoader` gives them."""
    there = [objects([[0, 0, 10, 10, 0], [0, 0, 0, 0, -1]])]
    assert mean_average_precision([detections([[0, 0, 10, 10, 0, 0.9]])], there).by_class == {0: 1.0}


def test_arguments_are_checked_where_no_class_counts_too() -> None:
    for options, words in (({"metric": "voc"}, "metric .*area, 11-point"), ({"overlap": 0.0}, "overlap"), ({"overlap": 1.5}, "overlap")):
        with pytest.raises(InvalidArgumentError, match=words):
            mean_average_precision([detections([])], [objects([])], **options)  # type: ignore[arg-type]


def test_tensors_of_an_image_that_do_not_go_together_are_named() -> None:
    one, there = detections([[0, 0, 1, 1, 0, 0.9]]), objects([[0, 0, 1, 1, 0]])
    short = Detections(boxes=one.boxes, scores=one.scores, labels=one.labels.repeat(2))
    with pytest.raises(InvalidArgumentError, match=r"found\[1\] .*must have them of \(n, 4\)"):
        mean_average_precision([one, short], [there, there])
    with pytest.raises(InvalidArgumentError, match=r"wanted\[0\] .*must have them of"):
        mean_average_precision([one], [Objects(boxes=there.boxes, labels=there.labels.repeat(3))])
