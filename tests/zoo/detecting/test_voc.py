"""Pascal VOC's layout, its batches and their augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.train import Recipe, finetune
from latprune.zoo import Normalisation, VOCFolder, read_annotation, single_shot_detector
from latprune.zoo.detecting import (
    DefaultBoxes,
    DetectionAugmentation,
    DetectionLoader,
    MultiboxLoss,
    evaluate_detector,
    map_sizes,
    match,
)
from latprune.zoo.detecting.augmentation import in_view, seen

COLOURS = {"cat": (250, 30, 30), "dog": (30, 250, 30)}
PLAIN = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def annotation(objects: list[tuple[str, tuple[int, int, int, int], bool]], size: tuple[int, int] = (60, 40)) -> str:
    parts = [
        f"<object><name>{name}</name><difficult>{int(hard)}</difficult><bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box, hard in objects
    ]
    return f"<?xml version='1.0'?><annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(parts)}</annotation>"


def write_voc(root: Path, count: int = 6, split: str = "train") -> Path:
    """Images with one rectangle of a class's colour each; the last image has none."""
    folder = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    names = []
    for index in range(count):
        image = Image.new("RGB", (60, 40), (128, 128, 128))
        kind = ("cat", "dog")[index % 2]
        left, top = (int(v) for v in random.integers(2, 18, 2))
        box = (left, top, left + int(random.integers(16, 36)), top + int(random.integers(14, 20)))
        objects = [(kind, box, index % 3 == 2)] if index < count - 1 else []
        for _, (x0, y0, x1, y1), _ in objects:
            ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=COLOURS[kind])
        names.append(f"2012_{index:06d}")
        image.save(folder / "JPEGImages" / f"{names[-1]}.jpg", quality=95)
        (folder / "Annotations" / f"{names[-1]}.xml").write_text(annotation(objects))
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def loader(root: Path, **changes: Any) -> DetectionLoader:
    options: dict[str, Any] = {"batch_size": 4, "normalisation": PLAIN, "workers": 0}
    return DetectionLoader(VOCFolder(root), (80, 120), **(options | changes))


def test_boxes_are_edges_of_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(annotation([("cat", (3, 4, 20, 30), False), ("dog", (0, 0, 60, 40), True)]))
    read = read_annotation(tmp_path / "a.xml")
    assert read.boxes.tolist() == [[3, 4, 20, 30], [0, 0, 60, 40]] and read.size == (60, 40)
    assert read.labels.tolist() == [7, 11] and read.difficult.tolist() == [False, True]


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_layout_is_found(tmp_path: Path, place: str) -> None:
    write_voc(tmp_path)
    source = VOCFolder(tmp_path / place, "train")
    assert len(source) == 6 and source.image(0).size == (60, 40) and len(source.annotations[5].labels) == 0


def test_batches_hold_images_and_their_boxes(tmp_path: Path) -> None:
    write_voc(tmp_path)
    batches = loader(tmp_path)
    (images, targets), (rest, last) = list(batches)
    assert images.shape == (4, 3, 80, 120) and targets["boxes"].shape == (4, 1, 4) and len(rest) == 2
    assert targets["labels"][:, 0].tolist() == [7, 11, 7, 11] and targets["difficult"][:, 0].tolist() == [False, False, True, False]
    assert last["labels"][:, 0].tolist() == [7, -1]
    check_colours(images, targets)


def check_colours(images: torch.Tensor, targets: dict[str, torch.Tensor]) -> None:
    """The middle of every box has the colour of its class."""
    for image, boxes, labels in zip(images, targets["boxes"], targets["labels"], strict=True):
        for box, label in zip(boxes[labels >= 0], labels[labels >= 0], strict=True):
            x, y = (box[0] + box[2]) / 2 * image.shape[2], (box[1] + box[3]) / 2 * image.shape[1]
            red, green, _ = image[:, int(y), int(x)].tolist()
            assert (red > green + 0.2) == (int(label) == 7), (red, green, int(label))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_boxes_go_with_their_objects_and_batches_with_their_index(tmp_path: Path, workers: int) -> None:
    write_voc(tmp_path, 12)
    options: dict[str, Any] = {"augmentation": DetectionAugmentation(), "shuffle": True, "workers": workers, "seed": 5}
    whole, resumed = loader(tmp_path, **options), loader(tmp_path, **options)
    for epoch in range(4):
        batches = list(whole)
        for images, targets in batches:
            check_colours(images, targets)
        resumed.set_epoch(epoch)
        for (x, y), (u, v) in zip(batches[1:], resumed.batches(1), strict=True):
            assert torch.equal(x, u) and torch.equal(y["boxes"], v["boxes"]) and torch.equal(y["labels"], v["labels"])


