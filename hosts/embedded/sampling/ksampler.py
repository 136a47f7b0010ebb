"""KSampler: from latents and two prompts to latents."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ....lora_core.errors import ShapeMismatchError, UnknownChoiceError
from ..parts import DiffusionPart
from .denoiser import Denoiser, unet_call
from .masks import fitted_mask, keeping
from .noise import next_seed, starting_noise
from .prompts import ConditioningLike, input_channels, prompt_of
from .samplers import SAMPLERS, Denoise, Sampler
from .schedule import NoiseSchedule, scaled_linear_schedule
from .schedulers import sigmas_for

Callback = Callable[[int, Tensor, Tensor, int], None]
"""``(step, x0, x, steps)``, from step 0; raising from it ends the run."""

_CHANNELS = 4


@torch.no_grad()
def sample(
    part: DiffusionPart,
    positive: ConditioningLike,
    negative: ConditioningLike,
    latent: Tensor,
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    denoise: float = 1.0,
    callback: Callback | None = None,
    noise_mask: Tensor | None = None,
    batch_index: Sequence[int] | None = None,
) -> Tensor:
    """Denoise latents as ComfyUI's KSampler does.

    Args:
        part: The UNet.
        positive: Text to go towards.
        negative: Text to keep away from.
        latent: Latents as the VAE gives them, ``(batch, 4, height, width)``; zeros for a new
            picture.
        seed: 0 to 2^64 - 1; the same seed gives the same bits.
        steps: At least 1.
        cfg: Guidance; 1 is none.
        sampler: A name of ``SAMPLERS``.
        scheduler: A name of ``SCHEDULERS``.
        denoise: The share of the noise to start with, 0 to 1.
        callback: Hears of each step; its latents are scaled as the UNet sees them.
        noise_mask: See ``fitted_mask``.
        batch_index: See ``starting_noise``.

    Returns:
        Latents for the VAE, of the shape and on the device of ``latent``, float32.

    Raises:
        UnknownChoiceError: no such sampler or scheduler.
        LoraError: the inputs are for another family of models, or see ``sigmas_for``.
    """
    if sampler not in SAMPLERS:
        raise UnknownChoiceError("sampler", sampler, SAMPLERS)
    if latent.ndim != 4 or latent.shape[1] != _CHANNELS:
        raise _not_latents(latent)
    chosen, schedule = SAMPLERS[sampler], scaled_linear_schedule()
    sigmas = sigmas_for(schedule, scheduler, steps, denoise, chosen.drop_penultimate)
    if len(sigmas) == 0:
        return latent
    device = next(part.unet.parameters()).device
    start = latent.to(device, torch.float32) * part.latent_scale
    noise = starting_noise(latent.shape, seed, batch_index).to(device)
    mask = None if noise_mask is None else fitted_mask(noise_mask, start.shape).to(device)
    estimate: Denoise = Denoiser(
        unet_call(part),
        schedule,
        part.prediction,
        prompt_of(part, positive, "positive", start),
        prompt_of(part, negative, "negative", start),
        cfg,
        input_channels(part, start, mask),
    )
    if mask is not None:
        kept = _mask_noise(chosen, noise, seed)
        estimate = keeping(estimate, mask, start, kept)
    x = noised(schedule, start, noise, sigmas[0])
    report = _reporting(callback, len(sigmas) - 1)
    x = chosen.walk(estimate, x, sigmas, chosen.noise(x, sigmas, seed), report)
    return (x / part.latent_scale).to(latent.device)


def noised(schedule: NoiseSchedule, latent: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Latents with the noise that a run starts with.

    At the end of the table the UNet was trained on nearly pure noise of unit variance, so there
    the noise is a little stronger: sqrt(sigma^2 + 1).
    """
    level = float(sigma)
    at_the_end = level > schedule.sigma_max or math.isclose(level, schedule.sigma_max, rel_tol=1e-5)
    return latent + noise * ((sigma**2 + 1).sqrt() if at_the_end else sigma)


def _mask_noise(sampler: Sampler, noise: Tensor, seed: int) -> Tensor:
    """What the latents outside a mask are noised with."""
    if not sampler.fresh_mask_noise:
        return noise
    return starting_noise(noise.shape, next_seed(seed)).to(noise.device)


def _reporting(callback: Callback | None, steps: int) -> Callable[[int, Tensor, Tensor], None]:
    def report(step: int, x0: Tensor, x: Tensor) -> None:
        if callback is not None:
            callback(step, x0, x, steps)

    return report


def _not_latents(latent: Tensor) -> ShapeMismatchError:
    return ShapeMismatchError(
        "These are not latents of SD1, SD2 or SDXL.",
        {"Expected": f"(batch, {_CHANNELS}, height, width)", "Got": tuple(latent.shape)},
        "use Empty Latent Image or VAE Encode.",
    )
