"""The pieces of a loaded checkpoint: modules of diffusers and transformers with their facts.

Modules are in evaluation mode, without gradients, on one device; their parameters are the model's
only copy of its weights, which ledgers change in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

Prediction = Literal["epsilon", "v_prediction"]
"""What the UNet gives: the noise, or the velocity of arXiv:2202.00512, appendix D."""

EncoderName = Literal["l", "h", "g"]
"""CLIP ViT-L/14, OpenCLIP ViT-H/14 (SD2), OpenCLIP ViT-bigG/14 (SDXL)."""


@dataclass(frozen=True, eq=False)
class DiffusionPart:
    """A UNet.

    Attributes:
        unet: A diffusers ``UNet2DConditionModel``.
        family: ``"sd15"``, ``"sd2"``, ``"sdxl"`` or ``"sdxl-refiner"``.
        prediction: What the UNet gives.
        latent_scale: Latents are the VAE's times this (0.18215 for SD1 and SD2, 0.13025 for SDXL).
        files: Name of each of the UNet's parameters, to the checkpoint file, the tensor in it and
            that tensor's first row, where the base can be read again unchanged; may be empty.
    """

    unet: nn.Module
    family: str
    prediction: Prediction
    latent_scale: float
    files: Mapping[str, "StoredRows"]


@dataclass(frozen=True, eq=False)
class TextPart:
    """Text encoders.

    Attributes:
        encoders: transformers ``CLIPTextModel`` or ``CLIPTextModelWithProjection`` by name, in the
            order in which their states are joined: ``l``; ``h``; ``l`` and ``g``; or ``g``.
        family: As the UNet's.
        files: As the UNet's, names as ``"<encoder>.<parameter>"``.
        tokenizer: A folder with CLIP's ``vocab.json`` and ``merges.txt`` beside the model.
    """

    encoders: Mapping[EncoderName, nn.Module]
    family: str
    files: Mapping[str, "StoredRows"]
    tokenizer: Path | None = None


@dataclass(frozen=True, eq=False)
class VaePart:
    """An autoencoder between pictures and latents.

    Attributes:
        vae: A diffusers ``AutoencoderKL``, or ``AutoencoderTiny`` (TAESD).
        latent_scale: As the UNet's; for TAESD what the file says (``vae_scale``, 1 when absent).
    """

    vae: nn.Module
    latent_scale: float


@dataclass(frozen=True)
class StoredRows:
    """Where a parameter lies in a safetensors file."""

    path: Path
    key: str
    first_row: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; ``text`` or ``vae`` is None where the file has none."""

    diffusion: DiffusionPart
    text: TextPart | None
    vae: VaePart | None
