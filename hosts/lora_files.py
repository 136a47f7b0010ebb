"""From the name in a row to a file in the LoRA folders: moved and renamed files are found."""

from collections import OrderedDict
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from ..lora_core.errors import LoraError
from ..lora_core.lora import Lora, load_lora
from .hash_store import HashStore
from .protocol import LoraChoice

_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
_PARSED_FILES_KEPT = 32


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
        content (size, then hash; only files of equal size are hashed), and the one file of that
        base name in any folder.

        Raises:
            LoraNotFoundError: nothing matches, or several files do.
            LoraError: the name leaves the folders.
        """
        names = self.names()
        wanted = _confined(self._relative(choice.name))
        by_posix = {posix_name(name): name for name in names}
        found = next(
            (by_posix[w] for w in (wanted, *(wanted + s for s in _SUFFIXES)) if w in by_posix), None
        )
        if found is not None and self._is_pinned(found, choice):
            return found
        pinned = [name for name in names if self._has_content(name, choice)]
        if pinned:
            return pinned[0]
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
        return list(dict.fromkeys([*same, *_near(name, names)]))

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
        return choice.sha256 is None or self._has_content(name, choice)

    def _has_content(self, name: str, choice: LoraChoice) -> bool:
        if choice.sha256 is None:
            return False
        path = self._full_path(name)
        if choice.size is not None and path.stat().st_size != choice.size:
            return False
        return self._hashes.sha256(path) == choice.sha256.lower()


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


def posix_name(name: str) -> str:
    """The name with ``/``, whichever system wrote it."""
    return name.replace("\\", "/")


def base_name(name: str) -> str:
    """The name without folders and without the ending of a LoRA file."""
    path = PurePosixPath(posix_name(name))
    return path.stem if path.suffix in _SUFFIXES else path.name


def _confined(name: str) -> str:
    """The name with ``/``.

    Raises:
        LoraError: it is empty, absolute, or climbs out of its folder.
    """
    path = PurePosixPath(posix_name(name))
    parts = path.parts if name.strip() else ()
    if not parts or path.is_absolute() or ".." in parts or ":" in parts[0]:
        raise LoraError(
            f"{name!r} is not a name inside the LoRA folders.",
            {"Expected": "a name relative to a LoRA folder, without '..'"},
            "put the file into a LoRA folder and pick it from the list.",
        )
    return str(path)


def _other_content(choice: LoraChoice, found: str) -> LoraNotFoundError:
    return LoraNotFoundError(
        f"{choice.name} is not the file this row was made with.",
        {"Expected sha256": choice.sha256, "Found": f"{found} with another content"},
        "restore the original file, or pick the file again to accept the new content.",
    )


def _near(wanted: str, names: list[str]) -> list[str]:
    """Up to three names that hold the wanted one, or resemble it."""
    by_base = {base_name(name).lower(): name for name in names}
    base = base_name(wanted).lower()
    holding = [name for stem, name in by_base.items() if base and base in stem]
    similar = [by_base[stem] for stem in get_close_matches(base, by_base, n=3, cutoff=0.5)]
    return list(dict.fromkeys([*holding, *similar]))[:3]


def _missing(choice: LoraChoice, names: list[str], same: list[str]) -> LoraNotFoundError:
    near = _near(choice.name, names)
    facts: dict[str, object] = {"sha256": choice.sha256} if choice.sha256 else {}
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
