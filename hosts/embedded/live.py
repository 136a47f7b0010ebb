"""The progress of a long-running node where there is no canvas."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor


class EmbeddedLive:
    """See ``Live``; steps go to the run's progress, the rest has no place to be shown.

    Args:
        report: Called with steps done and steps in all; raising from it ends the run.
    """

    def __init__(self, report: Callable[[int, int], object]) -> None:
        self._report = report
        self._keep = False

    def progress(self, step: int, total: int, text: str = "") -> None:
        """See ``Live.progress``."""
        self._report(step, total)

    def point(self, series: str, x: float, y: float) -> None:
        """See ``Live.point``."""

    def picture(self, image: Tensor, caption: str = "") -> None:
        """See ``Live.picture``."""

    def ask_to_keep(self) -> None:
        """Let ``stop_requested`` say so."""
        self._keep = True

    def stop_requested(self) -> Literal["keep"] | None:
        """See ``Live.stop_requested``; the first Ctrl-C of ``lora-workbench run`` asks."""
        return "keep" if self._keep else None
