"""What every kind of factors gives the loop, the optimiser and the exporter."""

from contextlib import AbstractContextManager
from typing import Protocol

from .export import Trained
from .moved import Moved
from .targets import TrainedTarget


class OfTarget:
    """What every kind of factors knows by its target; see ``Moved``."""

    trained: TrainedTarget

    @property
    def component(self) -> str:
        """Of the module."""
        return self.trained.component

    @property
    def rate(self) -> float | None:
        """The target's own, or None for the run's."""
        return self.trained.rate


class Factors(Moved, Protocol):
    """What is trained of one module; float32 parameters, live."""

    @property
    def trained(self) -> TrainedTarget:
        """The module."""

    def ejected(self) -> AbstractContextManager[None]:
        """The bare module in its place, for a preview; afterwards the factors again."""

    def learnt(self, is_live: bool = False) -> Trained:
        """The factors as they are, for the exporter.

        Args:
            is_live: Whether they go onto the model as it is in the run, which may lack their start.
        """
