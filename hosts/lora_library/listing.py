"""The list of all LoRA files: each folder is read once, however many files are in it."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .sidecars import has_preview

_Entries = dict[str, "os.DirEntry[str]"]


def list_files(names: Iterable[str], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size in bytes and whether there is a picture, in the order of the names.

    Args:
        names: Relative to one of the folders; a name that is no file any more is left out.
        folders: The first that has a name counts.
    """
    read: dict[tuple[Path, str], _Entries] = {}
    rows = []
    for name in names:
        below, own_name = os.path.split(name)  # Path takes much longer
        for folder in folders:
            place = (folder, below)
            if place not in read:
                read[place] = _entries(folder / below)
            size = _size(read[place].get(own_name))
            if size is not None:
                preview = has_preview(own_name, read[place])
                rows.append({"name": name, "size": size, "preview": preview})
                break
    return rows


def _entries(folder: Path) -> _Entries:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except OSError:
        return {}


def _size(entry: "os.DirEntry[str] | None") -> int | None:
    """Bytes of a file; None for a folder, and for a link to nowhere."""
    try:
        return entry.stat().st_size if entry is not None and entry.is_file() else None
    except OSError:
        return None
