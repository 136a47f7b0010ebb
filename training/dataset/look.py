"""One look at a picture's file: read once, decoded once, nothing kept of its pixels."""

import hashlib
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from .settings import Size
from .turned import to_rgb, turned

THUMB = 16  # side of the thumbnail that near duplicates are found by, pixels
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
UNREADABLE = (
    *(OSError, ValueError, EOFError, SyntaxError, OverflowError, IndexError, KeyError, TypeError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow raises on damaged files, by format."""

Progress = Callable[[int, int], None]
"""Is told how many are done, and of how many."""

_QUARTER_TURNS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_PLAIN_MODES = frozenset({"RGB", "RGBA", "L"})
_THREADS = 4


@dataclass(frozen=True)
class Look:
    """What is known of a file without its pixels.

    Attributes:
        sha256: Of its bytes.
        size: As it is seen; ``(0, 0)`` where it cannot be read.
        trouble: Why it cannot be read, or empty.
        mode: Pillow's name where it is not RGB, RGBA or L, or empty.
        frames: More than 1 for animated pictures.
        transparent: Whether it can hold transparent pixels.
        thumb: ``THUMB`` x ``THUMB`` RGB pixels.
    """

    sha256: str
    size: Size = (0, 0)
    trouble: str = ""
    mode: str = ""
    frames: int = 1
    transparent: bool = False
    thumb: bytes = b""


def look_at(path: Path) -> Look:
    """Read a file's bytes, its header, and whether its pixels can be decoded.

    JPEGs are decoded at an eighth of their size, which reads all of the file all the same.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        return Look("", trouble=str(error.strerror))
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        return _look(data, sha256)
    except UnidentifiedImageError:
        return Look(sha256, trouble="no picture of a known kind")
    except UNREADABLE as error:
        return Look(sha256, trouble=str(error)[:100] or "damaged")


def look_at_all(paths: Sequence[Path], progress: Progress | None = None) -> list[Look]:
    """Look at files in threads; hashing and decoding leave the interpreter free.

    An exception from ``progress`` (an interrupt) ends it after the files that are open.
    """
    looks = []
    pool = ThreadPoolExecutor(_THREADS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about files that it can read after all
        try:
            for look in pool.map(look_at, paths):
                looks.append(look)
                if progress:
                    progress(len(looks), len(paths))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return looks


_JPEG = ("JPEG", "MPO")


def _look(data: bytes, sha256: str) -> Look:
    with Image.open(BytesIO(data)) as image:
        size, mode = image.size, image.mode
        # A camera's JPEG with a preview in it (MPO) is no animation.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        transparent = image.has_transparency_data
        is_jpeg = image.format in _JPEG
        if is_jpeg and image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS:
            size = size[1], size[0]
        image.draft("RGB", (THUMB, THUMB))  # reads a JPEG smaller
        upright = turned(image)
        if not is_jpeg:
            size = upright.size
        small = to_rgb(upright).resize((THUMB, THUMB), Image.Resampling.BOX)
    mode = "" if mode in _PLAIN_MODES else mode
    return Look(sha256, size, "", mode, frames, transparent, small.tobytes())
