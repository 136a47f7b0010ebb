"""A picture of a dataset: what is trained of each picture, by bucket, with its caption."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .captions import plain_caption
from .data import Dataset, Sample
from .order import Pick, center_crop
from .pictures import picture
from .problems import shown_size
from .report import BucketRow, bucket_rows
from .settings import Size

_WIDTH, _COLUMNS, _GAP = 1024, 6, 12  # pixels
_SIDE = (_WIDTH - (_COLUMNS + 1) * _GAP) // _COLUMNS
_LINE, _HEAD, _LINES = 17, 34, 3  # heights in pixels; lines below a thumbnail
_INK, _FAINT, _PAPER, _ALARM = (30, 30, 34), (110, 110, 118), (255, 255, 255), (196, 48, 32)
_FONT, _HEAD_FONT = 13, 17
_MOST_BUCKETS = 24
_READ = 200  # letters of a caption; more never fit


def preview_sheet(dataset: Dataset, per_bucket: int = 6) -> Image.Image:
    """Draw the first pictures of each bucket, at 1024 pixels of width.

    Pictures are shown as they are cut for training. Those with problems are framed and named.
    The size is bounded: the 24 largest buckets, and what is left out is counted.

    Raises:
        LoraError: a file changed since the scan.
    """
    rows = sorted(bucket_rows(dataset), key=lambda row: (-row.pictures - row.validation, row))
    shown, rest = rows[:_MOST_BUCKETS], rows[_MOST_BUCKETS:]
    by_bucket: dict[Size, list[Sample]] = defaultdict(list)
    for sample in (*dataset.samples, *dataset.validation):
        by_bucket[sample.fit.bucket].append(sample)
    marks = _marks(dataset)
    strips = [_strip(row, by_bucket[row.bucket], per_bucket, marks, dataset) for row in shown]
    if rest:
        count = sum(row.pictures + row.validation for row in rest)
        strips.append(_headline(f"and {len(rest)} more buckets with {count} pictures"))
    sheet = Image.new("RGB", (_WIDTH, sum(strip.height for strip in strips) + _GAP), _PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _marks(dataset: Dataset) -> dict[str, str]:
    """Name to the kinds of its problems."""
    kinds = defaultdict(list)
    for problem in dataset.problems:
        for name in dict.fromkeys(name for name, _ in problem.items):
            kinds[name].append(problem.kind)
    return {name: ", ".join(found) for name, found in kinds.items()}


def sheet_tensor(dataset: Dataset, per_bucket: int = 6) -> Tensor:
    """``preview_sheet`` as an IMAGE, ``(1, height, 1024, 3)``, float32 in 0..1."""
    pixels = np.array(preview_sheet(dataset, per_bucket))
    return torch.from_numpy(pixels).float()[None] / 255


def _strip(
    row: BucketRow,
    samples: Sequence[Sample],
    per_bucket: int,
    marks: Mapping[str, str],
    dataset: Dataset,
) -> Image.Image:
    shown = samples[:per_bucket]
    text = f"{shown_size(row.bucket)}   {len(samples)} pictures, {row.kept:.0%} of them kept"
    if row.validation:
        text += f", {row.validation} for validation"
    if len(samples) > len(shown):
        text += f"   (the first {len(shown)})"
    thumbs = [_thumb(sample) for sample in shown]
    height = max(thumb.height for thumb in thumbs)
    cell = height + _LINES * _LINE + _GAP
    lines = -(-len(shown) // _COLUMNS)
    strip = _headline(text, _HEAD + lines * cell)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=_FONT)
    for number, (sample, thumb) in enumerate(zip(shown, thumbs, strict=True)):
        left = _GAP + number % _COLUMNS * (_SIDE + _GAP)
        top = _HEAD + number // _COLUMNS * cell
        mark = marks.get(sample.name, "")
        if mark:
            box = (left - 3, top - 3, left + thumb.width + 2, top + thumb.height + 2)
            draw.rectangle(box, outline=_ALARM, width=3)
        strip.paste(thumb, (left, top))
        below = top + height + 4
        caption = plain_caption(sample, dataset.settings)[:_READ] or "(no words)"
        written = _wrapped(caption, draw, font, _LINES - 1 if mark else _LINES)
        for line in written:
            draw.text((left, below), line, _INK, font)
            below += _LINE
        if mark:
            draw.text((left, below), _wrapped(mark, draw, font, 1)[0], _ALARM, font)
    return strip


def _headline(text: str, height: int = _HEAD) -> Image.Image:
    strip = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(size=_HEAD_FONT)
    draw.text((_GAP, 8), text, _FAINT, font)
    return strip


def _thumb(sample: Sample) -> Image.Image:
    """What is trained of a picture, at the centre, fitted into a square cell."""
    image = picture(Pick(sample, 0, 0, False, center_crop(sample)))
    scale = _SIDE / max(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return image.resize((width, height), smooth)


def _wrapped(
    text: str,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    most: int,
) -> list[str]:
    """At most so many lines of a cell's width, broken at blanks where there are any.

    What is left out shows as dots.
    """

    def fits(line: str) -> bool:
        return draw.textlength(line, font) <= _SIDE

    lines: list[str] = []
    rest = text
    while rest and len(lines) < most:
        end = next((n for n in range(len(rest), 1, -1) if fits(rest[:n])), 1)
        blank = rest.rfind(" ", 0, end + 1)
        end = blank if blank > 0 and end < len(rest) else end
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        while not fits(lines[-1] + "..."):
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return lines
