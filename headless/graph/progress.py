"""How far nodes are, and the events that say so."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

OnEvent = Callable[[str, Mapping[str, Any]], object]
_Sink = Callable[[float, float], object]


class Progress:
    """The place where nodes report how far they are: one object for a Runner and its host."""

    def __init__(self) -> None:
        # Coroutine nodes run side by side, each with its own context.
        self._sink: ContextVar[_Sink | None] = ContextVar("sink", default=None)

    def report(self, value: float, maximum: float) -> None:
        """Say that ``value`` of ``maximum`` steps are done; nothing when no node runs.

        Raises:
            RunInterrupted: somebody stopped the run.
        """
        sink = self._sink.get()
        if sink is not None:
            sink(value, maximum)

    @contextmanager
    def to(self, sink: _Sink) -> Iterator[None]:
        """Send reports to ``sink`` inside the context."""
        token = self._sink.set(sink)
        try:
            yield
        finally:
            self._sink.reset(token)


class Events:
    """Events of one run, under the names and in the shapes of ComfyUI's web socket."""

    def __init__(self, prompt_id: str, on_event: OnEvent | None) -> None:
        self._prompt_id, self._on_event = prompt_id, on_event
        self._states: dict[str, dict[str, Any]] = {}

    def message(self, name: str, **data: object) -> dict[str, Any]:
        """Send an event that history keeps; returns its data."""
        stamped = {"prompt_id": self._prompt_id, **data, "timestamp": int(time.time() * 1000)}
        if self._on_event:
            self._on_event(name, stamped)
        return stamped

    def executing(self, node_id: str | None) -> None:
        """A node begins; None: nothing runs any more."""
        shown = {} if node_id is None else {"display_node": node_id}
        self._send("executing", {"node": node_id, **shown})

    def executed(self, node_id: str, output: Mapping[str, Any] | None) -> None:
        """A node shows something, or its result was known."""
        self._send("executed", {"node": node_id, "display_node": node_id, "output": output})

    def started(self, node_id: str) -> None:
        """A node is at 0 of 1."""
        self._show(node_id, 0.0, 1.0, "running")

    def progress(self, node_id: str, value: float, maximum: float) -> None:
        """A node is at ``value`` of ``maximum``."""
        self._show(node_id, value, maximum, "running")
        self._send("progress", {"value": value, "max": maximum, "node": node_id})

    def finished(self, node_id: str) -> None:
        """A node is done."""
        maximum = self._states.get(node_id, {"max": 1})["max"]
        self._show(node_id, maximum, maximum, "finished")

    def _show(self, node_id: str, value: float, maximum: float, state: str) -> None:
        if not self._on_event:
            return
        ids = {"display_node_id": node_id, "parent_node_id": None, "real_node_id": node_id}
        numbers = {"value": value, "max": maximum, "state": state}
        self._states[node_id] = {
            **numbers, "node_id": node_id, "prompt_id": self._prompt_id, **ids
        }  # fmt: skip
        self._send("progress_state", {"nodes": dict(self._states)})

    def _send(self, name: str, data: dict[str, Any]) -> None:
        if self._on_event:
            self._on_event(name, {**data, "prompt_id": self._prompt_id})
