"""Pillow's many kinds of pictures as upright RGB."""

import numpy as np
from PIL import Image, ImageOps

_WHITE = (255, 255, 255, 255)


def turned(image: Image.Image) -> Image.Image:
    """The first frame as it is seen: turned and mirrored by its EXIF data."""
    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits; transparent parts show white, colour profiles are not applied.

    Raises:
        ValueError: the pixels have no range that is known (floats).
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats")
    if image.mode.startswith("I"):
        image = _of_16_bits(image)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), colours).convert("RGB")
    return image.convert("RGB")


def opacity(image: Image.Image) -> Image.Image:
    """Mode L: 255 where a picture is opaque, everywhere if it cannot be transparent."""
    if image.has_transparency_data:
        return image.convert("RGBA").getchannel("A")
    return Image.new("L", image.size, 255)


def brightness(image: Image.Image) -> Image.Image:
    """Mode L, for masks."""
    return to_rgb(image).convert("L")


def _of_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits: Pillow's own conversion clips instead of scaling."""
    words = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((words + 128) // 257).astype(np.uint8))
