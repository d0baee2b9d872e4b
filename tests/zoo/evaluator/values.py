"""Writes ``values.json``: average precisions that a published evaluator gives for a fixed set of boxes.

The evaluator is ``mean-average-precision`` 2024.1.5.0 (MIT licence) from the Python Package Index, with its matching in the manner of
Pascal VOC (``mpolicy="greedy"``), over all points and over the eleven recalls of VOC 2007. It counts the pixels of a box with both its
edges, so it is given right and bottom less one. In an environment that has it (it is no dependency of this project):

    python tests/zoo/evaluator/values.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CLASSES, IMAGES = 4, 24


def boxes() -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    """``(found, wanted)`` for each image: rows of left, top, right, bottom, class, score; and of left, top, right, bottom, class."""
    random = np.random.default_rng(20)
    found, wanted = [], []
    for _ in range(IMAGES):
        corners = random.integers(0, 200, (random.integers(0, 7), 2))
        objects = [[*corner, *(corner + random.integers(12, 90, 2)), random.integers(CLASSES)] for corner in corners]
        rows = []
        for left, top, right, bottom, label in objects:
            for _ in range(random.integers(0, 4)):  # near the object, sometimes as another class, sometimes twice
                place = np.array([left, top, right, bottom]) + random.integers(-9, 10, 4)
                place[2:] = np.maximum(place[2:], place[:2] + 3)
                rows.append([*place, label if random.random() < 0.85 else random.integers(CLASSES), random.random()])
        for _ in range(random.integers(0, 3)):  # where nothing is
            corner = random.integers(0, 250, 2)
            rows.append([*corner, *(corner + random.integers(5, 60, 2)), random.integers(CLASSES), 0.7 * random.random()])
        found.append([[float(v) for v in row] for row in rows])
        wanted.append([[float(v) for v in row] for row in objects])
    return found, wanted


def main() -> None:
    from mean_average_precision import MetricBuilder

    found, wanted = boxes()
    metric = MetricBuilder.build_evaluation_metric("map_2d", num_classes=CLASSES)
    for rows, objects in zip(found, wanted, strict=True):
        predicted = np.array(rows, dtype=float).reshape(-1, 6) - [0, 0, 1, 1, 0, 0]
        there = np.array(objects, dtype=float).reshape(-1, 5) - [0, 0, 1, 1, 0]
        metric.add(predicted, np.hstack((there, np.zeros((len(there), 2)))))
    values = {}
    for overlap in (0.5, 0.75):
        for name, recalls in (("area", None), ("11-point", np.linspace(0.0, 1.0, 11))):
            told = metric.value(iou_thresholds=overlap, recall_thresholds=recalls, mpolicy="greedy")
            values[f"{name} {overlap}"] = [float(told[overlap][label]["ap"]) for label in range(CLASSES)]
    source = "mean-average-precision 2024.1.5.0 (MIT), mpolicy='greedy'"
    text = json.dumps({"source": source, "found": found, "wanted": wanted, "average_precision": values})
    Path(__file__).with_name("values.json").write_text(text + "\n", encoding="utf-8")
    print(values)


if __name__ == "__main__":
    main()
