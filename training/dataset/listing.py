"""Which files belong to a dataset."""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...lora_core.errors import LoraError
from .look import SUFFIXES

_REPEATS = re.compile(r"(\d+)_(.*)")


@dataclass(frozen=True)
class Entry:
    """A picture's file.

    Attributes:
        path: Of it.
        name: Relative to the dataset's folder, with ``/``.
        group: Name of the folder that it lies in.
        repeats: By the folders' names.
        words: What the innermost numbered folder is called after the number.
    """

    path: Path
    name: str
    group: str
    repeats: int
    words: str


@dataclass(frozen=True)
class Listing:
    """Files of a folder and all below, by name.

    Attributes:
        entries: Pictures.
        captions: Names of caption files, whether or not their picture is there.
        others: Names of all other files.
    """

    entries: tuple[Entry, ...]
    captions: tuple[str, ...]
    others: tuple[str, ...]


def list_files(
    folder: Path,
    caption_extension: str,
    without: Collection[Path] = (),
    option: str = "folder",
) -> Listing:
    """List a folder.

    Hidden files and folders are left out (``.ipynb_checkpoints`` holds copies of pictures), links
    to folders are not followed.

    Args:
        folder: To list.
        caption_extension: Such as ``.txt``.
        without: Folders inside it that are something else, such as masks.
        option: Of the dataset, that names the folder; for the error.

    Raises:
        LoraError: there is no such folder.
    """
    if not folder.is_dir():
        raise LoraError(
            "The folder of pictures does not exist.",
            {option: folder},
            "choose a folder on this machine.",
        )
    apart = {path.resolve() for path in without}
    entries: list[Entry] = []
    captions: list[str] = []
    others: list[str] = []
    for at, folders, files in os.walk(folder, followlinks=True):
        here = Path(at)
        above = {here.resolve(), *here.resolve().parents}  # a link to one of them has no end
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (here / name).resolve() not in apart | above
        )
        for file in files:
            path = here / file
            name = _shown(path.relative_to(folder))
            suffix = path.suffix.lower()
            if file.startswith("."):
                continue
            if suffix in SUFFIXES:
                entries.append(_entry(path, name, folder))
            elif suffix == caption_extension.lower():
                captions.append(name)
            else:
                others.append(name)
    entries.sort(key=lambda entry: entry.name)
    return Listing(tuple(entries), tuple(sorted(captions)), tuple(sorted(others)))


def _shown(relative: Path) -> str:
    """With question marks for bytes of a name that are not UTF-8, which no hash could take."""
    return relative.as_posix().encode(errors="replace").decode()


def stem(name: str) -> str:
    """A name without its last extension."""
    return name.rpartition(".")[0]


def _entry(path: Path, name: str, folder: Path) -> Entry:
    repeats, words = _numbered([folder.name, *name.split("/")[:-1]])
    return Entry(path, name, path.parent.name or folder.name, repeats, words)


def _numbered(folders: Sequence[str]) -> tuple[int, str]:
    """Repeats and words of the innermost folder that has a number."""
    for folder in reversed(folders):
        found = _REPEATS.fullmatch(folder)
        if found:
            return int(found[1]), found[2].strip()
    return 1, ""
