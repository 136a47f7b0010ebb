"""A training run on standard error, for people: a bar, lines, and Ctrl-C."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from torch import Tensor

from ..training.watcher import Progress
from .messages import write_text
from .progress import Lines, is_terminal


class Stop:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False


class CommandWatcher:
    """Shows a run on standard error.

    Args:
        stop: Whether Ctrl-C was pressed.
        bar: Of tqdm, or None: then there is a line now and then.
        previews: Folder of preview pictures.
        is_heard: Whether what it says is written; of several processes the first one speaks.
    """

    def __init__(
        self,
        stop: Stop,
        bar: Any,  # noqa: ANN401
        previews: Path,
        is_heard: bool = True,
    ) -> None:
        self._stop, self._bar, self._previews = stop, bar, previews
        self._is_heard = is_heard
        self._lines = Lines()

    def wish(self) -> Literal["keep"] | None:
        """``"keep"`` after Ctrl-C."""
        return "keep" if self._stop.asked else None

    def stepped(self, progress: Progress) -> None:
        """Move the bar, or write a line where one is due."""
        text = f"loss {progress.loss:.4f}, rate {progress.rate:.2e}"
        if self._bar is not None:
            self._bar.total, self._bar.n = progress.total, progress.step
            self._bar.set_postfix_str(text)
        elif self._lines.is_due(progress.step / progress.total):
            self.noted(f"step {progress.step} of {progress.total}: {text}")

    def validated(self, step: int, loss: float) -> None:
        """Say the loss."""
        self.noted(f"step {step}: validation loss {loss:.5f}")

    def pictured(self, step: int, prompt: str, picture: Tensor) -> None:
        """Keep the picture beside the run's states."""
        from PIL import Image

        self._previews.mkdir(parents=True, exist_ok=True)
        number = len(list(self._previews.glob(f"step-{step:08}-*.png"))) + 1
        pixels = (picture.clamp(0, 1) * 255).round().byte().cpu().numpy()
        Image.fromarray(pixels).save(self._previews / f"step-{step:08}-{number}.png")

    def noted(self, text: str) -> None:
        """Say it."""
        if not self._is_heard:
            return
        if self._bar is not None:
            self._bar.clear()
        write_text(text)


@contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """The first Ctrl-C asks, the second one interrupts."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        write_text("stopping after this step; Ctrl-C again ends the run at once.")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def step_bar(is_shown: bool) -> Iterator[Any]:
    """Tqdm's bar over steps; None where it is not to be shown, is absent, or nobody looks."""
    try:
        from tqdm import tqdm
    except ImportError:
        is_shown = False
    if not (is_shown and is_terminal()):
        yield None
        return
    with tqdm(total=0, unit="step", leave=False, file=sys.stderr) as bar:
        yield bar
