"""Who is told of a run, and may end it."""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """After one optimiser step.

    Attributes:
        step: Of ``total``, counted from 1.
        total: Of the run.
        loss: Of the step's samples.
        rate: The largest learning rate of the groups, for the next step.
        norm: Of all gradients before clipping.
        seconds: That the step took.
    """

    step: int
    total: int
    loss: float
    rate: float
    norm: float
    seconds: float


class Watcher(Protocol):
    """May raise from any call: the run keeps its state, and the error goes on its way."""

    def wish(self) -> Literal["keep"] | None:
        """``"keep"`` ends the run before the next step, with what it has."""

    def stepped(self, progress: Progress) -> None:
        """A step is done."""

    def validated(self, step: int, loss: float) -> None:
        """The loss on the pictures kept apart."""

    def pictured(self, step: int, prompt: str, picture: Tensor) -> None:
        """A preview, ``(height, width, 3)``, 0 to 1."""

    def noted(self, text: str) -> None:
        """Something that a user should know."""


class Silent:
    """A watcher that lets the run go on and keeps what is noted.

    Attributes:
        notes: What a user should know, in order.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def wish(self) -> Literal["keep"] | None:
        """See ``Watcher``."""
        return None

    def stepped(self, progress: Progress) -> None:
        """See ``Watcher``."""

    def validated(self, step: int, loss: float) -> None:
        """See ``Watcher``."""

    def pictured(self, step: int, prompt: str, picture: Tensor) -> None:
        """See ``Watcher``."""

    def noted(self, text: str) -> None:
        """See ``Watcher``."""
        self.notes.append(text)
