"""One prompt on its way through its nodes."""

import logging
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing
from threading import Event
from typing import Any, Literal, NamedTuple

from ...lora_core.errors import LoraError
from .async_calls import AsyncCalls, RunInterrupted, call_over_lists, unfinished
from .cache import Cache
from .input_errors import type_name
from .node_classes import (
    Inputs,
    NodeSpec,
    NodeSpecs,
    constants,
    copied,
    gathered,
    hidden_input,
    inputs_of,
)
from .order import Order
from .progress import Events, Progress
from .results import Result, collected

_POLL = 0.1  # seconds between looks at the interrupt while only coroutines are at work
_logger = logging.getLogger(__name__)


class Ended(NamedTuple):
    """How a run ended, and the data of the event that said so, unless it was a success."""

    status: Literal["success", "error", "interrupted"]
    error: Mapping[str, Any] | None = None


class Run:
    """See ``Runner.run``; an object of this class is used once.

    Attributes:
        executed: Ids of the nodes that ran to their end, in that order.
        cached: Ids of the nodes whose results were known at the start.
        shown: What nodes show, by node.
    """

    def __init__(
        self,
        classes: Mapping[str, type],
        cache: Cache,
        prompt: Mapping[str, Any],
        extra_data: Mapping[str, Any],
        events: Events,
        progress: Progress,
        interrupt: Event,
    ) -> None:
        self.executed: list[str] = []
        self.cached: list[str] = []
        self.shown: dict[str, Mapping[str, Any]] = {}
        self._specs, self._prompt, self._extra_data = NodeSpecs(classes), copied(prompt), extra_data
        self._events, self._progress, self._interrupt = events, progress, interrupt
        self._calls = AsyncCalls()
        self._cache = cache
        self._order = Order(self._prompt, self._specs, cache.__contains__)
        self._at: str | None = None  # the node that runs, and what it was called with
        self._inputs: Inputs = {}
        self._at_work: dict[str, list[Any]] = {}  # coroutine nodes: values and unfinished tasks
        self._returned: dict[str, list[Any]] = {}

    def through(self, outputs: Sequence[str]) -> Ended:
        """Run what ``outputs`` need and the cache does not hold."""
        self._cache.begin()
        self._events.message("execution_start")
        try:
            with closing(self._calls):
                self._prepare()
                for output in outputs:
                    self._order.add(output)
                while self._order:
                    self._step(self._next())
            self._events.message("execution_success")
            return Ended("success")
        except KeyboardInterrupt:
            return Ended(
                "interrupted", self._events.message("execution_interrupted", **self._where())
            )
        except Exception as cause:  # noqa: BLE001  nodes may raise anything
            return Ended("error", self._failed(cause))
        finally:
            self._events.executing(None)

    def results_of(self, outputs: Sequence[str]) -> dict[str, Sequence[list[Any]]]:
        """The values of those outputs that are known."""
        return {output: self._cache[output].outputs for output in outputs if output in self._cache}

    def _prepare(self) -> None:
        """Find what is known, and drop what this prompt does not use."""
        fingerprints = {node_id: self._fingerprint(node_id) for node_id in self._prompt}
        self.cached = self._cache.use(self._prompt, self._specs, fingerprints)
        self._events.message("execution_cached", nodes=self.cached)

    def _fingerprint(self, node_id: str) -> object:
        """What IS_CHANGED gives, False without one; it goes into the prompt, as in ComfyUI."""
        node, spec = self._prompt[node_id], self._spec(node_id)
        if not hasattr(spec.cls, "IS_CHANGED"):
            return False
        data = constants(inputs_of(node), spec, node_id)
        fingerprint: object
        try:
            calls = call_over_lists(spec.cls, "IS_CHANGED", data, self._calls)
            fingerprint = self._calls.results(calls)
        except Exception as cause:  # noqa: BLE001  nodes may raise anything
            where = f"{node_id} ({node['class_type']})"
            _logger.warning("Node %s runs every time: its IS_CHANGED failed: %s", where, cause)
            fingerprint = float("nan")
        self._prompt[node_id] = {**node, "is_changed": fingerprint}
        return fingerprint

    def _next(self) -> str:
        """The node to run now, waiting for coroutines where nothing else is left."""
        while True:
            node_id = self._order.next()
            if node_id is not None:
                return node_id
            if not self._at_work:
                self._at = self._order.cycle()[0]
                raise LoraError(
                    "Dependency cycle detected.",
                    {"Nodes": ", ".join(self._order.cycle())},
                    "remove a link of the circle.",
                )
            self._at = next(iter(self._at_work))
            self._calls.idle(_POLL)
            self._stop_if_asked()

    def _step(self, node_id: str) -> None:
        """Run a node, or take its result from the cache; it may have to wait."""
        self._at, self._inputs = node_id, {}
        if node_id in self._cache:
            result = self._cache[node_id]
            self._show(node_id, result)
            self._events.executed(node_id, result.ui or None)
        else:
            returned = self._returned.pop(node_id, None) or self._call(node_id)
            if returned is None:
                return
            result = collected(self._calls.results(returned), self._spec(node_id).cls, node_id)
            self._show(node_id, result)
            if result.ui:
                self._events.executed(node_id, result.ui)
            self._cache[node_id] = result
            self.executed.append(node_id)
        self._events.finished(node_id)
        self._order.done(node_id)

    def _show(self, node_id: str, result: Result) -> None:
        if result.ui:
            self.shown[node_id] = result.ui

    def _call(self, node_id: str) -> list[Any] | None:
        """What the node's calls returned; None when it waits for inputs or for itself."""
        self._events.started(node_id)
        self._inputs, missing = self._gathered(node_id)
        self._events.executing(node_id)
        class_type = self._prompt[node_id]["class_type"]
        node = self._cache.node(node_id, class_type, self._spec(node_id).cls)
        if getattr(node, "check_lazy_status", None) is not None:
            wanted = self._wanted(node_id, node, missing)
            for name in wanted:
                self._order.need(node_id, name)
            if wanted:
                return None
        returned = self._called(node_id, node, self._spec(node_id).cls.FUNCTION)
        if not unfinished(returned):
            return returned
        self._hold(node_id, returned)
        return None

    def _hold(self, node_id: str, returned: list[Any]) -> None:
        """Let other nodes run until the coroutines of this one are done."""

        def release() -> None:
            self._returned[node_id] = self._at_work.pop(node_id)
            self._order.release(node_id)

        self._at_work[node_id] = returned
        self._order.hold(node_id)
        self._calls.when_done(returned, release)

    def _gathered(self, node_id: str) -> tuple[Inputs, set[str]]:
        def read(source: str, slot: int) -> list[Any] | None:
            if not self._order.linked(source, node_id) or source not in self._cache:
                return None  # a lazy input
            outputs = self._cache[source].outputs
            if not -len(outputs) <= slot < len(outputs):
                raise LoraError(
                    f"Node {source} ({self._prompt[source]['class_type']}) gave too few outputs.",
                    {"Expected": f"one at slot {slot}", "Got": len(outputs)},
                    "report it to the author of the node.",
                )
            return outputs[slot]

        def hidden(kind: str) -> object:
            return hidden_input(kind, node_id, self._prompt, self._extra_data)

        return gathered(inputs_of(self._prompt[node_id]), self._spec(node_id), read, hidden)

    def _wanted(self, node_id: str, node: object, missing: set[str]) -> list[str]:
        """The inputs without values that check_lazy_status names."""
        answers = self._calls.results(self._called(node_id, node, "check_lazy_status"))
        named = [name for answer in answers if isinstance(answer, list) for name in answer]
        return [
            name
            for name in dict.fromkeys(named)
            if isinstance(name, str) and (name not in self._inputs or name in missing)
        ]

    def _called(self, node_id: str, node: object, method: str) -> list[Any]:
        def report(value: float, maximum: float) -> None:
            self._stop_if_asked()
            self._events.progress(node_id, value, maximum)

        with self._progress.to(report):
            return call_over_lists(node, method, self._inputs, self._calls, self._stop_if_asked)

    def _stop_if_asked(self) -> None:
        if self._interrupt.is_set():
            self._interrupt.clear()
            raise RunInterrupted

    def _failed(self, cause: Exception) -> Mapping[str, Any]:
        _logger.debug("Node %s failed", self._at, exc_info=cause)
        return self._events.message(
            "execution_error",
            **self._where(),
            exception_message=f"{cause}\n",
            exception_type=type_name(type(cause)),
            traceback=traceback.format_tb(cause.__traceback__),
            current_inputs={
                name: [_shown(value) for value in values] for name, values in self._inputs.items()
            },
            current_outputs=[*self._prompt],
        )

    def _where(self) -> dict[str, object]:
        node_type = self._prompt[self._at]["class_type"] if self._at else None
        return {"node_id": self._at, "node_type": node_type, "executed": [*self.executed]}

    def _spec(self, node_id: str) -> NodeSpec:
        return self._specs[self._prompt[node_id]["class_type"]]


def _shown(value: object) -> object:
    """A value as JSON can hold it."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
