"""Measured divergences are kept as they are made: what a killed run measured is not measured again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from importance.test_divergence import IMAGES, network
from latprune.graph import trace
from latprune.importance import DivergenceConfig, keeping_values, score
from latprune.importance.measured_values import FILE, MeasuredValues
from latprune.importance.reference import Reference

CONFIG = DivergenceConfig(examples=16, removed=(0.25, 0.5))


class Killed(BaseException):
    pass


def measured(monkeypatch: pytest.MonkeyPatch, *, after: int | None = None, images=IMAGES, scale: float = 1.0):
    """Scores, and how many measurements they took; ``after`` so many the process is killed."""
    model = network()
    with torch.no_grad():
        model.head.weight.mul_(scale)
    count = [0]
    distance = Reference.distance

    def counted(reference: Reference) -> float:
        if count[0] == after:
            raise Killed
        count[0] += 1
        return distance(reference)

    with monkeypatch.context() as patch:
        patch.setattr(Reference, "distance", counted)
        found = score(model, trace(model, images[0][:1]), CONFIG, images)
    return found, count[0]


def test_a_killed_measurement_goes_on_with_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, whole = measured(monkeypatch)
    with keeping_values(tmp_path):
        with pytest.raises(Killed):
            measured(monkeypatch, after=4)
        resumed, left = measured(monkeypatch)
        again, none = measured(monkeypatch)
        assert (left, none) == (whole - 4, 0)
        for found in (resumed, again):
            assert found.curves.keys() == plain.curves.keys()
            assert all(np.array_equal(values, plain.curves[key]) for key, values in found.curves.items())
        # Another network, or other inputs: none of it is taken.
        assert measured(monkeypatch, scale=2.0)[1] == whole
        assert measured(monkeypatch, images=IMAGES[1:])[1] == whole
    assert measured(monkeypatch)[1] == whole


def test_values_are_written_while_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILE
    monkeypatch.setattr("latprune.importance.measured_values._EVERY", 0.0)
    first = MeasuredValues(path, "question")
    assert first.get("a", lambda: 0.1 + 0.2) == 0.1 + 0.2 and first.get("b", lambda: float("inf")) == float("inf")
    data = json.loads(path.read_text())
    assert (data["format"], data["version"], data["values"]) == ("latprune/divergences", 1, {"a": 0.1 + 0.2, "b": None})

    def never() -> float:
        raise AssertionError("it is known")

    second = MeasuredValues(path, "question")
    assert second.get("a", never) == 0.1 + 0.2 and second.get("b", never) == float("inf")
    assert MeasuredValues(path, "another").get("a", lambda: 1.0) == 1.0
    for altered in ('{"format": "latprune/divergences"}', '{"format": "latprune/divergences", "version": 1, "values": {"a": 1.0}}'):
        path.write_text(altered)
        assert MeasuredValues(path, "question").get("a", lambda: 2.0) == 2.0
