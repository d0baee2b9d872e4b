"""Image files and Pillow images as eight bits a channel, colour or grey."""

from __future__ import annotations

from typing import Any

import numpy as np

from latprune.errors import FileFormatError

__all__ = ["in_mode", "opened"]

_BITS = 258
"""TIFF's tag of the bits of each value."""
_SIXTEEN = ("PNG", "PPM")
"""Formats that have at most 16 bits, which some versions of Pillow read into 32."""


def opened(file: Any, name: str, *, mode: str, at_least: tuple[int, int] | None = None, turn: bool = True) -> Any:
    """A Pillow image of a file or stream, in the mode that :func:`in_mode` makes of it.

    Args:
        file: Path or binary stream.
        name: What the image is called in messages.
        mode: ``RGB`` or ``L``.
        at_least: Width and height that a JPEG's coarser decoding must keep; None decodes it whole.
        turn: Turn it as its camera says (EXIF). False gives the pixels as they are stored.

    Raises:
        FileFormatError: It is no image, broken, or its values have no known range.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as found:
            if at_least is not None:
                found.draft(mode, at_least)
            turned = ImageOps.exif_transpose(found) if turn else found
            return in_mode(turned, name, mode=mode, read=found)
    except FileFormatError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{name} cannot be read as an image ({error}); remove it, or write it anew") from error


def in_mode(image: Any, name: str, *, mode: str, read: Any = None) -> Any:
    """A Pillow image in eight bits a channel.

    Grey values of 16 bits (of 12 in some TIFF files) are scaled from their range to 0 to 255. An alpha channel is dropped, as torchvision's
    folders do: the colours are those stored, whatever it hides.

    Args:
        image: A Pillow image.
        name: What the image is called in messages.
        mode: ``RGB`` or ``L``.
        read: The image as it was opened, whose file says what values mean, where ``image`` is one made of it.

    Raises:
        FileFormatError: Its values are floating-point, of 32 bits or with a sign: no file says what range they have.
    """
    from PIL import Image

    source = image if read is None else read
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and source.format in _SIXTEEN)
    if image.mode in ("I", "F") and not sixteen:
        kind = "floating-point values" if image.mode == "F" else "whole numbers of 32 bits or with a sign"
        raise FileFormatError(
            f"{name} holds {kind} (mode {image.mode}), of which nothing says what is black and what white; write it anew with 8 or 16 bits "
            "a channel"
        )
    if sixteen:
        highest = (1 << _bits(source)) - 1
        values = np.asarray(image).astype(np.int64).clip(0, highest)
        image = Image.fromarray(((values * 255 + highest // 2) // highest).astype(np.uint8))
    return image.convert(mode)


def _bits(image: Any) -> int:
    """Bits of each value: 16, or what a TIFF file says."""
    return int(getattr(image, "tag_v2", {}).get(_BITS, (16,))[0])
