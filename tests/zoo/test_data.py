from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.zoo import (
    CIFAR10_NORMALISATION,
    DIGITS_NORMALISATION,
    IMAGENET_NORMALISATION,
    Augmentation,
    ImageLoader,
    Normalisation,
    augment,
    cifar10,
    digits,
    image_classes,
    load_image_set,
)


def write_set(path, count: int = 5, tile: int = 8, **changes) -> np.ndarray:
    """An image set of ``count`` random images in a 2 x 3 mosaic."""
    images = np.random.default_rng(0).integers(0, 256, (6, tile, tile, 3), dtype=np.uint8)
    mosaic = images.reshape(2, 3, tile, tile, 3).swapaxes(1, 2).reshape(2 * tile, 3 * tile, 3)
    stream = io.BytesIO()
    Image.fromarray(mosaic).save(stream, "PNG")
    arrays = {
        "images": np.frombuffer(stream.getvalue(), np.uint8),
        "grid": np.array([2, 3]),
        "tile": np.array(tile),
        "labels": np.arange(count) % 2,
        "classes": np.array(["cat", "dog"]),
    }
    arrays.update(changes)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return images[:count]


def test_image_sets_come_back_as_written(tmp_path) -> None:
    images = write_set(tmp_path / "set.npz")
    pixels, labels = load_image_set(tmp_path / "set.npz")
    assert np.array_equal(pixels, images) and labels.tolist() == [0, 1, 0, 1, 0]
    assert pixels.dtype == np.uint8 and labels.dtype == np.int64
    assert image_classes(tmp_path / "set.npz") == ("cat", "dog")


def test_the_cache_is_read_and_follows_the_file(tmp_path) -> None:
    images = write_set(tmp_path / "set.npz")
    load_image_set(tmp_path / "set.npz", cache_dir=tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    np.save(cached, 255 - np.load(cached))
    again, _ = load_image_set(tmp_path / "set.npz", cache_dir=tmp_path / "cache")
    assert np.array_equal(again, 255 - images)
    changed = write_set(tmp_path / "set.npz", tile=4)
    assert np.array_equal(load_image_set(tmp_path / "set.npz", cache_dir=tmp_path / "cache")[0], changed)


def test_broken_files_are_named(tmp_path) -> None:
    path = tmp_path / "set.npz"
    write_set(path, tile=8, grid=None)
    with pytest.raises(FileFormatError, match="lacks the array.s. grid"):
        load_image_set(path)
    write_set(path, grid=np.array([2, 4]))
    with pytest.raises(FileFormatError, match="mosaic is 24x16"):
        load_image_set(path)
    write_set(path, count=7)
    with pytest.raises(FileFormatError, match="7 labels for 6 images"):
        load_image_set(path)
    path.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(FileFormatError, match="not an image set"):
        load_image_set(path)
    with pytest.raises(InvalidArgumentError, match="cifar10_train.npz is not there"):
        cifar10(tmp_path)


def test_cifar10_reads_both_sets(tmp_path) -> None:
    train = write_set(tmp_path / "cifar10_train.npz", 6)
    test = write_set(tmp_path / "cifar10_test.npz", 4)
    (x, y), (u, v) = cifar10(tmp_path)
    assert np.array_equal(x, train) and np.array_equal(u, test) and len(y) == 6 and len(v) == 4


def test_digits_are_split_by_class() -> None:
    (x, y), (u, v) = digits(upscale=4)
    assert x.shape[1:] == (32, 32, 1) and len(y) + len(v) == 1797 and len(x) == len(y) and len(u) == len(v)
    assert (np.bincount(v) > 30).all() and abs(len(v) / 1797 - 0.2) < 0.01
    scaled = x.astype(float) / 255
    assert scaled.mean() == pytest.approx(DIGITS_NORMALISATION.mean[0], abs=5e-3)
    assert scaled.std() == pytest.approx(DIGITS_NORMALISATION.std[0], abs=5e-3)
    assert np.array_equal(digits(upscale=4)[1][1], v)
    with pytest.raises(InvalidArgumentError, match="test_share"):
        digits(test_share=1.0)


def toy(count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return images, np.arange(count)


def loader(**changes) -> ImageLoader:
    images, labels = toy()
    options = {"batch_size": 4, "normalisation": IMAGENET_NORMALISATION, "shuffle": True, "augmentation": Augmentation(padding=2)}
    return ImageLoader(images, labels, **(options | changes))


def test_batches_are_normalised_images() -> None:
    images, labels = toy()
    (x, y), *_ = loader(shuffle=False, augmentation=None)
    expected = (images[:4] / 255.0 - IMAGENET_NORMALISATION.mean) / IMAGENET_NORMALISATION.std
    np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    assert y.tolist() == [0, 1, 2, 3] and x.dtype == torch.float32


def test_an_epoch_sees_every_image_once_and_epochs_differ() -> None:
    batches = loader()
    first = torch.cat([y for _, y in batches])
    second = torch.cat([y for _, y in batches])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist() and batches.epoch == 2
    assert len(loader(drop_last=True)) == 2 and [len(y) for _, y in loader(drop_last=True)] == [4, 4]


def test_order_and_augmentation_follow_from_seed_and_epoch() -> None:
    whole, resumed = loader(), loader()
    whole.set_epoch(3)
    resumed.set_epoch(3)
    expected = list(whole)
    for (x, y), (u, v) in zip(expected[1:], resumed.batches(start=1), strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)
    other = loader(seed=1)
    other.set_epoch(3)
    assert not all(torch.equal(y, v) for (_, y), (_, v) in zip(expected, other, strict=True))


def test_each_augmented_image_is_a_shifted_or_mirrored_crop() -> None:
    images = torch.from_numpy(toy(32)[0].transpose(0, 3, 1, 2).copy())
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    out = augment(images, Augmentation(padding=2), torch.Generator().manual_seed(0))
    places = []
    for index in range(32):
        found = []
        for top, left, mirrored in itertools.product(range(5), range(5), (False, True)):
            crop = padded[index, :, top : top + 8, left : left + 8]
            if torch.equal(out[index], crop.flip(2) if mirrored else crop):
                found.append((top, left, mirrored))
        assert len(found) == 1
        places += found
    assert len({place[0] for place in places}) == 5 and len({place[2] for place in places}) == 2
    same = augment(images, Augmentation(padding=0, flip=False), torch.Generator())
    assert torch.equal(same, images)


def test_misuse_is_named() -> None:
    images, labels = toy()
    for options, message in (
        ({"images": images.astype(float)}, "uint8"),
        ({"labels": labels[:3]}, "labels"),
        ({"batch_size": 0}, "batch_size"),
        ({"normalisation": DIGITS_NORMALISATION}, "channels"),
    ):
        full = {"images": images, "labels": labels, "batch_size": 2, "normalisation": CIFAR10_NORMALISATION} | options
        with pytest.raises(InvalidArgumentError, match=message):
            ImageLoader(full.pop("images"), full.pop("labels"), **full)
    with pytest.raises(InvalidArgumentError, match="std"):
        Normalisation(mean=(0.0,), std=(0.0,))
    with pytest.raises(InvalidArgumentError, match="padding"):
        Augmentation(padding=-1)
    with pytest.raises(InvalidArgumentError, match="epoch"):
        loader().set_epoch(-1)
