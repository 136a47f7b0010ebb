"""Which pictures make the n-th batch: a function of (dataset, batch size, seed, n) alone.

No state is carried from batch to batch, so that a resumed run needs only the number of its batch,
and every process of a run comes to the same order.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...lora_core.errors import LoraError
from ..randomness import generator, seed_of
from .data import Dataset, Sample
from .settings import DatasetSettings, Size

_UNIT = 2.0**-63  # from a seed to 0..1


@dataclass(frozen=True)
class Pick:
    """One showing of a picture.

    Attributes:
        sample: The picture.
        epoch: From 0.
        repeat: Which of its showings in the epoch, from 0.
        flip: Whether it is mirrored, after the cut.
        crop: Left and top of the trained part in the resized picture, pixels.
    """

    sample: Sample
    epoch: int
    repeat: int
    flip: bool
    crop: Size


Batch = tuple[Pick, ...]


class Order:
    """The batches of a dataset.

    Every batch holds pictures of one bucket; what is left of a bucket is a short batch. Every
    showing of every picture occurs once in an epoch, and all epochs have equally many batches.

    Args:
        dataset: Of a scan.
        batch_size: Pictures of a batch.
        seed: Of the run.

    Raises:
        LoraError: no epoch fills a single batch.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        _require_fits(dataset, batch_size)
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self._buckets: dict[Size, list[tuple[Sample, int]]] = defaultdict(list)
        for sample in dataset.samples:
            shown = [(sample, repeat) for repeat in range(sample.repeats)]
            self._buckets[sample.fit.bucket] += shown
        self.batches_per_epoch = sum(
            -(-len(shown) // batch_size) for shown in self._buckets.values()
        )
        self._epoch: tuple[int, list[Batch]] = (-1, [])

    def epoch_batches(self, epoch: int) -> list[Batch]:
        """All batches of an epoch, counted from 0."""
        batches = []
        for (width, height), shown in sorted(self._buckets.items()):
            mixed = _shuffled(shown, generator(self.seed, "pictures", epoch, width, height))
            for start in range(0, len(mixed), self.batch_size):
                batches.append(mixed[start : start + self.batch_size])
        settings = self.dataset.settings
        return [
            tuple(_pick(sample, repeat, epoch, settings, self.seed) for sample, repeat in batch)
            for batch in _shuffled(batches, generator(self.seed, "batches", epoch))
        ]

    def batch_at(self, number: int) -> Batch:
        """The batch of a number from 0, counted over all epochs; one epoch is kept."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self.epoch_batches(epoch)
        return self._epoch[1][place]


def validation_batches(dataset: Dataset, batch_size: int) -> list[Batch]:
    """The validation pictures in a fixed order: cut at the center, not mirrored."""
    buckets = defaultdict(list)
    for sample in dataset.validation:
        buckets[sample.fit.bucket].append(Pick(sample, 0, 0, False, center_crop(sample)))
    return [
        tuple(picks[start : start + batch_size])
        for _, picks in sorted(buckets.items())
        for start in range(0, len(picks), batch_size)
    ]


def center_crop(sample: Sample) -> Size:
    """Left and top of the middle of the resized picture."""
    return sample.fit.room[0] // 2, sample.fit.room[1] // 2


def _pick(sample: Sample, repeat: int, epoch: int, settings: DatasetSettings, seed: int) -> Pick:
    showing = (sample.name, epoch, repeat)
    flip = settings.flip > 0 and seed_of(seed, "flip", *showing) * _UNIT < settings.flip
    if settings.crop == "center":
        return Pick(sample, epoch, repeat, flip, center_crop(sample))
    place = seed_of(seed, "crop", *showing) % settings.crop_places
    # The places are the picture's own and not the run's: another seed finds their latents cached.
    left, top = (
        seed_of(place, "place", axis, sample.sha256) % (room + 1)
        for axis, room in enumerate(sample.fit.room)
    )
    return Pick(sample, epoch, repeat, flip, (left, top))


def _shuffled(items: Sequence, source: torch.Generator) -> list:  # type: ignore[type-arg]
    return [items[index] for index in torch.randperm(len(items), generator=source).tolist()]


def _require_fits(dataset: Dataset, batch_size: int) -> None:
    if batch_size < 1:
        raise LoraError(
            "A batch needs at least one picture.", {"run.batch_size": batch_size}, "set 1 or more."
        )
    if batch_size > dataset.picks_per_epoch:
        raise LoraError(
            "The batch is larger than the dataset: it would never be full.",
            {"run.batch_size": batch_size, "pictures of an epoch": dataset.picks_per_epoch},
            f"take a batch size of at most {dataset.picks_per_epoch}, or raise the repeats.",
        )
