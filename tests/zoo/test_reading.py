"""Data in the layouts that people keep it in."""

from __future__ import annotations

import io
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latprune.errors import FileFormatError, InvalidArgumentError, MissingExtraError
from latprune.zoo import (
    CIFAR10_NORMALISATION,
    IMAGENET_NORMALISATION,
    DatasetImages,
    LabelledFolder,
    Normalisation,
    RandomResizedCrop,
    StreamedImages,
    cifar10,
    cifar10_test,
    cifar10_train,
    huggingface_test,
    huggingface_train,
    image_folders_test,
    image_folders_train,
    load_arrays,
    load_cifar10_binary,
    npz_test,
    npz_train,
)

PLAIN = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def write_images(root: Path, counts: dict[str, int], size: tuple[int, int] = (20, 16)) -> None:
    """Images of one colour each: red says the class, green the image."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, (10 * number + 5, index, 7)).save(root / name / f"{index}.png")


def colours(batches: Any) -> list[tuple[int, int]]:
    """(red, green) of each image in order, from one pixel in the middle."""
    found = []
    for images, _ in batches:
        middle = (images[:, :2, images.shape[2] // 2, images.shape[3] // 2] * 255).round().int()
        found += [(int(a), int(b)) for a, b in middle]
    return found


def test_a_folder_is_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, {"zebra": 3, "ape": 2})
    (tmp_path / ".hidden").mkdir()
    source = LabelledFolder(tmp_path)
    assert source.classes == ("ape", "zebra") and source.labels.tolist() == [0, 0, 1, 1, 1]
    batches = StreamedImages(source, (3, 8, 8), batch_size=2, normalisation=PLAIN, workers=2)
    assert len(batches) == 3 and [tuple(x.shape) for x, _ in batches] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    assert colours(batches) == [(15, 0), (15, 1), (5, 0), (5, 1), (5, 2)]
    assert torch.cat([y for _, y in batches]).tolist() == [0, 0, 1, 1, 1]
    assert "5 images of 2 classes" in str(batches) and "(value / 255 - mean) / std" in str(batches)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_batch_follows_from_seed_epoch_and_index_alone(tmp_path: Path, workers: int) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(5):
            pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")

    def loader(**changes: Any) -> StreamedImages:
        options: dict[str, Any] = {"batch_size": 4, "shuffle": True, "augmentation": RandomResizedCrop(), "workers": workers, "seed": 3}
        return StreamedImages(LabelledFolder(tmp_path), (3, 8, 8), **(options | changes))

    expected = loader(workers=2)
    expected.set_epoch(1)
    whole = list(expected)
    resumed = loader()
    resumed.set_epoch(1)
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(whole[1:], resumed.batches(1), strict=True))
    assert resumed.epoch == 2 and not torch.equal(next(iter(resumed))[0], whole[0][0])
    assert sorted(torch.cat([y for _, y in whole]).tolist()) == [0] * 5 + [1] * 5
    assert len(loader(drop_last=True)) == 2


def test_reading_is_bounded_and_threads_end(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 40})
    read: list[int] = []

    class Counting(LabelledFolder):
        def image(self, index: int, **options: Any) -> Any:
            read.append(index)
            return super().image(index, **options)

    iterator = iter(StreamedImages(Counting(tmp_path), (3, 4, 4), batch_size=2, workers=2))
    next(iterator)
    assert len(read) <= 2 * 3 + 2
    iterator.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_random_parts_lie_in_the_image_and_have_the_area_that_was_drawn() -> None:
    crop = RandomResizedCrop(least=0.2)
    draws = crop.draws(np.random.default_rng(0), 400)
    areas = []
    for numbers in draws:
        left, top, right, bottom = crop.part(300, 200, numbers)
        assert 0 <= left < right <= 1 + 1e-9 and 0 <= top < bottom <= 1 + 1e-9
        areas.append((right - left) * (bottom - top))
        assert 3 / 4 - 1e-6 <= 300 * (right - left) / (200 * (bottom - top)) <= 4 / 3 + 1e-6
    assert min(areas) >= 0.2 - 1e-9 and 0.4 < np.mean(areas) < 0.65
    assert RandomResizedCrop(least=1.0).part(400, 100, draws[0]) == pytest.approx((1 / 3, 0, 2 / 3, 1))
    for options, words in (({"least": 0.0}, "least"), ({"ratio": 0.5}, "ratio")):
        with pytest.raises(InvalidArgumentError, match=words):
            RandomResizedCrop(**options)


def test_folders_of_training_and_held_out_images_share_their_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 3, "b": 2, "c": 2})
    write_images(tmp_path / "val", {"b": 1, "c": 1})
    keywords: dict[str, Any] = {"root": str(tmp_path), "shape": [3, 8, 8], "batch_size": 2, "workers": 0}
    train, test = image_folders_train(**keywords), image_folders_test(**keywords)
    assert train.normalisation == IMAGENET_NORMALISATION and train.augmentation is not None and test.augmentation is None
    assert torch.cat([y for _, y in test]).tolist() == [1, 2] and len(train) == 3
    (tmp_path / "val" / "new").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "val" / "new" / "x.png")
    with pytest.raises(InvalidArgumentError, match="class 'new', which is none of the 3 given"):
        image_folders_test(**keywords)
    with pytest.raises(InvalidArgumentError, match="must hold the folders train and val"):
        image_folders_train(str(tmp_path / "val"))


def test_grey_images_and_constants_of_ones_own(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 2})
    write_images(tmp_path / "test", {"a": 2})
    batches = image_folders_test(str(tmp_path), shape=[1, 8, 8], mean=[0.5], std=[0.5], workers=0)
    assert next(iter(batches))[0].shape == (2, 1, 8, 8) and batches.normalisation.mean == (0.5,)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="there is none"):
        LabelledFolder(tmp_path / "nothing")
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(InvalidArgumentError, match="holds 1 images without a class"):
        LabelledFolder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    for workers in (0, 2):
        with pytest.raises(FileFormatError, match=r"broken\.jpg cannot be read as an image"):
            next(iter(StreamedImages(LabelledFolder(tmp_path), workers=workers)))
    for options, words in (
        ({"batch_size": 0}, "batch_size"),
        ({"crop": 0.0}, "crop"),
        ({"workers": -1}, "workers"),
        ({"shape": (2, 8, 8)}, "shape"),
        ({"shape": (1, 8, 8), "normalisation": PLAIN}, "normalisation"),
        ({"drop_last": True}, "1 images; one batch takes 64"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            StreamedImages(LabelledFolder(tmp_path), **options)


def write_binary(folder: Path, per_file: int = 3) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6 * per_file, 3, 32, 32), dtype=np.uint8)
    labels = random.integers(0, 10, 6 * per_file).astype(np.uint8)
    for number, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        part = slice(number * per_file, (number + 1) * per_file)
        (folder / name).write_bytes(b"".join(bytes([a]) + b.tobytes() for a, b in zip(labels[part], images[part], strict=True)))
    return images.transpose(0, 2, 3, 1), labels.astype(np.int64)


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_the_official_binary_version_of_cifar10(tmp_path: Path, inside: str) -> None:
    images, labels = write_binary(tmp_path / inside)
    (x, y), (u, v) = cifar10(tmp_path)
    assert np.array_equal(np.concatenate([x, u]), images) and np.array_equal(np.concatenate([y, v]), labels)
    assert (len(x), len(u)) == (15, 3) and x.dtype == np.uint8 and y.dtype == np.int64
    given: dict[str, Any] = {"root": str(tmp_path), "batch_size": 5, "normalisation": "cifar10", "augment": False, "seed": 1}
    train, test = cifar10_train(**given), cifar10_test(**given)
    assert len(train) == 3 and train.augmentation is None and train.normalisation == test.normalisation == CIFAR10_NORMALISATION
    with pytest.raises(InvalidArgumentError, match="must be imagenet or cifar10"):
        cifar10_test(str(tmp_path), normalisation="mine")


def test_binary_files_that_are_refused(tmp_path: Path) -> None:
    write_binary(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(b"\x00" * 3074)
    with pytest.raises(FileFormatError, match="3074 bytes, which is no whole number of records"):
        load_cifar10_binary(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(b"\x0b" + b"\x00" * 3072)
    with pytest.raises(FileFormatError, match="label 11 in record 0"):
        load_cifar10_binary(tmp_path)
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(InvalidArgumentError, match=r"lacks data_batch_2\.bin"):
        cifar10(tmp_path)


def test_the_pickled_version_is_never_opened(tmp_path: Path) -> None:
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()

    class Runs:
        def __reduce__(self) -> Any:
            return (place.joinpath("ran").touch, ())

    (place / "data_batch_1").write_bytes(pickle.dumps(Runs()))
    for load in (cifar10, load_cifar10_binary):
        with pytest.raises(InvalidArgumentError, match=r"pickled .*cifar-10-binary\.tar\.gz"):
            load(tmp_path)
    assert not (place / "ran").exists()


def test_arrays_of_every_layout(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for shape, found in (((6, 8, 8), (6, 8, 8, 1)), ((6, 8, 8, 3), (6, 8, 8, 3)), ((6, 3, 8, 8), (6, 8, 8, 3))):
        images = random.integers(0, 256, shape, dtype=np.uint8)
        np.savez(tmp_path / "a.npz", x=images, y=np.arange(6)[:, None])
        pixels, labels = load_arrays(tmp_path / "a.npz", images="x", labels="y")
        assert pixels.shape == found and labels.tolist() == list(range(6))
        wanted = images[..., None] if images.ndim == 3 else images if shape[3] == 3 else images.transpose(0, 2, 3, 1)
        assert np.array_equal(pixels, wanted)


@pytest.mark.parametrize("one_file", [True, False])
def test_arrays_for_training_and_testing(tmp_path: Path, one_file: bool) -> None:
    x, y = np.zeros((6, 8, 8, 3), np.uint8), np.arange(6)
    if one_file:
        np.savez(tmp_path / "all.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    else:
        np.savez(tmp_path / "train.npz", x=x, y=y)
        np.savez(tmp_path / "val.npz", x=x[:2], y=y[:2])
    root = str(tmp_path / "all.npz") if one_file else str(tmp_path)
    keywords: dict[str, Any] = {"root": root, "images": "x", "labels": "y", "batch_size": 2, "flip": False}
    train, test = npz_train(**keywords), npz_test(**keywords)
    assert len(train) == 3 and len(test) == 1 and train.augmentation is not None and not train.augmentation.flip
    assert test.augmentation is None and "6 images 8x8 with 3 channels" in str(train)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "has no array 'labels'; it holds images"),
        ({"images": np.zeros((2, 4, 4, 3)), "labels": np.arange(2)}, "float64"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8), "labels": np.arange(2)}, "1 or 3 channels"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.arange(3)}, "one for each of 2 images"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([-1, 0])}, "at least 0"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([2**63, 0], np.uint64)}, str(2**63)),
        ({"images": np.array([{}, {}]), "labels": np.arange(2)}, "without pickled objects"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FileFormatError, match=words):
        load_arrays(tmp_path / "a.npz")


def test_files_of_arrays_that_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npz.npy", np.zeros(2))
    (tmp_path / "a.npz.npy").rename(tmp_path / "a.npz")
    with pytest.raises(FileFormatError, match="holds one array"):
        load_arrays(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_arrays(tmp_path / "a.npz")
    with pytest.raises(InvalidArgumentError, match="there is none"):
        load_arrays(tmp_path / "b.npz")
    with pytest.raises(InvalidArgumentError, match=r"there is no train\.npz"):
        npz_train(str(tmp_path))


def test_fewer_images_than_a_batch_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=np.zeros((6, 8, 8), np.uint8), labels=np.arange(6))
    with pytest.raises(InvalidArgumentError, match=r"images \(=6\) must be at least batch_size \(=128\)"):
        npz_train(str(tmp_path))


def test_a_data_set_without_rows_is_told_as_that() -> None:
    with pytest.raises(InvalidArgumentError, match="dataset holds no row"):
        DatasetImages(Rows(image=[], label=[]))


class Rows:
    """What is asked of a ``datasets.Dataset``: its length, columns, and rows or columns by index."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns = columns
        self.column_names = list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        return self.columns[key] if isinstance(key, str) else {name: values[key] for name, values in self.columns.items()}


