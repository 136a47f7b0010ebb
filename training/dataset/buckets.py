"""Which size a picture is trained in, and how it gets there.

The rule is that of kohya's tools: sizes in steps whose area is at most that of the resolution.
diffusers' ``generate_aspect_ratio_buckets`` (0.42.1) was read and does not fit: it knows eleven
shapes up to 2:1, has no shortest and longest side, rounds to areas above the resolution's (576 x
448 and 640 x 448 for 512), and its ``find_nearest_bucket`` compares products of sides, which
favours small buckets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...lora_core.errors import LoraError
from .settings import DatasetSettings, Size


@dataclass(frozen=True)
class Fit:
    """How a picture becomes one of its bucket's size: resized to cover it, then cut.

    Attributes:
        bucket: Width and height of the trained part.
        resized: Width and height of the whole picture before the cut.
    """

    bucket: Size
    resized: Size

    @property
    def room(self) -> Size:
        """How far the cut can move, to the right and down; one of them is 0 or nearly so."""
        return self.resized[0] - self.bucket[0], self.resized[1] - self.bucket[1]

    @property
    def kept(self) -> float:
        """Share of the picture that is trained."""
        return math.prod(self.bucket) / math.prod(self.resized)

    def enlarged(self, size: Size) -> float:
        """The factor by which a picture of ``size`` grows, below 1 if it shrinks."""
        return max(self.resized[0] / size[0], self.resized[1] / size[1])


def bucket_sizes(settings: DatasetSettings) -> tuple[Size, ...]:
    """All sizes that pictures can be trained in, by width.

    With ``upscale`` off there are more: see ``fit``.

    Raises:
        LoraError: no multiple of the step fits between the limits.
    """
    if not settings.buckets:
        return (settings.target,)
    step, (least, most) = settings.bucket_step, _side_limits(settings)
    area = math.prod(settings.target)
    found = set()
    for width in range(_up(least, step), most + 1, step):
        height = min(_down(area // width, step), _down(most, step))
        if height >= least:
            found |= {(width, height), (height, width)}
    if not found:
        raise LoraError(
            "No bucket fits the resolution.",
            {"resolution": settings.target, "step": step, "sides": f"{least} to {most}"},
            "take a resolution that is a multiple of the step, or a smaller bucket_min.",
        )
    return tuple(sorted(found))


def fit(size: Size, buckets: Sequence[Size], settings: DatasetSettings) -> Fit:
    """Choose the bucket that cuts off least of a picture.

    Args:
        size: Of the picture, as it is seen (turned by its EXIF data).
        buckets: Of ``bucket_sizes``.
        settings: With ``upscale`` off the bucket is the picture's own size, reduced to the
            resolution's area where it is above, rounded down to steps. Only a picture that is
            smaller than one step is enlarged.
    """
    if settings.buckets and not settings.upscale:
        return _covering(size, _own_bucket(size, settings))
    shape = math.log(size[0] / size[1])

    # What the cut leaves of a picture is the quotient of the two shapes, in either direction.
    def distance(bucket: Size) -> tuple[float, int]:
        misfit = abs(shape - math.log(bucket[0] / bucket[1]))
        return round(misfit, 9), -math.prod(bucket)

    return _covering(size, min(buckets, key=distance))


def _own_bucket(size: Size, settings: DatasetSettings) -> Size:
    step, (_, most) = settings.bucket_step, _side_limits(settings)
    scale = min(
        1.0, math.sqrt(math.prod(settings.target) / math.prod(size)), _down(most, step) / max(size)
    )
    width, height = (max(_down(math.floor(side * scale + 1e-6), step), step) for side in size)
    return width, height


def _covering(size: Size, bucket: Size) -> Fit:
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    width, height = (
        max(side, round(length * scale)) for side, length in zip(bucket, size, strict=True)
    )
    return Fit(bucket, (width, height))


def _side_limits(settings: DatasetSettings) -> Size:
    shortest, longest = min(settings.target), max(settings.target)
    least = shortest // 2 if settings.bucket_min is None else settings.bucket_min
    return max(least, settings.bucket_step), settings.bucket_max or 2 * longest


def _down(length: int, step: int) -> int:
    return length // step * step


def _up(length: int, step: int) -> int:
    return -(-length // step) * step
