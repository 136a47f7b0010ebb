"""Where noise comes from: seeded, and the same numbers as ComfyUI draws."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ....lora_core.errors import LoraError

Noise = Callable[[Tensor, Tensor], Tensor]
"""Gives unit noise of the latents' shape for the way from one sigma to the next."""

_SEEDS = 2**64
_TREE_DIGITS = 6  # of torchsde's default tolerance, 1e-6


def starting_noise(
    shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None
) -> Tensor:
    """The noise that a run starts from, drawn on the CPU.

    Args:
        shape: Of the latents, ``(batch, channels, height, width)``.
        seed: 0 to 2^64 - 1.
        batch_index: The place of each latent in the batch it was made in, when the batch was taken
            apart: each gets the noise of that place. Then one latent is drawn at a time.

    Returns:
        ``shape``, float32.
    """
    generator = torch.Generator().manual_seed(seed)
    if batch_index is None:
        return torch.randn(*shape, generator=generator)
    drawn = [torch.randn(1, *shape[1:], generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([drawn[index] for index in batch_index])


def next_seed(seed: int) -> int:
    """The seed after this one, in a circle."""
    return (seed + 1) % _SEEDS


def gaussian_noise(x: Tensor, sigmas: Tensor, seed: int) -> Noise:
    """Independent noise at each call, on the latents' own device.

    The starting noise comes from the CPU's generator with ``seed``; there the next seed is taken,
    so that the first step does not add the same numbers again.
    """
    own_seed = next_seed(seed) if x.device.type == "cpu" else seed
    generator = torch.Generator(device=x.device).manual_seed(own_seed)

    def draw(sigma: Tensor, after: Tensor) -> Tensor:
        return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)

    return draw


def brownian_noise(x: Tensor, sigmas: Tensor, seed: int) -> Noise:
    """Increments of one Brownian path over sigma, whatever steps it is cut into; on the CPU.

    Raises:
        LoraError: torchsde is not installed.
    """
    torchsde = _torchsde()
    # torchsde rounds the ends of the path so, and warns of a question a hair beyond them.
    ends = (sigmas[sigmas > 0].min(), sigmas.max())
    low, high = (round(float(end), _TREE_DIGITS) for end in ends)
    tree = torchsde.BrownianTree(low, torch.zeros(x.shape), high, entropy=seed)

    def draw(sigma: Tensor, after: Tensor) -> Tensor:
        start, end = (min(max(float(level), low), high) for level in (after, sigma))
        return (-tree(start, end) / (sigma - after).sqrt()).to(x.device)

    return draw


def _torchsde() -> Any:
    try:
        import torchsde
    except ImportError as error:
        raise LoraError(
            "The sampler dpmpp_2m_sde needs torchsde, which is not installed.",
            {"Cause": error},
            'run: pip install "comfyui-lora-workbench[headless]", or choose another sampler.',
        ) from error
    return torchsde
