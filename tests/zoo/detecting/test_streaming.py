"""Made scenes, the set loss, and precision by the distance of centres."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.zoo import Normalisation, streaming_detector
from latprune.zoo.detecting import (
    SCENE_CLASSES,
    MadeScenes,
    SetLoss,
    StreamingLoss,
    centre_distance_precision,
    decode_places,
    encode_places,
    evaluate_streaming,
)
from latprune.zoo.detecting.centre_distance import precision_over_recall

PLAIN = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def some_places(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, 9, generator=generator)
    low, high = torch.tensor([-20.0, -20, 0, 0.5, 0.5, 0.5, -3, -8, -8]), torch.tensor([20.0, 20, 2, 4, 8, 3, 3, 8, 8])
    return low + (high - low) * drawn


def test_scenes_follow_from_their_seed_and_number() -> None:
    one, again, other = MadeScenes(4, seed=1), MadeScenes(2, seed=1, first=2), MadeScenes(4, seed=2)
    (images, places), targets = next(iter(one))
    (later, _), further = next(iter(again))
    assert images.shape == (4, 3, 4, 3, 64, 96) and places.shape == (4, 4 * 2 * 3, 3) and targets["boxes"].shape == (4, 3, 6, 9)
    assert torch.equal(images[2:], later) and torch.equal(targets["boxes"][2:], further["boxes"])
    assert not torch.equal(images, next(iter(other))[0][0])
    orders = [[int((y["labels"] >= 0).sum()) for _, y in batches] for batches in (MadeScenes(6, batch_size=1, shuffle=True, seed=1),) * 2]
    assert sorted(orders[0]) == sorted(orders[1])


def test_objects_move_with_their_velocity_and_do_not_meet_at_the_start() -> None:
    for (_, _), targets in MadeScenes(8, seconds=0.5):
        boxes, labels = targets["boxes"], targets["labels"]
        for scene, kinds in zip(boxes, labels, strict=True):
            here = kinds[0] >= 0
            assert torch.allclose(scene[2, here, :2], scene[0, here, :2] + scene[0, here, 7:9], atol=1e-4)
            for a, b in itertools.combinations(scene[0, here], 2):
                assert float((a[:2] - b[:2]).norm()) > float(a[4] + b[4]) / 2 - 1e-4


def test_the_pixels_where_an_object_is_have_its_colour() -> None:
    scenes = MadeScenes(10, frames=1, size=(128, 192), stride=4, most=1, normalisation=PLAIN)
    (images, places), targets = next(scenes.batches())
    seen = 0
    for (images, places), targets in scenes.batches():
        for row in range(len(images)):
            box, label = targets["boxes"][row, 0, 0], int(targets["labels"][row, 0, 0])
            towards = torch.tensor([float(box[0]), float(box[1]), float(box[2]) - 1.6])
            token = int((places[row] @ (towards / towards.norm())).argmax())
            camera, rest = divmod(token, 32 * 48)
            line, column = divmod(rest, 48)
            pixel = images[row, 0, camera, :, 4 * line + 2, 4 * column + 2]
            kinds = torch.tensor([kind.colour for kind in SCENE_CLASSES]) / 255.0
            likeness = torch.cosine_similarity(kinds, pixel[None], dim=1)
            assert int(likeness.argmax()) == label
            seen += 1
    assert seen == 10


def test_scenes_that_cannot_be_are_refused() -> None:
    for options, words in (({"count": 0}, "count"), ({"cameras": 2}, "cameras"), ({"reach": 3.0}, "reach")):
        with pytest.raises(InvalidArgumentError, match=words):
            MadeScenes(**({"count": 1} | options))


def test_places_come_back() -> None:
    boxes = some_places(30)
    assert torch.allclose(decode_places(encode_places(boxes, 20.0), 20.0), boxes, atol=1e-4)


def test_the_assignment_is_the_cheapest_of_all() -> None:
    loss = SetLoss(20.0)
    generator = torch.Generator().manual_seed(3)
    classes, codes = torch.randn(5, 4, generator=generator), encode_places(some_places(5, 1), 20.0)
    wanted, labels = encode_places(some_places(3, 2), 20.0), torch.tensor([0, 3, 1])
    queries, objects = loss.assigned(classes, codes, wanted, labels)

    def cost(chosen: tuple[int, ...]) -> float:
        total = 0.0
        for place, query in enumerate(chosen):
            p = classes[query, labels[place]].sigmoid()
            right, wrong = 0.25 * (1 - p) ** 2 * -p.log(), 0.75 * p**2 * -(1 - p).log()
            total += float(2 * (right - wrong) + 5 * (codes[query, :8] - wanted[place, :8]).abs().mean())
        return total

    best = min(itertools.permutations(range(5), 3), key=cost)
    assert [int(queries[(objects == place).nonzero()[0, 0]]) for place in range(3)] == list(best)


def test_the_loss_falls_to_nothing_where_the_answer_is_right() -> None:
    loss = SetLoss(20.0)
    boxes, labels = some_places(3)[None], torch.tensor([[1, 2, -1]])
    codes = encode_places(boxes, 20.0)
    classes = torch.full((1, 3, 4), -12.0)
    classes[0, 0, 1] = classes[0, 1, 2] = 12.0
    assert float(loss.of(classes, codes, boxes, labels)) < 1e-6
    assert float(loss.of(classes, codes + 0.1, boxes, labels)) > 0.1
    assert float(loss.of(-classes, codes, boxes, labels)) > 1.0
    nothing = loss.of(torch.zeros(1, 3, 4), codes, boxes, torch.full((1, 3), -1))
    assert float(nothing) > 0.0 and math.isfinite(float(nothing))
    with pytest.raises(InvalidArgumentError, match="labels go to 9"):
        loss.of(classes, codes, boxes, torch.tensor([[9, -1, -1]]))


def test_average_precision_over_recall_by_hand() -> None:
    assert precision_over_recall(np.ones(4, dtype=bool), 4) == pytest.approx(1.0)
    assert precision_over_recall(np.zeros(3, dtype=bool), 4) == 0.0
    half = precision_over_recall(np.ones(2, dtype=bool), 4)  # precision 1 at recalls 0.11 to 0.5, of 90 steps
    assert half == pytest.approx(40 / 90)


def test_centres_find_their_objects() -> None:
    boxes = some_places(4)
    boxes[:, :2] = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [-10.0, 0.0]])
    wanted = [(boxes[:2], torch.tensor([0, 1])), (boxes[2:], torch.tensor([0, 1]))]

    def judged(shift: float) -> Any:
        moved = boxes.clone()
        moved[:, 0] += shift
        found = [(moved[at], torch.tensor([0.9, 0.8]), torch.tensor([0, 1])) for at in (slice(0, 2), slice(2, 4))]
        return centre_distance_precision(found, wanted)

    exact = judged(0.0)
    assert exact.mean == pytest.approx(1.0) and exact.by_class == {0: pytest.approx(1.0), 1: pytest.approx(1.0)}
    assert [exact.translation, exact.scale, exact.orientation, exact.velocity] == pytest.approx([0.0] * 4, abs=1e-6)
    near = judged(1.5)
    assert near.mean == pytest.approx(0.5) and near.translation == pytest.approx(1.5)  # within 2 and 4 metres, not 0.5 and 1
    far = judged(5.0)
    assert far.mean == 0.0 and math.isnan(far.translation)
    twice = [(boxes[[0, 0]], torch.tensor([0.9, 0.8]), torch.tensor([0, 0])), (boxes[2:], torch.tensor([0.7, 0.6]), torch.tensor([0, 1]))]
    assert centre_distance_precision(twice, wanted).by_class[0] < 1.0
    with pytest.raises(InvalidArgumentError, match="as many as wanted"):
        centre_distance_precision([], wanted)
    with pytest.raises(InvalidArgumentError, match="no object"):
        centre_distance_precision([], [])


def test_errors_of_heading_size_and_velocity() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 2, 4, 2, 3.0, 1, 0]])
    mine = torch.tensor([[0.0, 0, 1, 2, 2, 2, -3.0, 1, 2]])
    told = centre_distance_precision([(mine, torch.ones(1), torch.tensor([0]))], [(boxes, torch.tensor([0]))])
    assert told.orientation == pytest.approx(2 * math.pi - 6.0, abs=1e-6)
    assert told.scale == pytest.approx(0.5) and told.velocity == pytest.approx(2.0)


class Knowing(nn.Module):
    """Answers what it was told, frame after frame, and counts in its memory."""

    def __init__(self, targets: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.targets = targets
        self.scale = nn.Parameter(torch.ones(()))
        self.memories: list[float] = []

    def forward(self, images: torch.Tensor, places: torch.Tensor, memory: torch.Tensor) -> Any:
        frame = int(memory.flatten()[0])
        self.memories.append(float(memory.flatten()[0]))
        labels = self.targets["labels"][:, frame]
        classes = torch.full((*labels.shape, 4), -9.0).scatter(2, labels.clamp(min=0)[..., None], 9.0)
        classes = torch.where(labels[..., None] >= 0, classes, -9.0) * self.scale
        return classes, encode_places(self.targets["boxes"][:, frame], 20.0), memory + 1


def test_frames_are_taken_with_the_memory_of_the_one_before() -> None:
    scenes = MadeScenes(3, frames=3)
    (inputs, targets) = next(iter(scenes))
    model = Knowing(targets)
    loss = StreamingLoss(SetLoss(20.0), kept=2, dim=4)(model, (inputs, targets))
    assert model.memories == [0.0, 1.0, 2.0] and float(loss.detach()) < 1e-3
    found = evaluate_streaming(model, scenes, kept=2, dim=4, reach=20.0)
    assert found.mean > 0.98 and found.velocity == pytest.approx(0.0, abs=1e-4)
    assert model.training


def test_a_small_network_learns_a_scene() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"frames": 2, "size": (32, 48), "stride": 8, "most": 2}
    scenes = MadeScenes(4, **options)
    model = streaming_detector(blocks=(1, 1), width=4, dim=16, heads=2, layers=1, hidden=16, queries=6, kept=2, num_classes=4)
    loss = StreamingLoss(SetLoss(20.0), kept=2, dim=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(40):
        for batch in scenes:
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            optimizer.step()
            values.append(float(value.detach()))
    assert np.mean(values[-3:]) < 0.6 * np.mean(values[:3])


class Unsure(nn.Module):
    """Finds nothing, in a mode of its own for its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2).eval()

    def forward(self, images: torch.Tensor, places: torch.Tensor, memory: torch.Tensor) -> Any:
        assert not self.training and not self.norm.training
        return torch.zeros(len(images), 3, 4), torch.zeros(len(images), 3, 10), memory


