"""Storages on the CPU are independent: one thread per core, each with storages of its own."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from .kernels import has_loops
from .products import cpu_threads


class Crew:
    """Runs tasks on the caller's thread and on helpers, torch on one thread in each.

    So the number of threads changes no bit: a BLAS shares out one product in other pieces than it
    sums alone. No operation waits for another thread, and what a task leaves in its core's cache is
    used there.
    An exception, KeyboardInterrupt too, may leave helpers at the task they have begun: ``stop``
    waits for them.
    """

    def __init__(self) -> None:
        self._tasks: deque[Callable[[], object]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def run(self, tasks: Sequence[Callable[[], object]]) -> None:
        """Run all tasks, on as many threads as torch would use for one operation.

        The first exception ends it, after the tasks that have begun.

        Args:
            tasks: Longest first, so that the threads end together.
        """
        helpers = min(torch.get_num_threads(), len(tasks)) - 1
        has_loops()  # loaded here: threads would do it at the same time
        self._tasks.extend(tasks)
        inference = torch.is_inference_mode_enabled()
        with cpu_threads(1):
            try:
                begun = self._start(helpers, inference) if helpers > 0 else ()
                self._work()
                for helper in begun:
                    helper.result()
            finally:
                self.stop()

    def _start(self, helpers: int, inference: bool) -> "list[Future[None]]":
        # Set in each helper: another thread's number is its own, once that thread has used torch.
        self._pool = ThreadPoolExecutor(helpers, initializer=torch.set_num_threads, initargs=(1,))
        return [self._pool.submit(self._help, inference) for _ in range(helpers)]

    def stop(self) -> None:
        """Start no further task and wait for those that have begun; again, if interrupted."""
        self._tasks.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def _help(self, inference: bool) -> None:
        with torch.inference_mode(inference):  # a mode of each thread
            self._work()

    def _work(self) -> None:
        try:
            while self._tasks:
                try:
                    task = self._tasks.popleft()
                except IndexError:  # another thread was faster
                    return
                task()
        finally:
            self._tasks.clear()