def encoded(colour: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def test_columns_of_images_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded((3, 3, 3)))
    images: list[Any] = [
        Image.new("RGB", (8, 8), (1, 1, 1)),
        {"bytes": encoded((2, 2, 2)), "path": None},
        {"bytes": None, "path": str(tmp_path / "x.png")},
        encoded((4, 4, 4)),
        np.full((8, 8, 3), 5, np.uint8),
        np.full((8, 8), 6, np.uint8).tolist(),
    ]
    source = DatasetImages(Rows(picture=images, kind=[0, 1, 2, 0, 1, 2]), image="picture", label="kind")
    batches = StreamedImages(source, (3, 8, 8), batch_size=6, normalisation=PLAIN, workers=2)
    assert [red for red, _ in colours(batches)] == [1, 2, 3, 4, 5, 6] and source.classes == ("0", "1", "2")
    bad = DatasetImages(Rows(image=[[0.5, "x"]], label=[0]))
    with pytest.raises(FileFormatError, match="row 0 of the data set"):
        bad.image(0, mode="RGB")


def test_data_sets_that_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="must be a column of the data set: image, label"):
        DatasetImages(Rows(image=[], label=[]), image="img")
    with pytest.raises(InvalidArgumentError, match="label .* holds 'cat'"):
        DatasetImages(Rows(image=[b""], label=["cat"]))
    with pytest.raises(InvalidArgumentError, match="holds -1"):
        DatasetImages(Rows(image=[b""], label=[-1]))
    with pytest.raises(InvalidArgumentError, match="splits train, test"):
        DatasetImages({"train": 0, "test": 1})
    with pytest.raises(InvalidArgumentError, match="without streaming"):
        DatasetImages(iter([]))
    with pytest.raises(InvalidArgumentError, match="goes to 3"):
        DatasetImages(Rows(image=[b""], label=[3]), classes=["a"])


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="datasets"):
        huggingface_train(str(tmp_path))


