"""Boxes, anchors, matching, loss and suppression, against plain definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.zoo import single_shot_detector
from latprune.zoo.detecting import (
    DefaultBoxes,
    MultiboxLoss,
    decode,
    detections_of,
    encode,
    map_sizes,
    match,
    overlaps,
    suppress,
    to_centres,
    to_corners,
)


def some_boxes(count: int, seed: int) -> Tensor:
    """Boxes in the unit square, left, top, right, bottom."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 0.7
    return torch.cat((low, low + 0.05 + 0.25 * torch.rand(count, 2, generator=generator)), dim=1)


@given(st.integers(0, 1000))
def test_offsets_come_back_as_boxes(seed: int) -> None:
    boxes, anchors = some_boxes(9, seed), to_centres(some_boxes(9, seed + 1))
    assert torch.allclose(decode(encode(boxes, anchors), anchors), boxes, atol=1e-5)
    assert torch.allclose(to_corners(to_centres(boxes)), boxes, atol=1e-6)


def test_overlaps_by_counted_pixels() -> None:
    random = torch.Generator().manual_seed(0)
    low = torch.randint(0, 20, (12, 2), generator=random)
    boxes = torch.cat((low, low + torch.randint(1, 15, (12, 2), generator=random)), dim=1)
    areas = torch.zeros(12, 40, 40, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(areas, boxes, strict=True):
        mask[top:bottom, left:right] = True
    found = overlaps(boxes.float(), boxes.float())
    for a in range(12):
        for b in range(12):
            assert float(found[a, b]) == pytest.approx(int((areas[a] & areas[b]).sum()) / int((areas[a] | areas[b]).sum()), abs=1e-6)
    assert float(overlaps(torch.zeros(1, 4), torch.zeros(1, 4))) == 0.0


@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.45, 0.7]))
def test_what_stays_is_what_the_definition_says(seed: int, overlap: float) -> None:
    boxes = some_boxes(30, seed)
    generator = torch.Generator().manual_seed(seed)
    scores, labels = torch.rand(30, generator=generator), torch.randint(0, 3, (30,), generator=generator)
    kept = suppress(boxes, scores, labels, overlap=overlap).tolist()
    shared = overlaps(boxes, boxes)
    expected: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if all(labels[index] != labels[other] or shared[index, other] <= overlap for other in expected):
            expected.append(index)
    assert kept == expected
    assert suppress(boxes, scores, labels, overlap=overlap, most=4).tolist() == expected[:4]


def test_suppression_of_nothing_and_of_wrong_shapes() -> None:
    assert suppress(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0)).tolist() == []
    with pytest.raises(InvalidArgumentError, match=r"must be \(n, 4\)"):
        suppress(torch.zeros(2, 4), torch.zeros(3), torch.zeros(2))


