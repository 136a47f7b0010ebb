"""What was read from a file, kept until the file changes."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

_T = TypeVar("_T")


class FileCache(Generic[_T]):
    """The last few results of ``read``, by path, size and time of change; safe among threads.

    Args:
        read: Makes the result; its errors are passed on and not kept.
        kept: Most results in memory.
    """

    def __init__(self, read: Callable[[Path], _T], kept: int) -> None:
        self._read = read
        self._kept = kept
        self._results: OrderedDict[object, _T] = OrderedDict()
        self._lock = Lock()

    def get(self, path: Path) -> _T:
        """The result for the file as it is now."""
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        result = self._read(path)  # without the lock: two readers of one file waste work, no more
        with self._lock:
            self._results[key] = result
            while len(self._results) > self._kept:
                self._results.popitem(last=False)
        return result
