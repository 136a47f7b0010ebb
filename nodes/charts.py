"""Charts as IMAGE, drawn with Pillow, which every host has."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_HEIGHT, _EDGE, _LABELS, _STEP = 320, 48, 84, 20  # pixels
_INK, _FAINT, _PAPER, _BAR = (30, 30, 34), (215, 215, 220), (255, 255, 255), (52, 106, 182)

_CURVES = (_BAR, (196, 78, 40), (60, 140, 70))


def bar_charts(titles: Sequence[str], values: Sequence[Mapping[str, float]], unit: str) -> Tensor:
    """Bar charts of one scale and one axis, so that they can be compared.

    Args:
        titles: One per chart.
        values: Per chart, label to a value of at least 0; a label that a chart lacks has no bar.
        unit: What the values are.

    Returns:
        ``(charts, height, width, 3)``, float32 in 0..1.
    """
    labels = list(dict.fromkeys(label for chart in values for label in chart))
    highest = max((value for chart in values for value in chart.values()), default=0.0)
    charts = [
        _bar_chart(f"{title}: {unit}", chart, labels, highest)
        for title, chart in zip(titles, values, strict=True)
    ]
    pixels = np.stack([np.asarray(chart) for chart in charts])
    return torch.from_numpy(pixels).float() / 255


def line_chart(
    title: str, curves: Mapping[str, Sequence[tuple[int, float]]], across: str, up: str
) -> Tensor:
    """Curves over one axis, each from its least to its largest value.

    Args:
        title: Of the chart.
        curves: Name to points in order; those without a point are left out.
        across: What the first number of a point is.
        up: What the second is.

    Returns:
        ``(1, height, width, 3)``, float32 in 0..1.
    """
    chart = Image.new("RGB", (640, _HEIGHT), _PAPER)
    draw, font = ImageDraw.Draw(chart), ImageFont.load_default(size=12)
    draw.text((_EDGE, 8), f"{title}: {up} by {across}", _INK, font)
    shown = {name: points for name, points in curves.items() if points}
    values = [value for points in shown.values() for _, value in points]
    steps = [step for points in shown.values() for step, _ in points]
    if not values:
        draw.text((_EDGE, _HEIGHT // 2), "nothing was measured", _INK, font)
    else:
        place = _Axes(draw, font, chart.width, (min(steps), max(steps)), (min(values), max(values)))
        for number, (name, points) in enumerate(shown.items()):
            place.draw_curve(name, points, _CURVES[number % len(_CURVES)], number)
    return torch.from_numpy(np.asarray(chart).copy())[None].float() / 255


class _Axes:
    """Where points lie on a chart."""

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
        width: int,
        across: tuple[int, int],
        up: tuple[float, float],
    ) -> None:
        self._draw, self._font, self._width = draw, font, width
        self._across, self._up = across, up
        floor, ceiling = _HEIGHT - _EDGE, 44
        for share in (0.0, 0.5, 1.0):
            y = round(floor - share * (floor - ceiling))
            draw.line((_EDGE, y, width - _EDGE, y), _FAINT)
            value = up[0] + share * (up[1] - up[0])
            draw.text((_EDGE - 6, y), f"{value:.3g}", _INK, font, anchor="rm")
        for step, anchor, x in ((across[0], "la", _EDGE), (across[1], "ra", width - _EDGE)):
            draw.text((x, floor + 6), str(step), _INK, font, anchor=anchor)

    def draw_curve(
        self, name: str, points: Sequence[tuple[int, float]], color: tuple[int, ...], number: int
    ) -> None:
        """Draw a line through points, and its name above the chart."""
        placed = [self._place(step, value) for step, value in points]
        self._draw.line(placed, color, 2)
        if len(placed) == 1:
            ((x, y),) = placed
            self._draw.ellipse((x - 2, y - 2, x + 2, y + 2), color)
        self._draw.text((_EDGE + 90 * number, 26), name, color, self._font)

    def _place(self, step: int, value: float) -> tuple[float, float]:
        floor, ceiling = _HEIGHT - _EDGE, 44
        first, last = self._across
        least, most = self._up
        x = (step - first) / (last - first or 1)
        y = (value - least) / (most - least or 1)
        return _EDGE + x * (self._width - 2 * _EDGE), floor - y * (floor - ceiling)


def _bar_chart(
    title: str, values: Mapping[str, float], labels: Sequence[str], highest: float
) -> Image.Image:
    chart = Image.new("RGB", (2 * _EDGE + _STEP * max(len(labels), 24), _HEIGHT), _PAPER)
    draw, font = ImageDraw.Draw(chart), ImageFont.load_default(size=12)
    draw.text((_EDGE, 8), title, _INK, font)
    floor, ceiling = _HEIGHT - _LABELS, 44
    for share in (0.0, 0.5, 1.0):
        y = round(floor - share * (floor - ceiling))
        draw.line((_EDGE, y, chart.width - _EDGE, y), _FAINT)
        if highest:
            draw.text((_EDGE - 6, y), f"{share * highest:.3g}", _INK, font, anchor="rm")
    for number, label in enumerate(labels):
        left = _EDGE + number * _STEP + 3
        value = values.get(label, 0.0)
        if value:
            top = round(floor - value / highest * (floor - ceiling))
            draw.rectangle((left, min(top, floor - 1), left + _STEP - 6, floor), _BAR)
        chart.paste(_upright(label, font), (left - 1, floor + 4))
    if not values:
        draw.text((_EDGE, floor + 8), "nothing that is known by block", _INK, font)
    return chart


def _upright(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    """Text that reads from below, as high as the space under a chart."""
    line = Image.new("RGB", (_LABELS - 8, 16), _PAPER)
    ImageDraw.Draw(line).text((line.width - 1, 8), text, _INK, font, anchor="rm")
    return line.rotate(90, expand=True)
