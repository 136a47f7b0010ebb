"""Between pictures ``(batch, height, width, 3)`` from 0 to 1 and latents ``(batch, 4, h, w)``.

Latents here are the VAE's own, as they travel between nodes; the UNet works on ``latent_scale``
times them. TAESD works on the UNet's (both facts as in ComfyUI 0.30).
"""

import torch
from torch import Tensor

from .parts import VaePart

_SCALE = 8  # pixels a latent covers


def decoded(part: VaePart, latents: Tensor) -> Tensor:
    """Pictures of latents, float32, clamped to 0 to 1."""
    with torch.inference_mode():
        values = latents * part.latent_scale if _is_tiny(part) else latents
        pixels = part.vae.decode(values.to(part.vae.dtype)).sample
        return pixels.float().add(1.0).div(2.0).clamp(0.0, 1.0).movedim(1, -1).contiguous()


def encoded(part: VaePart, pictures: Tensor) -> Tensor:
    """Latents of pictures, float32: the mean of the VAE's distribution, so nothing is random.

    What is more than a multiple of 8 pixels is cut off on all sides; alpha is dropped.
    """
    with torch.inference_mode():
        pixels = _cropped(pictures)[..., :3].movedim(-1, 1) * 2.0 - 1.0
        out = part.vae.encode(pixels.to(part.vae.dtype))
        if _is_tiny(part):
            return out.latents.float() / part.latent_scale
        return out.latent_dist.mode().float()


def _is_tiny(part: VaePart) -> bool:
    return type(part.vae).__name__ == "AutoencoderTiny"


def _cropped(pictures: Tensor) -> Tensor:
    for dim in (1, 2):
        size = pictures.shape[dim]
        kept = size // _SCALE * _SCALE
        pictures = pictures.narrow(dim, (size - kept) // 2, kept)
    return pictures
