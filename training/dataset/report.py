"""A dataset as text and tables, for people."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .data import Dataset, Sample
from .problems import HINTS, shown_size
from .settings import Size

_SHOWN = 5


class BucketRow(NamedTuple):
    """One bucket of a dataset.

    Attributes:
        bucket: Width and height.
        pictures: Training and regularisation, repeats not counted.
        picks: Showings in an epoch.
        kept: Mean share of all its pictures that the cut leaves.
        batches: Of an epoch.
        last: Pictures of the shortest batch, ``batch_size`` if all are full.
        validation: Pictures of validation.
    """

    bucket: Size
    pictures: int
    picks: int
    kept: float
    batches: int
    last: int
    validation: int


class PictureRow(NamedTuple):
    """Where one picture goes."""

    name: str
    size: Size
    bucket: Size
    resized: Size
    kept: float
    repeats: int


def bucket_rows(dataset: Dataset, batch_size: int = 1) -> list[BucketRow]:
    """All buckets that hold pictures, by width."""
    trained: dict[Size, list[Sample]] = defaultdict(list)
    held_out: dict[Size, list[Sample]] = defaultdict(list)
    for group, samples in ((trained, dataset.samples), (held_out, dataset.validation)):
        for sample in samples:
            group[sample.fit.bucket].append(sample)
    rows = []
    for bucket in sorted(trained.keys() | held_out.keys()):
        own, apart = trained[bucket], held_out[bucket]
        picks = sum(sample.repeats for sample in own)
        kept = sum(sample.fit.kept for sample in (*own, *apart)) / len((*own, *apart))
        batches = -(-picks // batch_size)
        last = picks - max(batches - 1, 0) * batch_size
        rows.append(BucketRow(bucket, len(own), picks, kept, batches, last, len(apart)))
    return rows


def picture_rows(dataset: Dataset) -> list[PictureRow]:
    """Where each picture goes: training, regularisation, validation."""
    return [
        PictureRow(s.name, s.size, s.fit.bucket, s.fit.resized, s.fit.kept, s.repeats)
        for s in (*dataset.samples, *dataset.validation)
    ]


def report(dataset: Dataset, batch_size: int = 1) -> str:
    """What there is, the buckets, and what to look at, as plain text of bounded length."""
    lines = [*_counts(dataset), "", *_table(bucket_rows(dataset, batch_size), batch_size)]
    for problem in dataset.problems:
        lines += ["", f"{problem.kind}: {len(problem.items)} ({HINTS[problem.kind]})"]
        for name, fact in problem.items[:_SHOWN]:
            lines.append(f"  {name}: {fact}" if fact else f"  {name}")
        if len(problem.items) > _SHOWN:
            lines.append(f"  and {len(problem.items) - _SHOWN} more")
    return "\n".join(lines)


def _counts(dataset: Dataset) -> Iterator[str]:
    spare = [sample for sample in dataset.samples if sample.regularisation]
    trained = len(dataset.samples) - len(spare)
    shown = dataset.picks_per_epoch - sum(sample.repeats for sample in spare)
    yield f"{trained} pictures, shown {shown} times in an epoch"
    if spare:
        times = dataset.picks_per_epoch - shown
        yield f"{len(spare)} regularisation pictures, shown {times} times in an epoch"
    if dataset.validation:
        yield f"{len(dataset.validation)} validation pictures, never trained on"
    if not dataset.problems:
        yield "no problems found"


def _table(rows: Sequence[BucketRow], batch_size: int) -> Iterator[str]:
    yield f"{'bucket':>11} {'pictures':>9} {'shown':>7} {'kept':>5} {'batches':>8}  shortest batch"
    for row in rows:
        yield (
            f"{shown_size(row.bucket):>11} {row.pictures:>9} {row.picks:>7} "
            f"{row.kept:>5.0%} {row.batches:>8}  {row.last} of {batch_size}"
            + (f", {row.validation} validation" if row.validation else "")
        )
