"""Latents that a run leaves as they are."""

from torch import Tensor
from torch.nn.functional import interpolate

from .samplers import Denoise


def fitted_mask(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask at the latents' size.

    Args:
        mask: 1 where to paint, ``(..., height, width)`` in pixels or latents; one, or one each.
        shape: Of the latents, ``(batch, channels, height, width)``.

    Returns:
        ``(batch, 1, height, width)``, float32; a shorter batch is repeated, a longer one cut.
    """
    flat = mask.float().reshape(-1, 1, *mask.shape[-2:])
    resized = interpolate(flat, size=shape[-2:], mode="bilinear")
    return resized.repeat(-(-shape[0] // len(resized)), 1, 1, 1)[: shape[0]]


def keeping(denoise: Denoise, mask: Tensor, latent: Tensor, noise: Tensor) -> Denoise:
    """A denoiser that knows the latents outside the mask, and paints the rest to fit them.

    Args:
        denoise: Paints.
        mask: See ``fitted_mask``.
        latent: What is there, as the UNet sees it.
        noise: What it is noised with, unit variance.
    """

    def masked(x: Tensor, sigma: Tensor) -> Tensor:
        seen = x * mask + (noise * sigma + latent) * (1 - mask)
        return denoise(seen, sigma) * mask + latent * (1 - mask)

    return masked
