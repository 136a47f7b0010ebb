"""Dropout whose zeros depend on the step and the sample alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .randomness import generator


class Draws:
    """Which samples the batch in the model holds.

    Attributes:
        keys: For each sample, what its random numbers are drawn from.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.keys: Sequence[tuple[int, int]] = ()

    @contextmanager
    def of(self, keys: Sequence[tuple[int, int]]) -> Iterator[None]:
        """The model holds these samples within; none, and nothing is dropped out."""
        before, self.keys = self.keys, keys
        try:
            yield
        finally:
            self.keys = before

    def mask(self, shape: torch.Size, share: float, name: str) -> Tensor:
        """Zeros and ones ``shape``, on the CPU; its first dimension is samples, or chunks of them.

        Args:
            shape: Of the input.
            share: Of zeros.
            name: Of the module.
        """
        rows = shape[0] // len(self.keys)
        drawn = [
            torch.rand((rows, *shape[1:]), generator=generator(self._seed, "dropout", *key, name))
            for key in self.keys
        ]
        return torch.cat(drawn) >= share


class SeededDropout(nn.Module):
    """Sets a share of the inputs to zero and scales the others up.

    A block that is computed twice, for gradient checkpointing, draws the same zeros twice.

    Args:
        share: 0 to below 1.
        draws: Which samples are in the model.
        name: Of the module before it; no two modules draw alike.
    """

    def __init__(self, share: float, draws: Draws, name: str) -> None:
        super().__init__()
        self._share, self._draws, self._name = share, draws, name

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with zeros where drawn; unchanged when nothing is being trained."""
        if not self._draws.keys:
            return x
        mask = self._draws.mask(x.shape, self._share, self._name)
        return x * mask.to(x.device, x.dtype) / (1 - self._share)
