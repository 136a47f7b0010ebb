"""Ctrl-C while a node works that can stop early and keep what it has."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .messages import write_text

_TOLD = "The node stops as soon as it can and keeps what it has; Ctrl-C again stops at once."


@contextmanager
def first_interrupt_keeps(ask: Callable[[], bool]) -> Iterator[None]:
    """Inside, Ctrl-C asks first, and interrupts when ``ask`` has nobody to ask (any more).

    Python takes signals in the main thread alone: to be used there. Where the shell has Ctrl-C
    ignored, as in the background, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if not ask():
            raise KeyboardInterrupt
        write_text(_TOLD)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
