"""From the name in a row to a file in the LoRA folders: moved and renamed files are found."""

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from ..lora_core.errors import LoraError
from ..lora_core.lora import Lora, load_lora
from .hash_store import HashStore
from .lora_names import SUFFIXES, base_name, confined, near_names, posix_name
from .protocol import LoraChoice

_PARSED_FILES_KEPT = 32
_HASHED_WITHOUT_SIZE = 8  # files of the same name, at most
_SHA256 = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)


class LoraNotFoundError(LoraError):
    """No file, or more than one, is what a choice means."""


class LoraFiles:
    """The LoRA folders of a host.

    Args:
        names: Lists the files, as a user picks them, relative to a folder.
        full_path: Path of a listed name.
        hashes: Where hashes of files are kept.
        folders: Gives the LoRA folders; without them no absolute path is a name.
    """

    def __init__(
        self,
        names: Callable[[], list[str]],
        full_path: Callable[[str], Path],
        hashes: HashStore,
        folders: Callable[[], list[Path]] = list,
    ) -> None:
        self.names = names
        self.folders = folders
        self._full_path = full_path
        self._hashes = hashes
        self._parsed: OrderedDict[object, Lora] = OrderedDict()

    def resolve(self, choice: LoraChoice) -> str:
        r"""The listed name of the file that a choice means.

        An absolute path inside a LoRA folder is the name relative to it. The exact name wins unless
        the choice pins another content; then ``/`` against ``\``, a missing ending, the pinned
        content, and the one file of that base name in any folder. Files of the pinned size are
        hashed; without a size those whose hash is known are looked at, and a few of the same
        base name are hashed: all files of the folders may be hundreds of gigabytes.

        Raises:
            LoraNotFoundError: nothing matches, or several files do.
            LoraError: the name leaves the folders, or the hash is none.
        """
        _check_hash(choice.sha256)
        names = self.names()
        wanted = confined(self._relative(choice.name))
        by_posix = {posix_name(name): name for name in names}
        found = next(
            (by_posix[w] for w in (wanted, *(wanted + s for s in SUFFIXES)) if w in by_posix), None
        )
        if found is not None and self._is_pinned(found, choice):
            return found
        pinned = self._of_content(names, choice, choice.sha256) if choice.sha256 else None
        if pinned is not None:
            return pinned
        if choice.sha256 and found is not None:
            raise _other_content(choice, found)
        same = [] if choice.sha256 else [n for n in names if base_name(n) == base_name(wanted)]
        if len(same) == 1:
            return same[0]
        raise _missing(choice, names, same)

    def path(self, choice: LoraChoice) -> Path:
        """Path of the file that a choice means.

        Raises:
            LoraError: see ``resolve``.
        """
        return self.located(choice)[1]

    def located(self, choice: LoraChoice) -> tuple[str, Path]:
        """Listed name and path of the file that a choice means.

        Raises:
            LoraError: see ``resolve``.
        """
        name = self.resolve(choice)
        return name, self._full_path(name)

    def pin(self, choice: LoraChoice) -> LoraChoice:
        """The choice that means this file and its present content, wherever it is moved.

        Raises:
            LoraError: see ``resolve``; or the file changed while it was read.
        """
        name, path = self.located(choice)
        return LoraChoice(name, self._hashes.sha256(path), path.stat().st_size)

    def near(self, name: str) -> list[str]:
        """Listed files of this base name in any folder, then some that resemble it."""
        names = self.names()
        same = [known for known in names if base_name(known) == base_name(name)]
        return list(dict.fromkeys([*same, *near_names(name, names)]))

    def fingerprint(self, choice: LoraChoice) -> str:
        """Path, size and time of change; "missing" when there is no such file."""
        try:
            path = self.path(choice)
            stat = path.stat()
        except (LoraError, OSError):
            return f"missing:{choice.name}"
        return f"{path}:{stat.st_size}:{stat.st_mtime_ns}"

    def load(self, choice: LoraChoice) -> Lora:
        """The parsed file; the last few are kept.

        Raises:
            LoraError: it cannot be found or read.
        """
        name, path = self.located(choice)
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        lora = self._parsed.get(key)
        if lora is None:
            lora = self._parsed[key] = load_lora(path, name)
        self._parsed.move_to_end(key)
        while len(self._parsed) > _PARSED_FILES_KEPT:
            self._parsed.popitem(last=False)
        return lora

    def _relative(self, name: str) -> str:
        """An absolute path inside a LoRA folder relative to it; any other name as it is."""
        path = Path(posix_name(name))
        for folder in self.folders() if path.is_absolute() else ():
            for root in (folder, folder.resolve()):
                if path.is_relative_to(root):
                    return path.relative_to(root).as_posix()
        return name

    def _is_pinned(self, name: str, choice: LoraChoice) -> bool:
        """Whether a file of the right name also has the content, where the choice pins one."""
        return not choice.sha256 or self._has_content(name, choice.sha256, choice.size)

    def _of_content(self, names: list[str], choice: LoraChoice, sha256: str) -> str | None:
        """The first file of the pinned content, see ``resolve``."""
        if choice.size is not None:
            candidates = names
        else:
            known = self._hashes.paths_of(sha256.lower())
            same = [name for name in names if base_name(name) == base_name(choice.name)]
            candidates = [name for name in names if known and self._full_path(name) in known]
            candidates += same[:_HASHED_WITHOUT_SIZE]
        return next((n for n in candidates if self._has_content(n, sha256, choice.size)), None)

    def _has_content(self, name: str, sha256: str, size: int | None) -> bool:
        path = self._full_path(name)
        if size is not None and path.stat().st_size != size:
            return False
        return self._hashes.sha256(path) == sha256.lower()


