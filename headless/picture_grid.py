"""Pictures in a grid with labels."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE, _SIDE = 6, 15, 150  # pixels
_INK, _PAPER = (30, 30, 34), (255, 255, 255)


def picture_grid(
    rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], labels: Sequence[str]
) -> Image.Image:
    """Draw a grid.

    Args:
        rows: Pictures of one size, as many in each row as there are ``columns``.
        columns: Texts over the columns; lines are kept.
        labels: Texts beside the rows, wrapped at spaces.
    """
    width, height = rows[0][0].size
    head = _LINE * max(text.count("\n") + 1 for text in columns) + _GAP
    size = (
        _SIDE + len(columns) * (width + _GAP),
        head + len(rows) * (height + _GAP),
    )
    grid = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=12)
    for column, text in enumerate(columns):
        place = (_SIDE + column * (width + _GAP) + width // 2, head - _GAP)
        draw.multiline_text(place, text, _INK, font, anchor="md", align="center", spacing=2)
    for row, (pictures, label) in enumerate(zip(rows, labels, strict=True)):
        top = head + row * (height + _GAP)
        draw.multiline_text(
            (_GAP, top + height // 2), _wrapped(label, draw, font), _INK, font, anchor="lm"
        )
        for column, picture in enumerate(pictures):
            grid.paste(picture, (_SIDE + column * (width + _GAP), top))
    return grid


def _wrapped(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    """Lines that fit beside the grid."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= _SIDE - 2 * _GAP:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
