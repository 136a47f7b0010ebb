"""The decoder of the demo's autoencoder: no diffusion, so a stage of its own beside the trainer."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from demo_model_parts import new_vae
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lora_workbench.headless.demo_model.pictures import (
    SIZE,
    STYLES,
    TILE,
    Scene,
    draw_scene,
    tiled,
)
from lora_workbench.training.randomness import generator

_RATE, _WARMUP, _BETAS, _DECAY, _NORM = 4e-3, 100, (0.9, 0.99), 0.01, 1.0
_NOISE = 0.3  # of latents before their scale, whose standard deviation is about 5
# Side in pixels, scenes of a batch, share of the run: small crops show more colours.
_CROPS = ((32, 6, 0.5), (64, 2, 0.35), (128, 1, 0.15))


def train_decoder(vae: AutoencoderKL, scenes: Sequence[Scene], steps: int, seed: int) -> None:
    """Give an autoencoder a new decoder for its latents; the same arguments give the same bits.

    The latents of a scene in neon, plus those of its tiles, less the plain ones are decoded as neon
    in tiles: what two LoRAs on one model make, which add, stays among what the decoder knows.

    Args:
        vae: Its encoder stays as it is.
        scenes: Are drawn in every style.
        steps: Of the optimiser.
        seed: Of the start and of all that is drawn by chance.
    """
    _start_anew(vae, seed)
    drawn = _drawn(scenes)
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=_RATE, betas=_BETAS, weight_decay=_DECAY)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * _rate_factor(step, steps)
        optimiser.zero_grad()
        _loss(vae, drawn, step / steps, generator(seed, "d", step)).backward()
        nn.utils.clip_grad_norm_(parameters, _NORM)
        optimiser.step()
    vae.requires_grad_(False)


def _start_anew(vae: AutoencoderKL, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = new_vae()
    vae.decoder.load_state_dict(fresh.decoder.state_dict())
    vae.post_quant_conv.load_state_dict(fresh.post_quant_conv.state_dict())


def _drawn(scenes: Sequence[Scene]) -> Tensor:
    """Each scene in each style, then as neon in tiles: ``(n, 4, 3, 128, 128)``, uint8."""
    rows = [
        [*(draw_scene(scene, style) for style in STYLES), tiled(draw_scene(scene, "neon"))]
        for scene in scenes
    ]
    pixels = np.stack([np.stack([np.asarray(picture) for picture in row]) for row in rows])
    return torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous()


def _rate_factor(step: int, steps: int) -> float:
    """A short warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _loss(vae: AutoencoderKL, drawn: Tensor, done: float, numbers: torch.Generator) -> Tensor:
    """Of one batch of crops; ``done`` is the share of the run before it."""
    x = _crops(drawn, done, numbers)  # (n, 4, 3, side, side)
    z = _latents(vae, x)
    noisy = z + _NOISE * torch.randn(z.shape, generator=numbers)
    error = vae.decode(noisy).sample - x.flatten(0, 1)
    return error.abs().mean() + error.square().mean()


def _crops(drawn: Tensor, done: float, numbers: torch.Generator) -> Tensor:
    """Some scenes at one place, ``(n, 4, 3, side, side)``, -1 to 1."""
    ends = np.cumsum([share for *_, share in _CROPS])
    side, count, _ = _CROPS[min(int((done >= ends).sum()), len(_CROPS) - 1)]
    places = (SIZE - side) // TILE + 1
    top, left = (TILE * torch.randint(places, (2,), generator=numbers)).tolist()
    chosen = drawn[torch.randint(len(drawn), (count,), generator=numbers)]
    return chosen[..., top : top + side, left : left + side].float() / 127.5 - 1


@torch.no_grad()
def _latents(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Of crops ``(n, 4, ...)`` as their pictures come: ``(4 n, 4, side / 8, side / 8)``."""
    styles = x[:, : len(STYLES)]
    z = vae.encode(styles.flatten(0, 1)).latent_dist.mean
    plain, neon, mosaic = z.unflatten(0, styles.shape[:2]).unbind(1)
    return torch.stack([plain, neon, mosaic, neon + mosaic - plain], dim=1).flatten(0, 1)
