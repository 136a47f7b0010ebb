"""What every kind of factors gives the loop, the optimiser and the exporter."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn

from .export import Trained
from .targets import TrainedTarget


class Factors(Protocol):
    """What is trained of one module; float32 parameters, live."""

    @property
    def trained(self) -> TrainedTarget:
        """The module."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All of them by role, in a fixed order; LoRA's B is ``"up"``."""

    def ejected(self) -> AbstractContextManager[None]:
        """The bare module in its place, for a preview; afterwards the factors again."""

    def learnt(self, is_live: bool = False) -> Trained:
        """The factors as they are, for the exporter.

        Args:
            is_live: Whether they go onto the model as it is in the run, which may lack their start.
        """
