"""How far pictures are from a style, as one number."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...lora_core.errors import LoraError
from .pictures import SIZE, STYLES, TILE, Style, draw_scene, random_scenes

Features = NDArray[np.float64]

_EXAMPLES, _SEED = 256, 9001
_DARK, _LIGHT = 0.2, 0.85
_LUMA = (0.299, 0.587, 0.114)


def style_distance(pictures: Sequence[Image.Image], style: Style) -> float:
    """Measure how far pictures are from those that a style was trained on.

    Features: the shares of dark and of light pixels, mean light, its spread, mean saturation, and
    the light's steps across the joints of the mosaic's tiles and inside of the tiles. Each is
    scaled by its spread over drawn pictures of all styles, so that the unit is a standard
    deviation; the distance is the root mean square over the features.

    Args:
        pictures: RGB, 128 x 128.
        style: ``"plain"``, ``"neon"`` or ``"mosaic"``.

    Returns:
        Mean distance of the pictures to the mean of 256 drawn pictures of the style; drawn
        pictures of the style themselves are at about 0.3.

    Raises:
        LoraError: no pictures, or another size.
        UnknownChoiceError: no such style.
    """
    if not pictures or any(picture.size != (SIZE, SIZE) for picture in pictures):
        raise LoraError(
            "The distance to a style needs pictures of one size.",
            {"Needed": f"{SIZE} x {SIZE}", "Got": sorted({p.size for p in pictures}) or "none"},
            f"generate pictures of {SIZE} x {SIZE} pixels.",
        )
    centre, spread = _centre(style), _spread()
    found = np.stack([_features(picture) for picture in pictures])  # (n, features)
    return float(np.sqrt((((found - centre) / spread) ** 2).mean(axis=1)).mean())


@cache
def _drawn(style: Style) -> Features:
    """Features of drawn pictures, ``(256, features)``."""
    scenes = random_scenes(_EXAMPLES, _SEED)
    return np.stack([_features(draw_scene(scene, style)) for scene in scenes])


def _centre(style: Style) -> Features:
    return _drawn(style).mean(axis=0)


def _spread() -> Features:
    return np.concatenate([_drawn(style) for style in STYLES]).std(axis=0)


def _features(picture: Image.Image) -> Features:
    rgb = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    light = rgb @ np.array(_LUMA)
    across = np.concatenate([np.abs(np.diff(light, axis=1)), np.abs(np.diff(light, axis=0)).T])
    place = np.arange(SIZE - 1) % TILE  # a joint is a tile's last and the next one's first pixel
    beside_joint = (place == 0) | (place == TILE - 2)
    return np.array(
        [
            (light < _DARK).mean(),
            (light > _LIGHT).mean(),
            light.mean(),
            light.std(),
            (rgb.max(axis=2) - rgb.min(axis=2)).mean(),
            across[:, beside_joint].mean(),
            across[:, ~beside_joint].mean(),
        ]
    )
