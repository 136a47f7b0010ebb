"""Hashes of files, kept between runs: a small database keyed by path, size and time of change."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from ..lora_core.files.tensor_file import FileStamp, hash_file

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS hashes"
    " (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT)"
)


class HashStore:
    """SHA-256 by file, computed once as long as the file does not change; safe among threads.

    Args:
        database: SQLite file; made with its folder at the first hash, never at start-up.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._lock = Lock()
        self._locks: WeakValueDictionary[str, Lock] = WeakValueDictionary()  # by path, while used

    def sha256(self, path: Path) -> str:
        """The hash of a file's bytes, hexadecimal; who asks for a file that is read waits for it.

        Raises:
            LoraError: the file changed while it was read.
        """
        with self._lock_of(path):
            stamp = _stamp(path)
            known = self._known(path, stamp)
            if known is not None:
                return known
            digest = hash_file(path, stamp)
            with self._connected() as connection:
                connection.execute(
                    "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)",
                    (str(path), stamp.size, stamp.mtime_ns, digest),
                )
        return digest

    def paths_of(self, sha256: str) -> set[Path]:
        """Files that are known to have this hash and did not change since; none is read."""
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT path, size, mtime_ns FROM hashes WHERE sha256 = ?", (sha256,)
            ).fetchall()
        known = ((Path(path), FileStamp(*stamp)) for path, *stamp in rows)
        return {path for path, stamp in known if path.is_file() and _stamp(path) == stamp}

    def _known(self, path: Path, stamp: FileStamp) -> str | None:
        with self._connected() as connection:
            found = connection.execute(
                "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ?",
                (str(path), stamp.size, stamp.mtime_ns),
            ).fetchone()
        return None if found is None else str(found[0])

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        self._database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._database)) as connection, connection:
            connection.execute(_SCHEMA)
            yield connection

    def _lock_of(self, path: Path) -> Lock:
        with self._lock:
            return self._locks.setdefault(str(path), Lock())


def _stamp(path: Path) -> FileStamp:
    stat = path.stat()
    return FileStamp(stat.st_size, stat.st_mtime_ns)
