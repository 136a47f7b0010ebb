"""Calls of node functions: one per item of the longest list; coroutines on a loop of the run's own.

Runs are ordinary synchronous code. The loop exists only once a node is a coroutine function, and
turns only while the run waits, so that a KeyboardInterrupt arrives in the run itself.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from .node_classes import Inputs


class RunInterrupted(KeyboardInterrupt):
    """Somebody stopped the run: an Event was set, or a KeyboardInterrupt arrived."""


class AsyncCalls:
    """Tasks of one run."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._idle = False

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401
        """Take the coroutine to its first wait; gives its result, or a task when it waits."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        task = self._loop.create_task(coroutine)
        self._tasks.append(task)
        self._loop.call_soon(self._loop.stop)  # one turn of the loop
        self._loop.run_forever()
        return task.result() if task.done() else task

    def when_done(self, returns: Sequence[Any], then: Callable[[], object]) -> None:
        """Call ``then`` once no task among the returned values waits any more."""
        assert self._loop is not None  # there are tasks

        async def watch() -> None:
            tasks = [value for value in returns if isinstance(value, asyncio.Task)]
            await asyncio.gather(*tasks, return_exceptions=True)
            then()
            if self._idle:
                self._loop.stop()

        self._tasks.append(self._loop.create_task(watch()))

    def idle(self, seconds: float) -> None:
        """Let tasks work until one of ``when_done`` is, or time is up."""
        assert self._loop is not None  # there are tasks
        self._idle = True
        too_long = self._loop.call_later(seconds, self._loop.stop)
        try:
            self._loop.run_forever()
        finally:
            too_long.cancel()
            self._idle = False

    def results(self, returns: Sequence[Any]) -> list[Any]:
        """Values for values and tasks, waiting for the tasks."""
        waiting = unfinished(returns)
        if waiting:
            self._turn(asyncio.wait(waiting))
        return [value.result() if isinstance(value, asyncio.Task) else value for value in returns]

    def close(self) -> None:
        """Cancel what is not done, and wait until it is."""
        if self._loop is None:
            return
        for task in self._tasks:
            task.cancel()
        self._turn(asyncio.wait(self._tasks))
        for task in self._tasks:
            if not task.cancelled():
                task.exception()  # else asyncio logs that nobody looked
        self._turn(self._loop.shutdown_default_executor())
        self._loop.close()
        self._loop = None

    def _turn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        assert self._loop is not None  # tasks exist only on the loop
        self._loop.run_until_complete(coroutine)


def unfinished(returns: Sequence[Any]) -> list[asyncio.Task[Any]]:
    """The tasks among returned values that are not done."""
    return [value for value in returns if isinstance(value, asyncio.Task) and not value.done()]


def call_over_lists(
    owner: object,
    method: str,
    data: Inputs,
    calls: AsyncCalls,
    before_each: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Call a method of a node, once per item; shorter lists repeat their last item.

    Args:
        owner: A node or its class; ``INPUT_IS_LIST`` asks for one call with the lists themselves.
        method: Name of the function.
        data: Name to values.
        calls: Where coroutines run.
        before_each: Called before each call.

    Returns:
        What the calls returned; a task for one that is not done.

    Raises:
        IndexError: a list is empty and another is not.
    """
    function = getattr(owner, method)
    is_async = inspect.iscoroutinefunction(function)
    returns = []
    for arguments in _arguments(owner, data):
        before_each()
        returned = function(**arguments)
        returns.append(calls.start(returned) if is_async else returned)
    return returns


def _arguments(owner: object, data: Inputs) -> Iterator[dict[str, Any]]:
    if getattr(owner, "INPUT_IS_LIST", False):
        yield data
        return
    longest = max(map(len, data.values()), default=0)
    if longest == 0:
        yield {}
    for index in range(longest):
        yield {name: values[index if index < len(values) else -1] for name, values in data.items()}
