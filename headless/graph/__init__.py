"""Graphs in API form, run without ComfyUI: checked, ordered, cached and executed as it does."""

from .async_calls import RunInterrupted
from .progress import Progress
from .runner import Runner, RunResult
from .validation import Validation, validate

__all__ = ["Progress", "RunInterrupted", "RunResult", "Runner", "Validation", "validate"]
