"""What the model is asked for at one noise level, and what an error costs.

Shapes: latents ``(n, channels, height, width)``; what is per sample ``(n,)``; all float32.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .config import ObjectiveConfig
from .randomness import generator

Prediction = Literal["epsilon", "v_prediction", "flow"]
"""Noise (arXiv:2006.11239), velocity (arXiv:2202.00512, appendix D), or noise - data
(arXiv:2210.02747, for straight paths)."""


@dataclass(frozen=True, eq=False)
class NoiseLevels:
    """The noise that a model knows.

    Attributes:
        prediction: What it gives.
        signal: Share of the data by timestep, ``(timesteps,)``, float64: sqrt(alpha_bar), or
            1 - t for a flow.
        noise: Share of the noise by timestep.
    """

    prediction: Prediction
    signal: Tensor
    noise: Tensor

    @classmethod
    def of_alphas(cls, prediction: Prediction, alphas_cumprod: Tensor) -> "NoiseLevels":
        """Of a diffusion model's alpha_bar, ``(timesteps,)``, least noise first."""
        kept = alphas_cumprod.double().cpu()
        return cls(prediction, kept.sqrt(), (1 - kept).sqrt())

    @property
    def snr(self) -> Tensor:
        """Signal to noise, ``(timesteps,)``, float64."""
        return (self.signal / self.noise) ** 2

    def mixed(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents, as the model reads them."""
        return self._at(self.signal, timesteps, latents) * latents + (
            self._at(self.noise, timesteps, latents) * noise
        )

    def wanted(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should give for ``mixed``."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - latents
        signal, level = (self._at(x, timesteps, latents) for x in (self.signal, self.noise))
        return signal * noise - level * latents

    @staticmethod
    def _at(table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        return table[timesteps.cpu()].to(like.device, like.dtype)[:, None, None, None]


def timestep_range(levels: NoiseLevels, config: ObjectiveConfig) -> tuple[int, int]:
    """The least and the most noise that is trained, both included."""
    last = len(levels.signal) - 1 if config.last_timestep is None else config.last_timestep
    return config.first_timestep, last


def drawn_timestep(levels: NoiseLevels, config: ObjectiveConfig, seed: int, *key: int) -> Tensor:
    """The timestep of one sample, ``()``, int64, evenly among those asked for."""
    first, last = timestep_range(levels, config)
    numbers = generator(seed, "timestep", *key)
    return torch.randint(first, last + 1, (), generator=numbers)


def drawn_noise(
    shape: tuple[int, ...], config: ObjectiveConfig, seed: int, *key: str | int
) -> Tensor:
    """The noise of one sample, ``(channels, height, width)``, float32, on the CPU.

    With a noise offset each channel is moved as a whole (Nicholas Guttenberg, "Diffusion with
    Offset Noise", 2023).
    """
    numbers = generator(seed, "noise", *key)
    noise = torch.randn(shape, generator=numbers)
    if config.noise_offset:
        noise += config.noise_offset * torch.randn((shape[0], 1, 1), generator=numbers)
    return noise


def sample_losses(
    answer: Tensor, wanted: Tensor, config: ObjectiveConfig, mask: Tensor | None = None
) -> Tensor:
    """The loss of each sample: the mean over its latent, or over where its mask is.

    Args:
        answer: The model's.
        wanted: Of the same shape.
        config: Which loss.
        mask: ``(n, 1, height, width)``, 0 to 1; None counts everything.
    """
    losses = _elementwise(answer.float(), wanted.float(), config)
    if mask is None:
        return losses.flatten(1).mean(dim=1)
    counted = mask.expand_as(losses)
    return (losses * counted).flatten(1).sum(dim=1) / counted.flatten(1).sum(dim=1).clamp(min=1e-6)


def snr_weights(levels: NoiseLevels, timesteps: Tensor, gamma: float) -> Tensor:
    """Weights by signal to noise, ``(n,)``: arXiv:2303.09556, section 3.4.

    min(SNR, gamma) / SNR for epsilon, over SNR + 1 for velocity; 1 for all where ``gamma`` is 0.
    The SNR is that of the model's own schedule; at SNR 0 the weight is the limit.
    """
    if not gamma:
        return torch.ones(len(timesteps))
    snr = levels.snr[timesteps.cpu()]
    if levels.prediction == "epsilon":
        return torch.where(snr > gamma, gamma / snr, 1.0).float()
    return (snr.clamp(max=gamma) / (snr + 1)).float()


def _elementwise(answer: Tensor, wanted: Tensor, config: ObjectiveConfig) -> Tensor:
    if config.loss == "mse":
        return functional.mse_loss(answer, wanted, reduction="none")
    if config.loss == "huber":
        return functional.huber_loss(answer, wanted, reduction="none", delta=config.huber_delta)
    return functional.smooth_l1_loss(answer, wanted, reduction="none", beta=config.huber_delta)
