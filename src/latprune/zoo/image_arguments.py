"""Rules that the arguments of image loaders keep: sizes, and numbers by channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from latprune.argument_rules import check_number, check_whole
from latprune.errors import InvalidArgumentError

__all__ = ["check_batching", "check_crop", "image_shape", "image_size", "per_channel"]


def image_shape(shape: Any) -> tuple[int, int, int]:
    """A network's input ``(channels, height, width)``.

    Raises:
        InvalidArgumentError: It is no sequence of three whole numbers of at least 1, or has other than 1 or 3 channels; a text is told how
            a command line writes one.

    Example:
        >>> image_shape([3, 224, 224])
        (3, 224, 224)
    """
    rule = "be (channels, height, width) with 1 or 3 channels: images have those"
    channels, height, width = _wholes("shape", shape, 3, rule, "shape=[3,224,224]")
    if channels not in (1, 3):
        raise InvalidArgumentError(f"shape (={shape!r}) must {rule}")
    return channels, height, width


def image_size(size: Any) -> tuple[int, int]:
    """Height and width of a network's input.

    Raises:
        InvalidArgumentError: It is no sequence of two whole numbers of at least 1.
    """
    height, width = _wholes("size", size, 2, "be (height, width), both of at least 1", "size=[512,512]")
    return height, width


def _wholes(name: str, value: Any, count: int, rule: str, written: str) -> list[int]:
    """``count`` whole numbers of at least 1."""
    if not _listed(value) or len(value) != count:
        raise InvalidArgumentError(f"{name} (={value!r}) must {rule}{_spelling(value, written)}")
    for index, number in enumerate(value):
        check_whole(f"{name}[{index}]", number, least=1)
    return [int(number) for number in value]


def per_channel(name: str, value: Any, channels: int) -> tuple[float, ...]:
    """A number for each channel.

    Args:
        name: ``mean`` or ``std``.
        value: One number for all channels, by itself or as a sequence of one, or a sequence of one for each.
        channels: 1 or 3.

    Raises:
        InvalidArgumentError: It is something else; a text is told how a command line writes such numbers.

    Example:
        >>> per_channel("mean", 0.5, 3)
        (0.5, 0.5, 0.5)
    """
    values = tuple(value) if _listed(value) else (value,)
    if any(isinstance(v, str) for v in (value, *values)) or len(values) not in (1, channels):
        written = f"{name}=[{','.join(['0.5'] * channels)}]"
        raise InvalidArgumentError(
            f"{name} (={value!r}) must be one number, or one for each of {channels} channels{_spelling(value, written)}"
        )
    for number in values:
        check_number(name, number, f"be one finite number, or one for each of {channels} channels")
    return tuple(float(number) for number in values) * (channels // len(values))


def check_batching(batch_size: Any, workers: Any, seed: Any) -> None:
    """Images in a batch, threads that decode (None: as many as there are cores), and the seed of order and augmentation.

    Raises:
        InvalidArgumentError: One is no whole number, or too low.
    """
    check_whole("batch_size", batch_size, least=1)
    if workers is not None:
        check_whole("workers", workers, least=0, instead=", or None for as many as there are cores")
    check_whole("seed", seed)


def check_crop(crop: Any) -> None:
    """Share of an image's shorter side that is kept.

    Raises:
        InvalidArgumentError: It is no number above 0 and of at most 1.
    """
    check_number("crop", crop, "be a share of the shorter side, above 0 and at most 1", 0.0, math.nextafter(1.0, 2.0), above=True)


def _listed(value: Any) -> bool:
    """Whether a value is a sequence of its own entries; an array counts, a text does not."""
    return not isinstance(value, (str, bytes)) and (isinstance(value, Sequence) or getattr(value, "ndim", 0) == 1)


def _spelling(value: Any, written: str) -> str:
    return f"; on the command line write {written}" if isinstance(value, str) else ""