def test_views_keep_what_they_show() -> None:
    boxes = np.array([[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.9, 0.9]])
    random = np.random.default_rng(0)
    views = [DetectionAugmentation().view(boxes, random) for _ in range(200)]
    assert any(view[2] - view[0] > 1.5 for view in views) and any(view[2] - view[0] < 0.7 for view in views)
    for view in views:
        inside = in_view(boxes[seen(boxes, view)], view)
        assert len(inside) and (inside[:, 2:] > inside[:, :2]).all() and inside.min() >= 0 and inside.max() <= 1
    calm = DetectionAugmentation(expand=1.0, crop=False, flip=False, colours=0.0)
    assert calm.view(boxes, random) == (0.0, 0.0, 1.0, 1.0)
    for options, words in (({"expand": 0.5}, "expand"), ({"colours": 1.0}, "colours"), ({"tries": 0}, "tries")):
        with pytest.raises(InvalidArgumentError, match=words):
            DetectionAugmentation(**options)


BOMB = "<!DOCTYPE a [<!ENTITY b 'cat'>]>"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB + annotation([]).split("?>")[1], "document type or entities"),
        ("<annotation>", "is no XML"),
        ("<annotation></annotation>", "lacks a number at size/width"),
        (annotation([("lynx", (0, 0, 9, 9), False)]), "'lynx', which is none of the 20 classes"),
        (annotation([("cat", (30, 5, 20, 9), False)]), "without an area"),
        (annotation([], size=(0, 5)), "both must be at least 1"),
        (annotation([("cat", (0, 0, 9, 9), False)]).replace("<xmin>1<", "<xmin>nan<"), "nan at bndbox/xmin"),
        ("", "has 0 bytes"),
    ],
)
def test_annotations_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(FileFormatError, match=words):
        read_annotation(tmp_path / "a.xml")


def test_an_encoding_hides_no_entities(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(("<?xml version='1.0' encoding='utf-16'?>" + BOMB + "<annotation/>").encode("utf-16"))
    with pytest.raises(FileFormatError, match="cannot be read as an annotation"):
        read_annotation(tmp_path / "a.xml")


def test_layouts_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="must hold ImageSets/Main"):
        VOCFolder(tmp_path)
    folder = write_voc(tmp_path)
    for split in ("test", "../train"):
        with pytest.raises(InvalidArgumentError, match="must be a list in"):
            VOCFolder(tmp_path, split)
    listed = folder / "ImageSets" / "Main" / "train.txt"
    for text, error, words in (
        ("../../x\n", FileFormatError, "letters, digits"),
        ("\n", InvalidArgumentError, "names no image"),
        ("2012_999999\n", InvalidArgumentError, "there is no"),
    ):
        listed.write_text(text)
        with pytest.raises(error, match=words):
            VOCFolder(tmp_path)
    write_voc(tmp_path)
    with pytest.raises(InvalidArgumentError, match="one batch takes 99"):
        loader(tmp_path, batch_size=99, drop_last=True)


def test_a_small_detector_learns_to_find_rectangles(tmp_path: Path) -> None:
    write_voc(tmp_path, 12)
    torch.manual_seed(0)
    model = single_shot_detector(21, blocks=(1, 1, 1), width=8, extra=(32,))
    anchors = DefaultBoxes(maps=map_sizes(80, 120, maps=3, stride=8), scales=(0.15, 0.3, 0.6, 0.9)).boxes()
    train, test = loader(tmp_path, shuffle=True, batch_size=6), loader(tmp_path)
    before = evaluate_detector(model, test, anchors).mean
    report = finetune(model, train, Recipe(epochs=25, learning_rate=0.02, max_gradient_norm=5.0), loss=MultiboxLoss(anchors))
    after = evaluate_detector(model, test, anchors)
    assert report.epochs[-1].loss < 0.5 * report.epochs[0].loss
    assert set(after.by_class) == {7, 11} and after.mean > max(0.6, before + 0.3)


