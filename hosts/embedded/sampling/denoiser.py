"""From a UNet's answer to an estimate of the clean latents, guided by two prompts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..parts import DiffusionPart, Prediction
from .schedule import NoiseSchedule

UNetCall = Callable[[Tensor, Tensor, Tensor, Mapping[str, Tensor] | None], Tensor]
"""``(x, timestep, context, extra) -> noise or velocity``.

``x`` is ``(n, channels, height, width)`` and has the variance of data; ``timestep`` ``(n,)``
float32; ``context`` ``(n, tokens, width)``; ``extra`` are SDXL's inputs, ``(n, ...)``.
"""

_MAX_REPEATS = 4  # of the shorter prompt, to share a batch with the longer one


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the UNet is told of one prompt.

    Attributes:
        context: ``(1, tokens, width)``.
        extra: SDXL's further inputs by name, ``(1, ...)`` each; None where the UNet has none.
    """

    context: Tensor
    extra: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Denoiser:
    """Estimates x0, with classifier-free guidance.

    Attributes:
        unet: See ``UNetCall``.
        schedule: Gives the timestep of a sigma.
        prediction: What the UNet gives.
        positive: Towards this prompt,
        negative: away from this one;
        cfg: ``cfg`` times their difference from the negative. At 1 the negative is not asked.
        channels: Further channels of the UNet's input, ``(batch, more, height, width)``.

    Source: arXiv:2207.12598, eq. 6, with cfg = w + 1, on estimates of x0.
    """

    unet: UNetCall
    schedule: NoiseSchedule
    prediction: Prediction
    positive: Prompt
    negative: Prompt
    cfg: float
    channels: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 of ``x``, whose noise is ``sigma``, a scalar."""
        if math.isclose(self.cfg, 1.0):
            return self._estimate(x, sigma, self.positive)
        if _share_a_batch(self.negative, self.positive):
            both = self._estimate(x, sigma, self.negative, self.positive)
            negative, positive = both.chunk(2)
        else:
            negative = self._estimate(x, sigma, self.negative)
            positive = self._estimate(x, sigma, self.positive)
        return negative + (positive - negative) * self.cfg

    def _estimate(self, x: Tensor, sigma: Tensor, *prompts: Prompt) -> Tensor:
        """x0 for each prompt, ``(prompts * batch, channels, height, width)``."""
        batch = len(x)
        x = torch.cat([x] * len(prompts))
        scaled = x / (sigma**2 + 1).sqrt()
        if self.channels is not None:
            scaled = torch.cat([scaled, torch.cat([self.channels] * len(prompts))], dim=1)
        timestep = self.schedule.timestep(sigma).float().to(x.device).expand(len(x))
        answer = self.unet(scaled, timestep, _contexts(prompts, batch), _extras(prompts, batch))
        return x0_of(self.prediction, x, answer, sigma)


def x0_of(prediction: Prediction, x: Tensor, answer: Tensor, sigma: Tensor) -> Tensor:
    """The clean latents that a UNet's answer means.

    Args:
        prediction: What the answer is.
        x: Noisy latents.
        answer: Noise or velocity, of the shape of ``x``.
        sigma: Noise in ``x``, a scalar.

    Source: epsilon, arXiv:2006.11239, eq. 15; velocity, arXiv:2202.00512, appendix D, with
    alpha = 1 / sqrt(sigma^2 + 1).
    """
    if prediction == "epsilon":
        return x - answer * sigma
    return x / (sigma**2 + 1) - answer * sigma / (sigma**2 + 1).sqrt()


def unet_call(part: DiffusionPart) -> UNetCall:
    """A diffusers UNet as the denoiser calls it: in its own precision, the answer in float32."""
    dtype = next(part.unet.parameters()).dtype

    def call(
        x: Tensor, timestep: Tensor, context: Tensor, extra: Mapping[str, Tensor] | None
    ) -> Tensor:
        (answer,) = part.unet(
            x.to(dtype),
            timestep,
            encoder_hidden_states=context.to(dtype),
            added_cond_kwargs=extra,
            return_dict=False,
        )
        return answer.float()

    return call


def _share_a_batch(one: Prompt, other: Prompt) -> bool:
    tokens = (one.context.shape[1], other.context.shape[1])
    return math.lcm(*tokens) // min(tokens) <= _MAX_REPEATS


def _contexts(prompts: tuple[Prompt, ...], batch: int) -> Tensor:
    """Contexts of one length: attention over a repeated sequence is that over the sequence."""
    tokens = math.lcm(*(prompt.context.shape[1] for prompt in prompts))
    repeated = [p.context.repeat(batch, tokens // p.context.shape[1], 1) for p in prompts]
    return torch.cat(repeated)


def _extras(prompts: tuple[Prompt, ...], batch: int) -> Mapping[str, Tensor] | None:
    extras = [prompt.extra for prompt in prompts if prompt.extra is not None]
    if not extras:
        return None
    return {
        name: torch.cat([extra[name].repeat(batch, 1) for extra in extras]) for name in extras[0]
    }
