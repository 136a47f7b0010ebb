"""The pictures that the demo's model and its LoRAs are trained on: one shape, two colours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ...lora_core.errors import UnknownChoiceError

Style = Literal["plain", "neon", "mosaic"]
Colour = tuple[int, int, int]
Outline = tuple[tuple[float, float], ...]

SIZE = 128
TILE = 8
STYLES: tuple[Style, ...] = ("plain", "neon", "mosaic")

COLOURS: Mapping[str, Colour] = MappingProxyType(
    {
        "red": (214, 40, 40),
        "orange": (245, 138, 30),
        "yellow": (250, 214, 50),
        "green": (48, 158, 72),
        "blue": (44, 90, 214),
        "purple": (128, 58, 178),
        "pink": (245, 132, 182),
        "white": (244, 244, 240),
    }
)

_FINE = 4  # drawn this much larger, then reduced, for smooth edges
_STROKE, _GLOW = 5, 7  # pixels
_DARK = 0.10  # of the background's light that neon keeps
_GROUT, _GROUT_LIGHT = 1, 0.92


def _round(count: int, radius: float = 1.0) -> Outline:
    angles = (2 * math.pi * step / count for step in range(count))
    return tuple((radius * math.cos(a), radius * math.sin(a)) for a in angles)


def _star() -> Outline:
    radii = (1.12, 0.46)
    angles = (math.pi * (step / 5 - 0.5) for step in range(10))
    return tuple(
        (radii[step % 2] * math.cos(a), radii[step % 2] * math.sin(a))
        for step, a in enumerate(angles)
    )


def _heart() -> Outline:
    turns = [2 * math.pi * step / 60 for step in range(60)]
    return tuple(
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    )


def _moon() -> Outline:
    outer = [math.radians(60 + 240 * step / 30) for step in range(31)]
    inner = [math.radians(286 - 212 * step / 30) for step in range(31)]
    return (
        *((0.25 + math.cos(a), math.sin(a)) for a in outer),
        *((0.62 + 0.87 * math.cos(a), 0.87 * math.sin(a)) for a in inner),
    )


SHAPES: Mapping[str, Outline] = MappingProxyType(
    {
        "circle": _round(72),
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "triangle": ((0, -1.0), (1.05, 0.85), (-1.05, 0.85)),
        "star": _star(),
        "heart": _heart(),
        "moon": _moon(),
        "house": (
            *((0, -1.05), (1.05, -0.2), (0.8, -0.2), (0.8, 0.9), (0.25, 0.9)),
            *((0.25, 0.25), (-0.25, 0.25), (-0.25, 0.9)),
            *((-0.8, 0.9), (-0.8, -0.2), (-1.05, -0.2)),
        ),
        "lighthouse": (
            *((0, -1.2), (0.34, -0.88), (0.34, -0.6), (0.5, -0.6), (0.5, -0.42), (0.3, -0.42)),
            *((0.5, 0.85), (0.85, 1.1), (-0.85, 1.1), (-0.5, 0.85)),
            *((-0.3, -0.42), (-0.5, -0.42), (-0.5, -0.6), (-0.34, -0.6), (-0.34, -0.88)),
        ),
    }
)
"""Each shape as one polygon, about -1 to 1, y downwards."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows; ``x``, ``y`` and ``radius`` in pixels, ``angle`` in degrees."""

    shape: str
    colour: str
    background: str
    x: float = SIZE / 2
    y: float = SIZE / 2
    radius: float = 38.0
    angle: float = 0.0

    @property
    def subject(self) -> str:
        """For example ``an orange star``."""
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.shape}"

    @property
    def caption(self) -> str:
        """For example ``an orange star on a blue background``."""
        return f"{self.subject} on {'an' if self.background == 'orange' else 'a'} " + (
            f"{self.background} background"
        )


