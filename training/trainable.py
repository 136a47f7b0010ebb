"""What the trainer asks of a host's model."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..lora_core.lora import Lora
from ..lora_core.models.table import ModelTable
from ..lora_core.models.target import Target
from .config import PreviewConfig
from .objective import NoiseLevels

Conditions = Mapping[str, Tensor]
"""What the model is told beside the latents, by the host's names; one row a sample."""


@dataclass(frozen=True)
class PictureSize:
    """Where a training picture comes from, in pixels, ``(height, width)`` and ``(top, left)``.

    Attributes:
        original: The file's.
        crop: Of the trained part's corner in the resized picture.
        trained: Of the trained part.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    trained: tuple[int, int]


class Trainable(Protocol):
    """A loaded model with its text encoders and autoencoder, on its device.

    Attributes:
        parts: Live modules: ``"unet"``, and ``"te1"``, ``"te2"`` where there are any.
        weights: For each part, name of a module to its weight.
        table: Every name of every weight.
        levels: The noise that the model knows.
        device: Where it computes.
        identity: Changes with any weight.
        autoencoder: Changes with what makes latents of pictures.
        text: Changes with what makes conditions of captions.
        clip_skip: The layer of the text encoders that is read, -1 for the last; None is their own.
        samplers: Names that a preview knows.
        schedulers: Likewise.
    """

    parts: Mapping[str, nn.Module]
    weights: Mapping[str, Mapping[str, Target]]
    table: ModelTable
    levels: NoiseLevels
    device: torch.device
    identity: str
    autoencoder: str
    text: str
    clip_skip: int | None
    samplers: Collection[str]
    schedulers: Collection[str]

    def loaded(self) -> AbstractContextManager[None]:
        """The bare model ready for gradients; afterwards as it was found."""

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Latents as the model reads them: the mean of the autoencoder's, so nothing is random.

        Args:
            pictures: ``(n, 3, height, width)``, -1 to 1.
        """

    def encode_captions(self, captions: Sequence[str]) -> Sequence[Conditions]:
        """What the text encoders make of each caption, one row each; with gradients where on."""

    def conditions(self, texts: Sequence[Conditions], sizes: Sequence[PictureSize]) -> Conditions:
        """Texts in one batch, with what the model wants to know of the pictures."""

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The model's answer, of the shape of ``noisy``.

        Args:
            noisy: ``(n, channels, height, width)``, as ``NoiseLevels.mixed`` gives them.
            timesteps: ``(n,)``, int64.
            conditions: One row a sample.
        """

    def preview(
        self, prompt: str, config: PreviewConfig, size: tuple[int, int], seed: int, lora: Lora
    ) -> Tensor:
        """A picture by the host's sampler with a LoRA applied, ``(height, width, 3)``, 0 to 1."""
