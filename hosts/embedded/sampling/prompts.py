"""What a UNet is told beside the latents: prompts, SDXL's sizes, and inpainting channels."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ....lora_core.errors import LoraError
from ..parts import DiffusionPart
from .denoiser import Prompt

_PIXELS = 8  # that a latent covers
_INPAINTING_CHANNELS = 9
# A black picture as the SD1 autoencoder gives it, times 0.18215.
_BLACK = (0.8223, -0.6876, 0.6364, 0.1380)
_REFINER_SCORES = {"positive": 6.0, "negative": 2.5}


class ConditioningLike(Protocol):
    """An encoded text."""

    @property
    def states(self) -> Tensor:
        """``(1, tokens, width)``."""

    @property
    def pooled(self) -> Tensor | None:
        """``(1, width)``, or None."""


def prompt_of(part: DiffusionPart, conditioning: ConditioningLike, side: str, x: Tensor) -> Prompt:
    """What the UNet is told of a conditioning.

    Args:
        part: The UNet.
        conditioning: An encoded text.
        side: ``"positive"`` or ``"negative"``: the refiner wants unlike aesthetic scores.
        x: Latents, for their size and device.

    Raises:
        LoraError: the conditioning was made for another family.
    """
    context = conditioning.states.to(x.device)
    config: Any = part.unet.config
    wanted = config.cross_attention_dim
    if isinstance(wanted, int) and context.shape[-1] != wanted:
        raise _other_family(part, f"{wanted} numbers a token", f"{context.shape[-1]}")
    if part.family not in ("sdxl", "sdxl-refiner"):
        return Prompt(context)
    if conditioning.pooled is None:
        raise _other_family(part, "a pooled text", "none")
    height, width = (size * _PIXELS for size in x.shape[-2:])
    last = (height, width) if part.family == "sdxl" else (_REFINER_SCORES[side],)
    sizes = torch.tensor([[height, width, 0, 0, *last]], dtype=torch.float32, device=x.device)
    return Prompt(context, {"text_embeds": conditioning.pooled.to(x.device), "time_ids": sizes})


def input_channels(
    part: DiffusionPart, latent: Tensor, mask: Tensor | None = None
) -> Tensor | None:
    """What an inpainting UNet gets beside the noisy latents: a mask, and the picture to keep.

    Args:
        part: The UNet.
        latent: Latents as the UNet sees them, ``(batch, 4, height, width)``.
        mask: 1 where to paint, ``(batch, 1, height, width)``; None paints all of a black picture.

    Returns:
        ``(batch, 5, height, width)``, or None for a UNet without them.

    Raises:
        LoraError: the UNet wants other channels.
    """
    config: Any = part.unet.config
    channels = config.in_channels
    if channels == latent.shape[1]:
        return None
    if channels != _INPAINTING_CHANNELS:
        raise LoraError(
            "This UNet's input is of an unknown kind.",
            {"Known": "4 channels (latents), 9 (inpainting)", "Got": channels},
            "sample this checkpoint in ComfyUI: `lora-workbench run --comfyui`.",
        )
    if mask is not None:
        return torch.cat([mask.round(), latent], dim=1)
    black = torch.tensor(_BLACK, device=latent.device).view(1, 4, 1, 1).expand_as(latent)
    return torch.cat([torch.ones_like(latent[:, :1]), black], dim=1)


def _other_family(part: DiffusionPart, expected: str, got: str) -> LoraError:
    return LoraError(
        "This conditioning was encoded for another family of models.",
        {"Model": part.family, "Expected": expected, "Got": got},
        "encode the prompt with the CLIP of the checkpoint that samples.",
    )
