"""Image files of every number of bits as eight bits a channel."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latprune.errors import FileFormatError
from latprune.zoo import ImageFolder, LabelledFolder
from latprune.zoo.decoding import opened

RAMP = np.linspace(0, 65535, 16).astype(np.uint16)[None].repeat(16, 0)
"""From black to white."""
EIGHT = np.linspace(0, 255, 16).round().astype(np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, name: str, mode: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    read = np.asarray(opened(tmp_path / name, name, mode=mode))
    assert np.array_equal(read[0] if mode == "L" else read[0, :, 0], EIGHT)


def test_folders_read_sixteen_bits_as_they_read_eight(tmp_path: Path) -> None:
    for place, pixels in (("16", RAMP), ("8", EIGHT[None].repeat(16, 0))):
        (tmp_path / place / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / place / "a" / "x.png")
    (fine,), (plain,) = (ImageFolder(tmp_path / place, (1, 16, 16), crop=1.0) for place in ("16", "8"))
    assert torch.equal(fine, plain)
    a, b = (np.asarray(LabelledFolder(tmp_path / place).image(0, mode="RGB")) for place in ("16", "8"))
    assert np.array_equal(a, b)


def test_twelve_bits_have_their_own_white() -> None:
    """Two values of 12 bits, black and white, in three bytes of a TIFF file."""
    entries = [(256, 4, 2), (257, 4, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 1), (279, 4, 3)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    file = b"II*\0" + struct.pack("<I", 12) + b"\x00\x0f\xff\0" + directory + struct.pack("<I", 0)
    assert np.asarray(opened(io.BytesIO(file), "x", mode="L")).tolist() == [[0, 255]]


@pytest.mark.parametrize(("kind", "words"), [(np.float32, "floating-point values"), (np.int32, "32 bits or with a sign")])
def test_values_without_a_range_are_refused(tmp_path: Path, kind: Any, words: str) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray((RAMP / 65535).astype(kind)).save(tmp_path / "a" / "x.tif")
    for read in (lambda: next(iter(ImageFolder(tmp_path, (3, 8, 8)))), lambda: LabelledFolder(tmp_path).image(0, mode="RGB")):
        with pytest.raises(FileFormatError, match=rf"x\.tif holds .*{words}.*8 or 16 bits"):
            read()


def test_alpha_is_dropped() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[0, :, 3] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    assert (np.asarray(opened(stream, "x", mode="RGB")) == (200, 0, 0)).all()


@pytest.mark.parametrize("turn", [True, False])
def test_images_are_turned_where_they_are_to_be(turn: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    stream = io.BytesIO()
    Image.fromarray(RAMP[:8]).save(stream, "PNG", exif=exif)
    read = np.asarray(opened(stream, "x", mode="L", turn=turn))
    assert np.array_equal(read[:, 0] if turn else read[0], EIGHT) and read.shape == ((16, 8) if turn else (8, 16))