class Knowing(nn.Module):
    """Finds what there is, by the look of each image, with a norm that stays in evaluation mode."""

    def __init__(self, known: DetectionLoader, anchors: torch.Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3).eval()
        self.anchors = anchors
        self.known: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for images, targets in known:
            for image, boxes, labels in zip(images, targets["boxes"], targets["labels"], strict=True):
                self.known.append((image, boxes[labels >= 0], labels[labels >= 0]))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        classes, offsets = [], []
        for image in images:
            _, boxes, labels = min(self.known, key=lambda entry: float((entry[0] - image).abs().sum()))
            label, offset = match(boxes, labels, self.anchors)
            classes.append(10.0 * nn.functional.one_hot(label, 21).float())
            offsets.append(offset)
        return torch.stack(classes), torch.stack(offsets)


ANCHORS = DefaultBoxes(maps=map_sizes(80, 120, maps=3, stride=8), scales=(0.15, 0.3, 0.6, 0.9)).boxes()


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True}, {"workers": 2, "shuffle": True, "seed": 4}]
)
def test_a_perfect_detector_is_perfect_in_every_order(tmp_path: Path, options: dict[str, Any]) -> None:
    write_voc(tmp_path)
    model = Knowing(loader(tmp_path), ANCHORS).train()
    model.norm.eval()
    for metric in ("area", "11-point"):
        assert evaluate_detector(model, loader(tmp_path, **options), ANCHORS, metric=metric).mean == 1.0  # type: ignore[arg-type]
    assert model.training and not model.norm.training


def test_what_is_judged_is_what_a_batch_shows(tmp_path: Path) -> None:
    write_voc(tmp_path)
    model = Knowing(loader(tmp_path), ANCHORS)
    batches = list(loader(tmp_path, batch_size=1))
    assert evaluate_detector(model, batches[1:2], ANCHORS).by_class == {11: 1.0}  # a list of batches, with one of the dogs
    images, targets = batches[0]
    missed = {"boxes": torch.tensor([[[0.0, 0.0, 0.05, 0.05]]]), "labels": targets["labels"]}
    assert evaluate_detector(model, [(images, missed)], ANCHORS).by_class == {7: 0.0}
    with pytest.raises(InvalidArgumentError, match="metric"):
        evaluate_detector(model, [], ANCHORS, metric="voc")  # type: ignore[arg-type]


def test_pixels_are_those_that_boxes_were_drawn_on(tmp_path: Path) -> None:
    """An orientation says how to show an image; annotations count the pixels as they are stored."""
    folder = write_voc(tmp_path)
    path = folder / "JPEGImages" / "2012_000000.jpg"
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(path) as image:
            image.load()
        image.save(path, quality=95, exif=exif)
        assert VOCFolder(tmp_path).image(0).size == (60, 40)
        check_colours(*next(iter(loader(tmp_path))))


def test_an_image_of_another_size_than_its_annotation_is_refused(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    Image.new("RGB", (40, 60)).save(folder / "JPEGImages" / "2012_000001.jpg")
    with pytest.raises(FileFormatError, match=r"2012_000001\.jpg has 40x60 pixels, and its annotation is for 60x40"):
        list(loader(tmp_path))


def test_lists_of_images_in_other_encodings(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    listed = folder / "ImageSets" / "Main" / "train.txt"
    listed.write_bytes(b"\xef\xbb\xbf2012_000000\r\n2012_000001\r\n")
    assert VOCFolder(tmp_path).names == ["2012_000000", "2012_000001"]
    listed.write_bytes(b"2012_\xe9\n")
    with pytest.raises(FileFormatError, match="write it as UTF-8"):
        VOCFolder(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 2.0),
        ("workers", 1.5),
        ("seed", "a"),
        ("shuffle", "yes"),
        ("augmentation", True),
        ("normalisation", Normalisation(mean=(0.5,), std=(0.5,))),
    ],
)
def test_loaders_that_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    write_voc(tmp_path)
    with pytest.raises(InvalidArgumentError, match=name):
        loader(tmp_path, **{name: value})
    for size in (64, (64,), (64.0, 64), "64x64"):
        with pytest.raises(InvalidArgumentError, match="size"):
            DetectionLoader(VOCFolder(tmp_path), size)  # type: ignore[arg-type]
    for options in ({"expand": "4"}, {"tries": 1.5}, {"crop": "no"}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            DetectionAugmentation(**options)  # type: ignore[arg-type]
