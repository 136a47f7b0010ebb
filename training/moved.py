"""What a run moves."""

from collections.abc import Mapping
from typing import Protocol

from torch import nn


class Moved(Protocol):
    """Parameters that stay together: the factors of a module, or weights themselves.

    Attributes:
        component: ``"unet"``, ``"te1"`` or ``"te2"``.
        rate: Their learning rate, or None for the run's.
        parameters: By role; ``"up"`` is LoRA's B, which may have a rate of its own.
    """

    component: str
    rate: float | None
    parameters: Mapping[str, nn.Parameter]
