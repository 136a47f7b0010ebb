"""What moves the factors: the optimiser with its schedule, fp16's scaler, and the average."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from .average import Average
from .config import TrainConfig
from .moved import Moved
from .optimizer import make_optimizer, parameters_of
from .processes import Processes
from .state import pack_optimizer, unpack_optimizer


class Mover:
    """Turns gradients into steps.

    Args:
        factors: All that is trained.
        config: The run's.
        steps: Optimiser steps of the run.
        device: Of the factors.
        is_half: Whether gradients pass through fp16, whose small ones vanish unless scaled up.

    Attributes:
        is_moving: Whether a step is half done.
    """

    def __init__(
        self,
        factors: Sequence[Moved],
        config: TrainConfig,
        steps: int,
        device: torch.device,
        is_half: bool,
    ) -> None:
        self._optimizer, self._schedule = make_optimizer(factors, config.optimizer, steps)
        self._parameters = parameters_of(self._optimizer)
        for parameter in self._parameters:  # so that a process without a sample has them too
            parameter.grad = torch.zeros_like(parameter)
        self._average = Average(self._parameters, config.run.ema)
        self._limit = config.optimizer.clip_norm or float("inf")
        self._scaler = torch.amp.GradScaler(device.type, enabled=is_half)
        self.is_moving = False

    @property
    def is_whole(self) -> bool:
        """Whether the factors are those after a step, and may be saved."""
        return not (self.is_moving or self._average.is_shown)

    @property
    def is_finite(self) -> bool:
        """Whether all factors are numbers."""
        return all(bool(each.isfinite().all()) for each in self._parameters)

    @property
    def moves(self) -> int:
        """Steps that moved the factors; fp16's overflows move nothing."""
        return int(self._schedule.last_epoch)

    @property
    def may_skip(self) -> bool:
        """Whether gradients that are no numbers may be fp16's: at scales below 1 they are not."""
        return self._scaler.is_enabled() and self._scaler.get_scale() >= 1

    @property
    def rate(self) -> float:
        """The largest learning rate of the groups, for the next step."""
        return max(self._schedule.get_last_lr())

    def clear(self) -> None:
        """Gradients become 0."""
        self._optimizer.zero_grad(set_to_none=False)

    def add_gradients(self, loss: Tensor) -> None:
        """Add those of a loss."""
        self._scaler.scale(loss).backward()

    def add_nothing(self, device: torch.device) -> None:
        """In a process without a sample: the scaler wants to be asked in every step."""
        self._scaler.scale(torch.zeros((), device=device))

    def step(self, processes: Processes) -> float:
        """Move by the gradients of all processes; gives their norm before clipping.

        Where gradients are no numbers nothing moves; with fp16 the scale is lowered.
        """
        scale = self._scaler.get_scale()
        processes.sum_gradients(self._parameters)
        self._scaler.unscale_(self._optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._limit))
        if not self._scaler.is_enabled() and not math.isfinite(norm):
            return norm
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._scaler.get_scale() >= scale:
            self._schedule.step()
            self._average.step()
        return norm

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the factors are their average, where the run keeps one."""
        return self._average.shown()

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that ``load`` needs: tensors by name, and JSON data."""
        tensors = {f"factor.{i}": each.detach() for i, each in enumerate(self._parameters)}
        optimizer, facts = pack_optimizer(self._optimizer.state_dict())
        tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
        tensors |= {f"average.{name}": value for name, value in self._average.tensors().items()}
        return tensors, {
            "optimizer": facts,
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from what ``saved`` gave."""
        with torch.no_grad():
            for index, parameter in enumerate(self._parameters):
                parameter.copy_(tensors[f"factor.{index}"])
        optimizer = unpack_optimizer(_named(tensors, "optimizer."), facts["optimizer"])
        self._optimizer.load_state_dict(optimizer)
        self._schedule.load_state_dict(facts["schedule"])
        self._scaler.load_state_dict(facts["scaler"])
        self._average.load(_named(tensors, "average."))


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
