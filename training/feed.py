"""What a run's batches hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .trainable import PictureSize

SampleKey = tuple[int, int]
"""Optimiser step and place in it: what a sample's random numbers are drawn from."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one size, on the CPU.

    Attributes:
        latents: ``(n, channels, height, width)``, float32, as the model reads them.
        captions: One a sample.
        sizes: One a sample.
        weights: Of the samples' losses, ``(n,)``.
        mask: Of the loss, ``(n, 1, height, width)``, or None.
        texts: What the text encoders made of the captions, where they are not trained.
    """

    latents: Tensor
    captions: Sequence[str]
    sizes: Sequence[PictureSize]
    weights: Tensor
    mask: Tensor | None = None
    texts: Sequence[Mapping[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.latents)


class Feed(Protocol):
    """The pictures of a run in their order, a function of the seed alone."""

    batches_per_epoch: int
    size: tuple[int, int]
    """Width and height that pictures are trained at, in pixels."""

    def picks(self, number: int) -> Sequence[Any]:
        """What the batch of this number, counted over all epochs, is made of; reads no picture."""

    def load(self, picks: Sequence[Any], keys: Sequence[SampleKey]) -> Batch:
        """The samples of some picks."""

    def validation(self) -> Sequence[Batch]:
        """Pictures that are never trained on; their latents are the mean."""
