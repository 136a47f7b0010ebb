"""Where training reads pictures and writes LoRAs, on every host."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

from ..lora_core.errors import LoraError

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class TrainingFolders:
    """Folders of runs.

    Attributes:
        runs: One folder a run: its states and its file.
        cache: Latents and conditions of all runs.
    """

    runs: Path
    cache: Path


class WithTrainingPlaces:
    """The part of a ``Host`` that finds pictures and keeps trained LoRAs.

    Args:
        pictures: The folder that folders of pictures are named in.
        loras: The folder that trained LoRAs are written to.
        user: The folder of what is kept between runs.
    """

    def __init__(
        self,
        pictures: Callable[[], Path],
        loras: Callable[[], Path],
        user: Callable[[], Path],
    ) -> None:
        self._pictures, self._loras, self._user = pictures, loras, user
        self.stopped_runs: set[tuple[str, int, str]] = set()

    def pictures_folder(self, name: str) -> Path:
        """See ``Host.pictures_folder``."""
        path = _confined(self._pictures(), name)
        if not path.is_dir():
            raise LoraError(
                f"There is no folder {name!r} of pictures.",
                {"Looked in": self._pictures()},
                "put the pictures into a folder there, or link one.",
            )
        return path

    def pictures_fingerprint(self, names: Iterable[str]) -> str:
        """See ``Host.pictures_fingerprint``."""
        digest = hashlib.sha256()
        for name in names:
            try:
                root = _confined(self._pictures(), name)
            except LoraError:
                continue  # execute says so
            for folder, subfolders, files in os.walk(root, followlinks=True):
                subfolders.sort()
                for file in sorted(files):
                    path = Path(folder, file)
                    try:
                        stat = path.stat()
                    except OSError:
                        continue  # a link to nothing is no picture
                    digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def training_folders(self) -> TrainingFolders:
        """See ``Host.training_folders``."""
        root = self._user() / "training"
        return TrainingFolders(root / "runs", root / "cache")

    def require_lora_name(self, name: str) -> None:
        """See ``Host.require_lora_name``."""
        _confined(self._loras(), name)

    def keep_lora(self, name: str, source: Path, step: int | None) -> Path:
        """See ``Host.keep_lora``."""
        stem = name if step is None else f"{name}-step-{step:08}"
        wanted = _confined(self._loras(), stem + _SUFFIX)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        for number in count():
            path = wanted if not number else wanted.with_name(f"{wanted.stem}-{number}{_SUFFIX}")
            if not path.exists():
                break
            if path.read_bytes() == content:
                return path
        draft = path.with_name(f".{path.name}.new")
        try:
            shutil.copyfile(source, draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return path


def _confined(root: Path, name: str) -> Path:
    posix = PurePosixPath(name.replace("\\", "/"))
    parts = posix.parts
    if not parts or posix.is_absolute() or ".." in parts or ":" in parts[0]:
        raise LoraError(
            f"{name!r} is not a name inside the folder.",
            {"Folder": root, "Expected": "a relative name without '..'"},
            "give a name inside this folder.",
        )
    return root / posix
