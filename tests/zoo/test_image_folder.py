"""Image files as batches: sizes, values, order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.zoo import ImageFolder


def _save(path: Path, pixels: object, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def test_values_and_sizes(tmp_path: Path) -> None:
    _save(tmp_path / "a" / "red.png", np.full((30, 40, 3), (255, 0, 51)))
    _save(tmp_path / "b" / "tall.JPG", np.full((50, 20, 3), (255, 0, 51)), quality=100)
    (tmp_path / "notes.txt").write_text("no image")
    folder = ImageFolder(tmp_path, (3, 16, 12), mean=(0.5, 0.25, 0.2), std=0.5 * np.ones(3), batch=2)
    (batch,) = folder
    assert batch.shape == (2, 3, 16, 12) and batch.dtype == torch.float32 and len(folder) == 1
    torch.testing.assert_close(batch[:, :, 8, 6], torch.tensor([[1.0, -0.5, 0.0]] * 2), atol=0.02, rtol=0)
    assert "2 images" in str(folder) and "16" in str(folder)


def test_the_middle_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3))
    pixels[:, 20:60] = 255
    _save(tmp_path / "band.png", pixels)
    (whole,) = ImageFolder(tmp_path, (3, 20, 20), mean=[0.0], std=[1.0], crop=1.0)
    assert float(whole[..., 2:18].min()) > 0.99  # scaled to 20x40, of which the middle is white
    (close,) = ImageFolder(tmp_path, (3, 20, 20), mean=[0.0], std=[1.0], crop=0.5)
    assert float(close.min()) > 0.99


def test_grey_images_and_turned_ones(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pixels = np.zeros((10, 20, 3))
    pixels[:, :10] = 255
    _save(tmp_path / "turned.jpg", pixels, exif=exif, quality=100)
    (batch,) = ImageFolder(tmp_path, (1, 20, 10), crop=1.0)
    assert batch.shape == (1, 1, 20, 10)
    assert float(batch[0, 0, :8].min()) > 0.9 and float(batch[0, 0, 12:].max()) < 0.1


def test_the_order_is_the_seeds_and_each_pass_is_the_same(tmp_path: Path) -> None:
    for k in range(7):
        _save(tmp_path / f"{k}.png", np.full((4, 4, 3), 30 * k))
    folder = ImageFolder(tmp_path, (3, 4, 4), batch=3, seed=1)
    first, second = torch.cat(list(folder)), torch.cat(list(folder))
    assert len(folder) == 3 and torch.equal(first, second) and len(first) == 7
    other = torch.cat(list(ImageFolder(tmp_path, (3, 4, 4), batch=3, seed=2)))
    assert not torch.equal(first, other) and torch.equal(first.sort(0).values, other.sort(0).values)
    assert [len(b) for b in ImageFolder(tmp_path, (3, 4, 4), batch=3, whole=True)] == [3, 3]
    assert sum(len(b) for b in ImageFolder(tmp_path, (3, 4, 4), limit=2)) == 2


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="must be a folder with images"):
        ImageFolder(tmp_path / "none", (3, 4, 4))
    with pytest.raises(InvalidArgumentError, match="holds no image"):
        ImageFolder(tmp_path, (3, 4, 4))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match="broken.png cannot be read as an image"):
        next(iter(ImageFolder(tmp_path, (3, 4, 4))))
    for options, message in (
        ({"shape": (4, 4, 4)}, "1 or 3 channels"),
        ({"mean": (0.1, 0.2)}, r"mean \(=\(0\.1, 0\.2\)\) must be one number, or one for each of 3 channels"),
        ({"std": (0.0,)}, "must be above 0"),
        ({"crop": 1.5}, r"crop \(=1\.5\)"),
        ({"batch": 2, "whole": True}, "one batch takes 2"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            ImageFolder(tmp_path, **{"shape": (3, 4, 4), **options})


@pytest.mark.parametrize(
    "options",
    [
        {"shape": 4},
        {"shape": "3x4x4"},
        {"batch": 2.0},
        {"limit": -1},
        {"limit": 1.5},
        {"whole": "no"},
        {"seed": -1},
        {"mean": "0.5"},
        {"mean": float("nan")},
        {"dtype": torch.int64},
    ],
)
def test_arguments_that_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    _save(tmp_path / "a.png", np.zeros((4, 4, 3)))
    with pytest.raises(InvalidArgumentError, match=next(iter(options))):
        ImageFolder(tmp_path, **({"shape": (3, 4, 4)} | options))
    assert ImageFolder(tmp_path, (3, 4, 4), mean=0.5).mean == (0.5, 0.5, 0.5)
