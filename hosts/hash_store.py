"""Hashes of files, kept between runs: a small database keyed by path, size and time of change."""

import sqlite3
from contextlib import closing
from pathlib import Path

from ..lora_core.files.tensor_file import FileStamp, hash_file

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS hashes"
    " (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 TEXT)"
)


class HashStore:
    """SHA-256 by file, computed once as long as the file does not change.

    Args:
        database: SQLite file; made with its folder at the first hash, never at start-up.
    """

    def __init__(self, database: Path) -> None:
        self._database = database

    def sha256(self, path: Path) -> str:
        """The hash of a file's bytes, hexadecimal.

        Raises:
            LoraError: the file changed while it was read.
        """
        stat = path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns)
        self._database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._database)) as connection, connection:
            connection.execute(_SCHEMA)
            found = connection.execute(
                "SELECT sha256 FROM hashes WHERE path = ? AND size = ? AND mtime_ns = ?",
                (str(path), *stamp),
            ).fetchone()
            if found is not None:
                return str(found[0])
            digest = hash_file(path, FileStamp(*stamp))
            connection.execute(
                "INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", (str(path), *stamp, digest)
            )
        return digest