@pytest.mark.filterwarnings("ignore")
def test_a_saved_hugging_face_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})

    def rows(count: int) -> Any:
        images = [Image.new("RGB", (12, 8), (k, 0, 0)) for k in range(count)]
        return datasets.Dataset.from_dict({"image": images, "label": [k % 2 for k in range(count)]}, features=features)

    datasets.DatasetDict({"train": rows(6), "test": rows(2)}).save_to_disk(str(tmp_path))
    keywords: dict[str, Any] = {"path": str(tmp_path), "shape": [3, 8, 8], "batch_size": 2, "workers": 2, "mean": [0] * 3, "std": [1] * 3}
    train, test = huggingface_train(**keywords), huggingface_test(**keywords)
    assert train.source.classes == ("cat", "dog") and len(train) == 3 and colours(test) == [(0, 0), (1, 0)]
    assert sorted(colours(train)) == [(k, 0) for k in range(6)]
    with pytest.raises(InvalidArgumentError, match="must be a column"):
        huggingface_train(str(tmp_path), image="img")


def given(root: Path, **changes: Any) -> dict[str, Any]:
    return {"root": str(root), "shape": [3, 8, 8], "batch_size": 2, "workers": 0} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": [3, 8]}, r"shape \(=\[3, 8\]\) must be \(channels, height, width\)"),
        ({"shape": "3x8x8"}, r"shape \(='3x8x8'\) .*on the command line write shape=\[3,224,224\]"),
        ({"shape": 8}, "shape"),
        ({"shape": [3, 8.5, 8]}, r"shape\[1\] \(=8\.5\) must be a whole number"),
        ({"shape": [2, 8, 8]}, "1 or 3 channels"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"workers": 1.5}, "workers"),
        ({"seed": "a"}, "seed"),
        ({"crop": "all"}, "crop"),
        ({"augment": "no"}, "augment .*on the command line write true or false"),
        ({"mean": [0.5, 0.5]}, "mean .* must be one number, or one for each of 3 channels"),
        ({"mean": "0.5,0.5,0.5"}, r"mean .*on the command line write mean=\[0\.5,0\.5,0\.5\]"),
        ({"mean": float("nan")}, "mean"),
        ({"std": ["a"] * 3}, "std"),
        ({"std": 0}, "std .*above 0"),
    ],
)
def test_arguments_of_loaders_that_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_images(tmp_path / "train", {"a": 3})
    write_images(tmp_path / "val", {"a": 1})
    for loads in (image_folders_train, image_folders_test):
        with pytest.raises(InvalidArgumentError, match=words):
            loads(**given(tmp_path, **changes))