class WithLoraFiles:
    """What every ``Host`` says of LoRA files.

    Args:
        files: The host's LoRA folders.
    """

    def __init__(self, files: LoraFiles) -> None:
        self.files = files

    def lora_names(self) -> list[str]:
        """See ``Host.lora_names``."""
        return self.files.names()

    def resolve(self, choice: LoraChoice) -> str:
        """See ``Host.resolve``."""
        return self.files.resolve(choice)

    def fingerprint(self, choice: LoraChoice) -> str:
        """See ``Host.fingerprint``."""
        return self.files.fingerprint(choice)

    def load_lora(self, choice: LoraChoice) -> Lora:
        """See ``Host.load_lora``."""
        return self.files.load(choice)


def _check_hash(sha256: str | None) -> None:
    """Refuse what is no hash; None and an empty text pin nothing.

    Raises:
        LoraError: it is not 64 hexadecimal digits.
    """
    if sha256 and not _SHA256.fullmatch(sha256):
        raise LoraError(
            "The sha256 is not 64 hexadecimal digits.",
            {"Got": sha256[:80]},
            "copy the whole hash from the file's details, or pick the file again.",
        )


def _other_content(choice: LoraChoice, found: str) -> LoraNotFoundError:
    return LoraNotFoundError(
        f"{choice.name} is not the file this row was made with.",
        {"Expected sha256": choice.sha256, "Found": f"{found} with another content"},
        "restore the original file, or pick the file again to accept the new content.",
    )


def _missing(choice: LoraChoice, names: list[str], same: list[str]) -> LoraNotFoundError:
    near = near_names(choice.name, names)
    facts: dict[str, object] = {"sha256": choice.sha256} if choice.sha256 else {}
    if choice.sha256 and choice.size is None:
        facts["Looked at"] = "files of this name, and those whose hash is known: no size is pinned"
    if same:
        facts["Files of this name"] = ", ".join(same)
        return LoraNotFoundError(
            f"Several LoRA files are called {choice.name}.", facts, "give the name with its folder."
        )
    fix = "put the file into a LoRA folder and refresh the list."
    if near:
        facts["Near matches"] = ", ".join(near)
        fix = f"use {near[0]!r}, or put the file into a LoRA folder."
    return LoraNotFoundError(f"The LoRA file {choice.name} is missing.", facts, fix)