def test_an_evaluation_leaves_each_module_its_mode() -> None:
    model = Unsure()
    scenes = MadeScenes(2, frames=1, size=(16, 24))
    evaluate_streaming(model, scenes, kept=2, dim=4, reach=20.0)
    assert model.training and not model.norm.training
    with pytest.raises(InvalidArgumentError, match="most"):
        evaluate_streaming(model, scenes, kept=2, dim=4, reach=20.0, most=-1)


def test_a_frame_without_a_place_for_objects_has_a_loss() -> None:
    """Boxes ``(n, 0, 9)`` say the same as rows of padding."""
    classes, codes = torch.zeros(2, 5, 4), torch.zeros(2, 5, 10)
    none = SetLoss(20.0).of(classes, codes, torch.zeros(2, 0, 9), torch.zeros(2, 0, dtype=torch.long))
    assert torch.equal(none, SetLoss(20.0).of(classes, codes, torch.zeros(2, 1, 9), torch.full((2, 1), -1)))


def test_the_rest_of_a_row_is_no_class() -> None:
    boxes = torch.rand(2, 9) + 1.0
    found = centre_distance_precision([(boxes[:1], torch.ones(1), torch.tensor([0]))], [(boxes, torch.tensor([0, -1]))])
    assert set(found.by_class) == {0} and found.mean == pytest.approx(1.0)


def test_scenes_that_are_refused_are_named() -> None:
    for name, value in (("count", 2.0), ("size", 16), ("frames", 1.5), ("seed", 1.5), ("batch_size", "4"), ("shuffle", "yes")):
        with pytest.raises(InvalidArgumentError, match=name):
            MadeScenes(**({"count": 2, "size": (16, 24)} | {name: value}))
    with pytest.raises(InvalidArgumentError, match="epoch"):
        MadeScenes(1, frames=1, size=(16, 24)).set_epoch(-1)
