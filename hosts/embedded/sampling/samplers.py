"""How a run gets from one noise level to the next.

Every sampler is ``(denoise, x, sigmas, noise, report) -> x``. ``denoise(x, sigma)`` estimates the
clean latents x0; ``sigmas`` is ``(steps + 1,)``, descending; ``report(step, x0, x)`` hears of each
step once, after its first estimate, and ends the run by raising.
In these coordinates (``schedule``) the ODE is dx / dsigma = (x - x0) / sigma (arXiv:2206.00364,
eq. 4), and the papers' alpha is 1.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

from .noise import Noise, brownian_noise, gaussian_noise

Denoise = Callable[[Tensor, Tensor], Tensor]
Report = Callable[[int, Tensor, Tensor], None]
Walk = Callable[[Denoise, Tensor, Tensor, Noise, Report], Tensor]


@dataclass(frozen=True)
class Sampler:
    """A sampler and what it needs.

    Attributes:
        walk: See the module.
        noise: Makes its source of noise; nothing is drawn where it adds none.
        drop_penultimate: Whether its schedule leaves out the lowest level above 0.
        fresh_mask_noise: Whether what a mask keeps gets noise of its own in place of the starting
            noise.
    """

    walk: Walk
    noise: Callable[[Tensor, Tensor, int], Noise] = gaussian_noise
    drop_penultimate: bool = False
    fresh_mask_noise: bool = False


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, report: Report) -> Tensor:
    """Euler steps.

    Source: arXiv:2206.00364, algorithm 1 without its second-order correction. The same step is
    DDIM's (arXiv:2010.02502, eq. 13).
    """
    for step, sigma, after in _steps(sigmas):
        x0 = denoise(x, sigma)
        report(step, x0, x)
        x = x + _slope(x, x0, sigma) * (after - sigma)
    return x


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, report: Report
) -> Tensor:
    """Euler steps to below the next level, then noise up to it.

    Source: arXiv:2011.13456, appendix F, ancestral sampling of variance-exploding models.
    """
    for step, sigma, after in _steps(sigmas):
        x0 = denoise(x, sigma)
        report(step, x0, x)
        up = torch.minimum(after, (after**2 * (sigma**2 - after**2) / sigma**2).sqrt())
        down = (after**2 - up**2).sqrt()
        if down == 0:
            x = x0
        else:
            x = x + _slope(x, x0, sigma) * (down - sigma) + noise(sigma, after) * up
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, report: Report) -> Tensor:
    """The mean of the slopes at both ends of a step; two estimates a step, one in the last.

    Source: arXiv:2206.00364, algorithm 1.
    """
    for step, sigma, after in _steps(sigmas):
        x0 = denoise(x, sigma)
        report(step, x0, x)
        slope = _slope(x, x0, sigma)
        if after > 0:
            end = x + slope * (after - sigma)
            slope = (slope + _slope(end, denoise(end, after), after)) / 2
        x = x + slope * (after - sigma)
    return x


def dpm_2(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, report: Report) -> Tensor:
    """The slope at the middle, in log sigma, of a step; two estimates a step, one in the last.

    Source: arXiv:2206.00927, algorithm 1 (DPM-Solver-2) with r1 = 1/2.
    """
    for step, sigma, after in _steps(sigmas):
        x0 = denoise(x, sigma)
        report(step, x0, x)
        slope = _slope(x, x0, sigma)
        if after > 0:
            # The nearest timestep can hang on the last bit, so this is not sqrt(sigma * after).
            middle = torch.lerp(sigma.log(), after.log(), 0.5).exp()
            half = x + slope * (middle - sigma)
            slope = _slope(half, denoise(half, middle), middle)
        x = x + slope * (after - sigma)
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, report: Report) -> Tensor:
    """x0 extrapolated through the last two estimates to the middle of the step.

    Source: arXiv:2211.01095, algorithm 2, with h = log(sigma / after). The last step is of first
    order.
    """
    last, last_h = None, None
    for step, sigma, after in _steps(sigmas):
        x0 = denoise(x, sigma)
        report(step, x0, x)
        h = sigma.log() - after.log()
        aim = x0 if last is None or after == 0 else x0 + (x0 - last) * (h / (2 * last_h))
        x = (after / sigma) * x + (sigma - after) / sigma * aim
        last, last_h = x0, h
    return x


def dpmpp_2m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, report: Report
) -> Tensor:
    """As ``dpmpp_2m``, of the diffusion SDE: each step replaces as much noise as it removes.

    Source: arXiv:2211.01095, SDE-DPM-Solver++(2M); exp(-h) = after / sigma.
    """
    last, last_h = None, None
    for step, sigma, after in _steps(sigmas):
        x0 = denoise(x, sigma)
        report(step, x0, x)
        h = sigma.log() - after.log()
        if after == 0:
            return x0
        aim = x0 if last is None else x0 + (x0 - last) * (h / (2 * last_h))
        removed = -torch.expm1(-2 * h)
        x = (after / sigma) ** 2 * x + removed * aim + noise(sigma, after) * after * removed.sqrt()
        last, last_h = x0, h
    return x


def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise, report: Report) -> Tensor:
    """The estimate itself, noised up to the next level.

    Source: arXiv:2310.04378, multistep latent consistency sampling.
    """
    for step, sigma, after in _steps(sigmas):
        x0 = denoise(x, sigma)
        report(step, x0, x)
        x = x0 if after == 0 else x0 + noise(sigma, after) * after
    return x


SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "euler": Sampler(euler),
        "euler_ancestral": Sampler(euler_ancestral),
        "heun": Sampler(heun),
        "dpm_2": Sampler(dpm_2, drop_penultimate=True),
        "dpmpp_2m": Sampler(dpmpp_2m),
        "dpmpp_2m_sde": Sampler(dpmpp_2m_sde, brownian_noise),
        "lcm": Sampler(lcm),
        "ddim": Sampler(euler, fresh_mask_noise=True),
    }
)


def _steps(sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, sigma and next sigma of each step."""
    for step, (sigma, after) in enumerate(pairwise(sigmas)):
        yield step, sigma, after


def _slope(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The ODE's dx / dsigma."""
    return (x - x0) / sigma