def test_anchors_are_those_of_the_paper_and_of_the_network() -> None:
    boxes = DefaultBoxes(maps=map_sizes(512, 512))
    anchors = boxes.boxes()
    assert boxes.per_place == 6 and len(anchors) == 6 * (32**2 + 16**2 + 8**2 + 4**2 + 2**2 + 1)
    assert anchors[0, :2].tolist() == [0.5 / 32, 0.5 / 32] and anchors[6, :2].tolist() == [1.5 / 32, 0.5 / 32]
    assert anchors[:6, 2].tolist() == pytest.approx([0.07 * math.sqrt(r) for r in (1, 2, 0.5, 3, 1 / 3)] + [math.sqrt(0.07 * 0.15)])
    assert torch.allclose(anchors[:5, 2] * anchors[:5, 3], torch.tensor(0.07**2))
    assert anchors[-1, 2] == pytest.approx(math.sqrt(0.9 * 1.0875))
    for height, width in ((96, 128), (130, 70)):
        detector = single_shot_detector(3, blocks=(1, 1, 1, 1), width=4, extra=(8, 8)).eval()
        classes, offsets = detector(torch.randn(1, 3, height, width))
        count = len(DefaultBoxes(maps=map_sizes(height, width, maps=4)).boxes())
        assert classes.shape == (1, count, 3) and offsets.shape == (1, count, 4)
    for options, words in (
        ({"maps": ()}, "maps"),
        ({"maps": ((1, 1),), "scales": (0.5,)}, "scales"),
        ({"maps": ((1, 1),), "ratios": ()}, "rat"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            DefaultBoxes(**options)


ANCHORS = DefaultBoxes(maps=((4, 4), (2, 2)), scales=(0.2, 0.5, 0.8)).boxes()


@given(st.integers(0, 1000), st.integers(1, 6))
def test_every_object_has_an_anchor_and_anchors_their_best_object(seed: int, count: int) -> None:
    boxes = torch.cat((some_boxes(count, seed), torch.zeros(2, 4)))
    labels = torch.cat((torch.arange(count), torch.tensor([-1, -1])))
    classes, offsets = match(boxes, labels, ANCHORS)
    assert set(range(1, count + 1)) <= set(classes.tolist())
    shared = overlaps(boxes[:count], to_corners(ANCHORS))
    learned = decode(offsets, ANCHORS)
    for anchor in classes.nonzero()[:, 0].tolist():
        mine = int(classes[anchor]) - 1
        assert torch.allclose(learned[anchor], boxes[mine], atol=1e-4)
        assert shared[mine, anchor] >= 0.5 or int((classes == mine + 1).sum()) >= 1
    free = (classes == 0) & (shared.amax(dim=0) >= 0.5)
    assert not free.any()


def test_an_image_without_objects_is_background() -> None:
    classes, offsets = match(torch.zeros(3, 4), torch.full((3,), -1), ANCHORS)
    assert not classes.any() and not offsets.any()


class Given(nn.Module):
    """A detector whose results are parameters."""

    def __init__(self, images: int, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.classes = nn.Parameter(torch.randn(images, len(ANCHORS), classes, generator=generator))
        self.offsets = nn.Parameter(torch.randn(images, len(ANCHORS), 4, generator=generator))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.classes, self.offsets


def batch(images: int = 2) -> Any:
    boxes, labels = torch.zeros(images, 3, 4), torch.full((images, 3), -1)
    boxes[0, :2], labels[0, :2] = some_boxes(2, 5), torch.tensor([2, 0])
    if images > 1:
        boxes[1, :1], labels[1, :1] = some_boxes(1, 6), torch.tensor([1])
    return torch.zeros(images, 3, 8, 8), {"boxes": boxes, "labels": labels}


def test_the_loss_is_the_sum_that_its_formula_says() -> None:
    model, data = Given(2), batch()
    expected, matched = 0.0, 0
    for row in range(2):
        classes, offsets = match(data[1]["boxes"][row], data[1]["labels"][row], ANCHORS)
        entropy = F.cross_entropy(model.classes[row], classes, reduction="none")
        found = classes > 0
        hard = entropy[~found].sort(descending=True).values[: 3 * int(found.sum())]
        matched += int(found.sum())
        shifts = F.smooth_l1_loss(model.offsets[row][found], offsets[found], reduction="sum")
        expected += float((entropy[found].sum() + hard.sum() + shifts).detach())
    assert float(MultiboxLoss(ANCHORS)(model, data).detach()) == pytest.approx(expected / matched, rel=1e-5)


def test_training_on_the_loss_finds_the_objects() -> None:
    model, data, loss = Given(2), batch(), MultiboxLoss(ANCHORS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(model, data).backward()
        optimizer.step()
    found = detections_of(*(t.detach() for t in model(data[0])), ANCHORS, least=0.5)
    for row, one in enumerate(found):
        labels = data[1]["labels"][row]
        assert sorted(one.labels.tolist()) == sorted(labels[labels >= 0].tolist())
        for box, label in zip(one.boxes, one.labels, strict=True):
            wanted = data[1]["boxes"][row][labels == label]
            assert float(overlaps(box[None], wanted).max()) > 0.9


def test_no_object_at_all_gives_no_loss_and_a_gradient() -> None:
    model = Given(1)
    value = MultiboxLoss(ANCHORS)(model, (None, {"boxes": torch.zeros(1, 1, 4), "labels": torch.tensor([[-1]])}))
    value.backward()
    assert float(value.detach()) == 0.0 and not model.classes.grad.any()


def test_detectors_and_data_that_do_not_fit_are_told() -> None:
    loss = MultiboxLoss(ANCHORS)
    with pytest.raises(InvalidArgumentError, match="make both for one image size"):
        loss.of(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), torch.zeros(1, 1, 4), torch.tensor([[0]]))
    with pytest.raises(InvalidArgumentError, match="labels go to 7"):
        loss.of(torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, len(ANCHORS), 4), torch.zeros(1, 1, 4), torch.tensor([[7]]))
    with pytest.raises(InvalidArgumentError, match="overlap"):
        MultiboxLoss(ANCHORS, overlap=1.0)


def test_no_box_stays_where_none_may() -> None:
    boxes, scores, labels = some_boxes(3, 0), torch.rand(3), torch.zeros(3)
    assert suppress(boxes, scores, labels, most=0).tolist() == []
    for options, words in (({"most": -1}, "most"), ({"most": 1.5}, "most"), ({"overlap": 2.0}, "overlap")):
        with pytest.raises(InvalidArgumentError, match=words):
            suppress(boxes, scores, labels, **options)


def test_a_batch_without_a_place_for_objects_is_background() -> None:
    """Boxes ``(n, 0, 4)`` say the same as rows of padding."""
    model, loss = Given(2), MultiboxLoss(ANCHORS)
    images = torch.zeros(2, 3, 8, 8)
    none = loss(model, (images, {"boxes": torch.zeros(2, 0, 4), "labels": torch.zeros(2, 0, dtype=torch.long)}))
    padded = loss(model, (images, {"boxes": torch.zeros(2, 1, 4), "labels": torch.full((2, 1), -1)}))
    none.backward()
    assert torch.equal(none, padded) and float(none.detach()) == 0.0 and model.classes.grad is not None


def test_anchors_of_another_size_are_told_when_boxes_are_made() -> None:
    with pytest.raises(InvalidArgumentError, match="gives 5 boxes an image, and there are"):
        detections_of(torch.zeros(1, 5, 3), torch.zeros(1, 5, 4), ANCHORS)
    with pytest.raises(InvalidArgumentError, match="candidates"):
        detections_of(torch.zeros(1, len(ANCHORS), 3), torch.zeros(1, len(ANCHORS), 4), ANCHORS, candidates=0)


@pytest.mark.parametrize("options", [{"overlap": "0.5"}, {"negatives": float("inf")}, {"weight": -1.0}])
def test_weights_of_the_loss_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        MultiboxLoss(ANCHORS, **options)
