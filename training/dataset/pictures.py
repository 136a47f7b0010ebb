"""Pixels of a pick, as the autoencoder reads them."""

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...lora_core.errors import LoraError
from .look import UNREADABLE
from .order import Pick
from .turned import brightness, opacity, to_rgb, turned

# Lanczos with Pillow's antialiasing, for smaller and larger sizes alike.
_FILTER = Image.Resampling.LANCZOS


def picture(pick: Pick) -> Image.Image:
    """The trained part of a picture, of its bucket's size, RGB.

    Raises:
        LoraError: the file is gone, or is not the one that was scanned.
    """
    sample = pick.sample
    return _placed(_decoded(sample.path, sample.sha256, to_rgb), pick)


def picture_tensor(pick: Pick) -> Tensor:
    """``picture`` as ``(3, height, width)``, float32 in -1..1.

    Raises:
        LoraError: as ``picture``.
    """
    pixels = torch.from_numpy(np.array(picture(pick)))  # (height, width, 3), uint8
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def mask_tensor(pick: Pick, floor: float = 0.0, factor: int = 8) -> Tensor:
    """Weights of the loss over a pick's latents.

    Args:
        pick: Its mask goes through the same resize, cut and mirroring as its pixels, then each
            latent takes the mean of the pixels that it covers.
        floor: Weight where the mask is black.
        factor: Pixels of a latent, in each direction.

    Returns:
        ``(1, height / factor, width / factor)``, float32 in ``floor``..1; ones without a mask.

    Raises:
        LoraError: the mask's file is gone, or is not the one that was scanned.
    """
    width, height = pick.sample.fit.bucket
    if not pick.sample.mask:
        return torch.ones(1, height // factor, width // factor)
    convert = opacity if pick.sample.mask == pick.sample.path else brightness
    mask = _placed(_decoded(pick.sample.mask, pick.sample.mask_sha256, convert), pick)
    pixels = torch.from_numpy(np.array(mask)).float()[None] / 255
    means = torch.nn.functional.avg_pool2d(pixels, factor)
    return floor + (1 - floor) * means


def _placed(image: Image.Image, pick: Pick) -> Image.Image:
    fit, (left, top) = pick.sample.fit, pick.crop
    if image.size != fit.resized:
        image = image.resize(fit.resized, _FILTER)
    image = image.crop((left, top, left + fit.bucket[0], top + fit.bucket[1]))
    return ImageOps.mirror(image) if pick.flip else image


def _decoded(path: Path, sha256: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Decode the very bytes that were scanned.

    A file that was edited since has another caption, size and cache key than the dataset says.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoraError(
            "A picture of the dataset cannot be read any more.",
            {"picture": path, "reason": error.strerror},
            "put it back, or scan the folder again.",
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise LoraError(
            "A picture was changed after the dataset was scanned.",
            {"picture": path},
            "scan the folder again.",
        )
    try:
        with Image.open(BytesIO(data)) as image:
            return convert(turned(image))
    except UNREADABLE as error:
        raise LoraError(
            "A picture of the dataset cannot be decoded.",
            {"picture": path, "reason": error},
            "replace or delete the file, and scan the folder again.",
        ) from error
