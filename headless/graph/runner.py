"""Runs prompts over V1 node classes, and keeps results between runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal

import torch

from .cache import Cache
from .progress import Events, OnEvent, Progress
from .run import Run


@dataclass(frozen=True)
class RunResult:
    """What one run left behind.

    Attributes:
        status: How it ended.
        outputs: What nodes show, by node, as in ComfyUI's history; results from the cache too.
        results: The values at each slot of the output nodes that were asked for and are done.
        error: Data of the event ``execution_error`` or ``execution_interrupted``; None after
            success.
        executed: Ids of the nodes that ran to their end, in that order.
        cached: Ids of the nodes whose results were known at the start.
    """

    status: Literal["success", "error", "interrupted"]
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    results: Mapping[str, Sequence[list[Any]]] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    executed: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()


class Runner:
    """Runs one prompt at a time; results of the last prompt's nodes are kept for the next.

    Args:
        classes: V1 node classes by name.
        progress: Where the nodes of these classes report; an own one when None.
    """

    def __init__(self, classes: Mapping[str, type], progress: Progress | None = None) -> None:
        self.progress = progress or Progress()
        self._classes = classes
        self._cache = Cache()

    def run(
        self,
        prompt: Mapping[str, Any],
        prompt_id: str = "",
        extra_data: Mapping[str, Any] | None = None,
        outputs: Sequence[str] = (),
        on_event: OnEvent | None = None,
        interrupt: Event | None = None,
    ) -> RunResult:
        """Run what ``outputs`` need and the cache does not hold.

        All of it happens under ``torch.inference_mode``, in the calling thread. Events have the
        names, shapes and order of ComfyUI's web socket, ``executing`` of no node at the end.
        Nodes that are coroutine functions need a thread without a running asyncio loop.

        Args:
            prompt: From ``Validation.prompt``; it is not changed.
            prompt_id: Comes with every event.
            extra_data: Of the request: ``extra_pnginfo`` holds what EXTRA_PNGINFO gives.
            outputs: From ``Validation.outputs``.
            on_event: Called with a name and data.
            interrupt: Set it from any thread to stop before the next call of a node, or at its next
                report of progress; cleared when the run starts.

        Returns:
            What happened. A node that raises, an interrupt and a KeyboardInterrupt end the run
            early; finished results stay, so that the next run goes on from there.
        """
        interrupt = interrupt or Event()
        interrupt.clear()
        events = Events(prompt_id, on_event)
        request = (prompt, extra_data or {})
        run = Run(self._classes, self._cache, *request, events, self.progress, interrupt)
        with torch.inference_mode():
            ended = run.through(outputs)
        return RunResult(
            status=ended.status,
            outputs=run.shown,
            results=run.results_of(outputs),
            error=ended.error,
            executed=tuple(run.executed),
            cached=tuple(run.cached),
        )

    def clear(self) -> None:
        """Forget all results and nodes, with the memory they hold."""
        self._cache = Cache()
