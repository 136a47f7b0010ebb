"""Which noise levels a run visits."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ....lora_core.errors import LoraError, UnknownChoiceError
from .schedule import NoiseSchedule

Scheduler = Callable[[NoiseSchedule, int], Tensor]
"""Gives the sigmas of so many steps, descending, without the final 0."""

_FULL = 0.9999  # a denoise above this is all of it
_RHO = 7.0


def sigmas_for(
    schedule: NoiseSchedule,
    scheduler: str,
    steps: int,
    denoise: float = 1.0,
    drop_penultimate: bool = False,
) -> Tensor:
    """The noise levels of a run, from the first to 0.

    Args:
        schedule: What the UNet knows.
        scheduler: A name of ``SCHEDULERS``.
        steps: At least 1. ``ddim_uniform`` takes a step more where 1000 is not divisible.
        denoise: Below 1 the run is the last ``steps`` of ``steps / denoise``; 0 or less is no run.
        drop_penultimate: Leave out the lowest level above 0, and choose one more before it.

    Returns:
        ``(steps + 1,)``, descending, the last one 0; ``(0,)`` when nothing is to be done.

    Raises:
        UnknownChoiceError: no such scheduler.
        LoraError: fewer steps than 1.
    """
    if scheduler not in SCHEDULERS:
        raise UnknownChoiceError("scheduler", scheduler, SCHEDULERS)
    if steps < 1:
        raise LoraError(
            "A run needs at least one step.",
            {"Expected": "steps of 1 or more", "Got": steps},
            "set steps to 20 or so; a denoise of 0 leaves the latents as they are.",
        )
    if denoise <= 0.0:
        return torch.zeros(0)
    total = steps if denoise > _FULL else int(steps / denoise)
    sigmas = SCHEDULERS[scheduler](schedule, total + 1 if drop_penultimate else total)
    if drop_penultimate:
        sigmas = sigmas[:-1]
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    return sigmas if denoise > _FULL else sigmas[-(steps + 1) :]


def normal(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced timesteps, the first and the last included."""
    return schedule.sigma(torch.linspace(len(schedule.sigmas) - 1, 0, steps))


def sgm_uniform(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced timesteps, timestep 0 left out."""
    return schedule.sigma(torch.linspace(len(schedule.sigmas) - 1, 0, steps + 1)[:-1])


def karras(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced in sigma^(1/7).

    Source: arXiv:2206.00364, eq. 5, with sigma_min and sigma_max of the table.
    """
    low, high = schedule.sigma_min ** (1 / _RHO), schedule.sigma_max ** (1 / _RHO)
    return (high + torch.linspace(0, 1, steps) * (low - high)) ** _RHO


def exponential(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Evenly spaced in log sigma."""
    low, high = math.log(schedule.sigma_min), math.log(schedule.sigma_max)
    return torch.linspace(high, low, steps).exp()


def simple(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Entries of the table, evenly spaced from its end, positions rounded towards the end."""
    stride = len(schedule.sigmas) / steps
    return schedule.sigmas[[-1 - int(step * stride) for step in range(steps)]]


def ddim_uniform(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Entries of the table at a whole distance from timestep 1 up, as many as there are.

    Source: arXiv:2010.02502, appendix D.2, "linear".
    """
    stride = max(len(schedule.sigmas) // steps, 1)
    return schedule.sigmas[1::stride].flip(0)


SCHEDULERS: Mapping[str, Scheduler] = MappingProxyType(
    {
        "normal": normal,
        "karras": karras,
        "exponential": exponential,
        "simple": simple,
        "sgm_uniform": sgm_uniform,
        "ddim_uniform": ddim_uniform,
    }
)
