"""Several processes on one run, as ``accelerate launch`` starts them; usually one."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

_T = TypeVar("_T")
_ACCELERATORS = (torch.cuda, torch.xpu, torch.backends.mps)


class Processes:
    """The processes of this run; each computes its share of every batch.

    The factors are few, so one sum of all gradients a step is cheaper than a wrapper around the
    model, and the same whatever the number of processes.

    Args:
        on_cpu: Whether the CPU computes though there is an accelerator; the first of a process
            decides.
    """

    def __init__(self, on_cpu: bool = False) -> None:
        from accelerate.state import PartialState

        # accelerate takes the processes of torchrun for single ones unless it is told of the CPU.
        has_none = not any(kind.is_available() for kind in _ACCELERATORS)
        self._state = state = PartialState(cpu=on_cpu or has_none)
        self._rank, self.count = state.process_index, state.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files."""
        return self._rank == 0

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self._state.device

    def wait(self) -> None:
        """Go on when all processes are here."""
        self._state.wait_for_everyone()

    def share(self, samples: Sequence[_T], first: int) -> Sequence[_T]:
        """This process's part of a batch.

        Args:
            samples: Of the batch.
            first: Place of its first sample among those of the step, which take turns.
        """
        return samples[(self._rank - first) % self.count :: self.count]

    def of_first(self, value: float, device: torch.device) -> float:
        """The first process's value, in float32, everywhere."""
        own = torch.full((), float(value) if self.is_first else 0.0, device=device)
        return float(self.summed(own))

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        from accelerate.utils import reduce

        return value if self.count == 1 else reduce(value, reduction="sum")

    def agree(self, value: float, device: torch.device) -> bool:
        """Whether all processes have the same value, in float32."""
        differs = float(value) != self.of_first(value, device)
        return not self.summed(torch.tensor(float(differs), device=device))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make every process's gradients their sum."""
        if self.count == 1:
            return
        flat = self.summed(torch.cat([parameter.grad.flatten() for parameter in parameters]))
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, part in zip(parameters, flat.split(sizes), strict=True):
            parameter.grad.copy_(part.view_as(parameter))
