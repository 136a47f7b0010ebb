"""The list of all LoRA files: each folder is read once, however many files are in it."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .sidecars import pictured


class _Folder(NamedTuple):
    files: frozenset[str]
    pictured: frozenset[str]  # files' names without their endings


def list_files(names: Iterable[str], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Name and whether there is a picture, in the order of the names.

    Args:
        names: Relative to one of the folders; a name that is no file any more is left out.
        folders: The first that has a name counts.
    """
    read: dict[tuple[Path, str], _Folder] = {}
    rows = []
    for name in names:
        below, own_name = os.path.split(name)  # Path takes much longer
        for folder in folders:
            place = (folder, below)
            if place not in read:
                read[place] = _read(folder / below)
            if own_name in read[place].files:
                preview = own_name.rpartition(".")[0] in read[place].pictured
                rows.append({"name": name, "preview": preview})
                break
    return rows


def _read(folder: Path) -> _Folder:
    try:
        with os.scandir(folder) as entries:
            files = frozenset(entry.name for entry in entries if _is_file(entry))
    except OSError:
        files = frozenset()
    return _Folder(files, pictured(files))


def _is_file(entry: "os.DirEntry[str]") -> bool:
    """Whether it is no folder, and no link to nowhere."""
    try:
        return entry.is_file()
    except OSError:
        return False
