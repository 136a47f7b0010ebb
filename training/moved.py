"""What a run moves."""

from collections.abc import Mapping
from typing import Protocol

from torch import nn


class Moved(Protocol):
    """Parameters that stay together: the factors of a module, or weights themselves."""

    @property
    def component(self) -> str:
        """``"unet"``, ``"te1"`` or ``"te2"``."""

    @property
    def rate(self) -> float | None:
        """Their learning rate, or None for the run's."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All of them by role, in a fixed order; LoRA's B is ``"up"``."""
