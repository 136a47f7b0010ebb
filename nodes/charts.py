"""Charts as IMAGE, drawn with Pillow, which every host has."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_HEIGHT, _EDGE, _LABELS, _STEP = 320, 48, 84, 20  # pixels
_INK, _FAINT, _PAPER, _BAR = (30, 30, 34), (215, 215, 220), (255, 255, 255), (52, 106, 182)


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