def random_scenes(count: int, seed: int) -> list[Scene]:
    """Give scenes in which every shape and pair of colours comes about equally often.

    Args:
        count: How many.
        seed: Equal seeds give equal scenes.
    """
    draw = np.random.default_rng(seed)
    pairs = [(a, b) for a in COLOURS for b in COLOURS if a != b]
    every = [(shape, *pair) for shape in SHAPES for pair in pairs]
    scenes: list[Scene] = []
    while len(scenes) < count:
        for index in draw.permutation(len(every)):
            x, y = draw.uniform(-7, 7, 2) + SIZE / 2
            radius, angle = draw.uniform(32, 43), draw.uniform(-9, 9)
            scenes.append(Scene(*every[index], x, y, radius, angle))
    return scenes[:count]


def draw_scene(scene: Scene, style: Style = "plain") -> Image.Image:
    """Draw a scene, 128 x 128 RGB.

    Args:
        scene: What to draw.
        style: ``"plain"``: a filled shape. ``"neon"``: its outline glows in the dark.
            ``"mosaic"``: square tiles of 8 pixels between pale joints.

    Raises:
        UnknownChoiceError: no such style.
    """
    if style not in STYLES:
        raise UnknownChoiceError("style", style, STYLES)
    if style == "neon":
        return _neon(scene)
    plain = _plain(scene)
    return tiled(plain) if style == "mosaic" else plain


def tiled(picture: Image.Image) -> Image.Image:
    """Lay a picture, 128 x 128 RGB, in square tiles of 8 pixels between pale joints."""
    tiles = np.asarray(picture.reduce(TILE), dtype=np.float64)
    pixels = tiles.repeat(TILE, 0).repeat(TILE, 1)  # (128, 128, 3)
    inside = np.ones(TILE, bool)
    inside[:_GROUT] = inside[-_GROUT:] = False
    inside = np.tile(inside, SIZE // TILE)
    joint = ~(inside[:, None] & inside[None, :])
    pixels[joint] = 255 * _GROUT_LIGHT
    return Image.fromarray(pixels.round().astype(np.uint8))


def _points(scene: Scene) -> list[tuple[float, float]]:
    """Give the polygon in pixels of the fine canvas."""
    cos, sin = math.cos(math.radians(scene.angle)), math.sin(math.radians(scene.angle))
    return [
        (
            _FINE * (scene.x + scene.radius * (x * cos - y * sin)),
            _FINE * (scene.y + scene.radius * (x * sin + y * cos)),
        )
        for x, y in SHAPES[scene.shape]
    ]


def _mask(scene: Scene, stroke: int = 0) -> Image.Image:
    """Give the shape's cover, filled, or its outline ``stroke`` pixels wide."""
    fine = Image.new("L", (SIZE * _FINE,) * 2)
    pen, points = ImageDraw.Draw(fine), _points(scene)
    if stroke:
        pen.line([*points, *points[:2]], fill=255, width=stroke * _FINE, joint="curve")
    else:
        pen.polygon(points, fill=255)
    return fine.reduce(_FINE)


def _plain(scene: Scene) -> Image.Image:
    rows = np.linspace(1.08, 0.86, SIZE)[:, None, None]  # lighter above
    ground = np.clip(rows * np.ones((1, SIZE, 1)) * COLOURS[scene.background], 0, 255)
    picture = Image.fromarray(ground.round().astype(np.uint8))
    picture.paste(COLOURS[scene.colour], mask=_mask(scene))
    return picture


def _neon(scene: Scene) -> Image.Image:
    black = Image.new("RGB", (SIZE, SIZE))
    dark = tuple(round(_DARK * part) for part in COLOURS[scene.background])
    stroke = _mask(scene, _STROKE)
    glow = stroke.filter(ImageFilter.GaussianBlur(_GLOW))
    picture = Image.new("RGB", (SIZE, SIZE), dark)
    for cover in (glow, glow, stroke):
        light = black.copy()
        light.paste(COLOURS[scene.colour], mask=cover)
        picture = ImageChops.screen(picture, light)
    return picture
