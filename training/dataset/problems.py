"""What a user should look at before training."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from .data import Problem, Sample
from .look import Look

HINTS: Mapping[str, str] = MappingProxyType(
    {
        "unreadable picture": "left out; replace or delete the file",
        "no caption file": "the default caption is used",
        "empty caption": "trained without words",
        "caption rewritten": "line breaks become blanks; UTF-16 is read as such",
        "caption without a picture": "not used; look for a wrong name",
        "shared caption": "pictures of one name with different endings share the caption file",
        "shown 0 times": "its folder's name begins with 0_",
        "enlarged": "blurred by the enlargement; use larger pictures or a lower resolution",
        "much cut off": "over a third of the picture is not trained; crop it yourself",
        "same file": "shown that many times more; delete one, or use repeats",
        "nearly the same picture": "shown more often than others; keep the better one",
        "converted": "read as 8 bit RGB; colour profiles are not applied",
        "animated": "only the first frame is trained",
        "no mask": "the whole picture counts",
        "mask of another shape": "stretched to the picture's size",
        "in training and validation": "the validation loss tells too little",
        "validation share": "too few pictures for the share; one was taken",
        "random crop": "the pictures fit their buckets, so that every crop is nearly the same",
        "other file": "not used",
    }
)
"""Kind of a problem to what is done about it."""


class Finding(NamedTuple):
    """A problem of one picture or file: a key of ``HINTS``, its name, what was found."""

    kind: str
    name: str
    fact: str = ""


_MUCH_CUT = 0.65  # share of a picture that is kept
_NEAR = 4.0  # mean difference of thumbnails, of 255; JPEG at quality 75 differs by 1 to 2
_ROWS = 512


def collect(found: Iterable[Finding]) -> tuple[Problem, ...]:
    """Group findings by kind, in the order of ``HINTS``."""
    items = defaultdict(list)
    for kind, name, fact in found:
        items[kind].append((name, fact))
    return tuple(Problem(kind, tuple(items[kind])) for kind in HINTS if kind in items)


def of_samples(
    samples: Sequence[Sample], looks: Mapping[str, Look], enlarged_note: float
) -> Iterator[Finding]:
    """What single pictures have; ``looks`` by name."""
    for sample in samples:
        look, fit = looks[sample.name], sample.fit
        growth = fit.enlarged(sample.size)
        if growth > enlarged_note:
            yield Finding("enlarged", sample.name, f"{growth:.2g} x to {shown_size(fit.resized)}")
        if fit.kept < _MUCH_CUT:
            yield Finding("much cut off", sample.name, f"{fit.kept:.0%} is kept")
        if look.mode:
            yield Finding("converted", sample.name, f"mode {look.mode}")
        if look.frames > 1:
            yield Finding("animated", sample.name, f"{look.frames} frames")


def duplicates(samples: Sequence[Sample], looks: Mapping[str, Look]) -> Iterator[Finding]:
    """Equal files, and pictures that look alike at 16 x 16 pixels.

    Of near duplicates only those within training or within validation and across are listed,
    each once, beside the first one that it is like.
    """
    first: dict[str, str] = {}
    for sample in samples:
        if sample.sha256 in first:
            yield Finding("same file", sample.name, f"equals {first[sample.sha256]}")
        else:
            first[sample.sha256] = sample.name
    names = list(first.values())
    if names:
        for one, other, difference in _near([looks[name].thumb for name in names]):
            fact = f"like {names[one]}, mean difference {difference:.1f} of 255"
            yield Finding("nearly the same picture", names[other], fact)


def _near(thumbs: Sequence[bytes]) -> Iterator[tuple[int, int, float]]:
    """Index of the first that is alike, own index, root mean square difference."""
    pixels = np.frombuffer(b"".join(thumbs), np.uint8).reshape(len(thumbs), -1)
    vectors = pixels.astype(np.float32) - 128
    squares = np.einsum("ij,ij->i", vectors, vectors)
    limit = _NEAR**2 * vectors.shape[1]
    for start in range(0, len(vectors), _ROWS):
        rows = vectors[start : start + _ROWS]
        stop = start + len(rows)
        distances = squares[start:stop, None] + squares[None, :stop] - 2 * rows @ vectors[:stop].T
        for row, column in zip(*np.nonzero(distances < limit), strict=True):
            if column < start + row and column == np.argmax(distances[row] < limit):
                exact = np.square(rows[row] - vectors[column]).mean() ** 0.5
                yield int(column), start + int(row), float(exact)


def shown_size(size: tuple[int, int]) -> str:
    """A size as text."""
    return f"{size[0]}x{size[1]}"