def test_one_number_is_that_of_all_channels(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 3})
    write_images(tmp_path / "val", {"a": 1})
    loader = image_folders_train(**given(tmp_path, mean=0.5, std=[0.25]))
    assert loader.normalisation == Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3)
    write_binary(tmp_path)
    for loads in (cifar10_train, cifar10_test):
        mine = loads(str(tmp_path), batch_size=2, mean=[0.5, 0.4, 0.3], normalisation="cifar10").normalisation
        assert mine.mean == (0.5, 0.4, 0.3) and mine.std == CIFAR10_NORMALISATION.std
        with pytest.raises(InvalidArgumentError, match="mean"):
            loads(str(tmp_path), mean=[0.5, 0.4])


@pytest.mark.parametrize(
    "changes", [{"batch_size": 2.0}, {"seed": "a"}, {"padding": 1.5}, {"flip": "no"}, {"augment": "no"}, {"mean": "0.5"}]
)
def test_arguments_of_arrays_that_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    np.savez(tmp_path / "train.npz", images=np.zeros((6, 8, 8), np.uint8), labels=np.arange(6))
    with pytest.raises(InvalidArgumentError, match=next(iter(changes))):
        npz_train(str(tmp_path), **({"batch_size": 2} | changes))


def test_pillow_images_of_a_data_set_are_read_as_files_are() -> None:
    ramp = np.linspace(0, 65535, 8).astype(np.uint16)[None].repeat(8, 0)
    source = DatasetImages(Rows(image=[Image.fromarray(ramp), Image.new("F", (8, 8)), np.zeros((0, 8, 3), np.uint8)], label=[0, 0, 0]))
    assert np.asarray(source.image(0, mode="L"))[0].tolist() == np.linspace(0, 255, 8).round().tolist()
    with pytest.raises(FileFormatError, match="row 1 of the data set holds floating-point values"):
        source.image(1, mode="L")
    with pytest.raises(FileFormatError, match=r"uint8 \[0, 8, 3\]"):
        source.image(2, mode="RGB")


def test_no_class_at_all_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 1})
    with pytest.raises(InvalidArgumentError, match="must name at least one class"):
        LabelledFolder(tmp_path, classes=())
