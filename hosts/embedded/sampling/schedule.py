"""Noise levels by timestep, as Stable Diffusion was trained.

Throughout this package ``sigma`` is the noise's standard deviation beside unscaled data:
``x = x0 + sigma * noise`` (arXiv:2206.00364). Sigmas are scalars or short vectors in float32 on
the CPU, wherever the latents are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels that a UNet knows.

    Attributes:
        sigmas: By timestep, ascending, ``(timesteps,)``, float32.
        log_sigmas: Their logarithms, taken before the rounding to float32.
    """

    sigmas: Tensor
    log_sigmas: Tensor

    @property
    def sigma_min(self) -> float:
        """Noise at timestep 0."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """Noise at the last timestep."""
        return float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep whose sigma is nearest in the logarithm, the first of equally near ones.

        Args:
            sigma: ``()`` or ``(n,)``, above 0.

        Returns:
            Int64 of the same shape.
        """
        return (sigma.log()[..., None] - self.log_sigmas).abs().argmin(dim=-1)

    def sigma(self, timestep: Tensor) -> Tensor:
        """Noise at a fractional timestep: linear between its neighbours in the logarithm.

        Args:
            timestep: ``()`` or ``(n,)``; what lies outside the table counts as its end.

        Returns:
            Float32 of the same shape.
        """
        inside = timestep.float().clamp(0, len(self.sigmas) - 1)
        below, above = self.log_sigmas[inside.floor().long()], self.log_sigmas[inside.ceil().long()]
        fraction = inside.frac()
        return ((1 - fraction) * below + fraction * above).exp()


def scaled_linear_schedule(
    first: float = 0.00085, last: float = 0.012, timesteps: int = 1000
) -> NoiseSchedule:
    """The schedule of SD1, SD2 and SDXL: the square roots of the betas are evenly spaced.

    Args:
        first: Beta, the variance that the first timestep adds.
        last: Beta of the last timestep.
        timesteps: How many there are.

    Source: arXiv:2112.10752, whose betas these are; sigma^2 = (1 - alpha_bar) / alpha_bar.
    """
    betas = torch.linspace(first**0.5, last**0.5, timesteps, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)  # alpha_bar
    sigmas = ((1 - kept) / kept).sqrt()
    return NoiseSchedule(sigmas.float(), sigmas.log().float())
