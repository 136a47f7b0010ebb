"""Where models, pictures and results lie: ComfyUI's folder names, and names confined to them."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...lora_core.errors import LoraError

_CHECKPOINT_SUFFIXES = (".safetensors",)
_LORA_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NUMBERED = re.compile(r"_(\d+)_")


@dataclass(frozen=True)
class Folders:
    """The folders of one run.

    Attributes:
        models: Holds ``checkpoints`` and ``loras``.
        input: Pictures that Load Image reads.
        output: Results of Save Image.
        temp: Results of Preview Image.
        user: Small databases that are kept between runs.
    """

    models: Path
    input: Path
    output: Path
    temp: Path
    user: Path

    def checkpoints(self) -> list[str]:
        """Checkpoint files, and folders in diffusers' form, relative, with ``/``, sorted."""
        root = self.models / "checkpoints"
        folders = [path.parent for path in root.rglob("model_index.json")] if root.is_dir() else []
        single = [
            name
            for name in _files(root, _CHECKPOINT_SUFFIXES)
            if not any((root / name).is_relative_to(folder) for folder in folders)
        ]
        return sorted([*single, *(f.relative_to(root).as_posix() for f in folders)])

    def checkpoint(self, name: str) -> Path:
        """Path of a checkpoint.

        Raises:
            LoraError: the name leaves the folder, or there is no such file.
        """
        return _existing(self.models / "checkpoints", name, "checkpoint", self.checkpoints)

    def loras(self) -> list[str]:
        """LoRA files, relative, with ``/``, sorted."""
        return _files(self.models / "loras", _LORA_SUFFIXES)

    def lora(self, name: str) -> Path:
        """Path of a listed LoRA file."""
        return confined(self.models / "loras", name)

    def inputs(self) -> list[str]:
        """Pictures of the input folder itself, sorted."""
        if not self.input.is_dir():
            return []
        found = (path for path in self.input.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES)
        return sorted(path.name for path in found)

    def input_file(self, name: str) -> Path:
        """Path of a picture; a trailing ``[input]``, ``[output]`` or ``[temp]`` names the folder.

        Raises:
            LoraError: the name leaves the folder, or there is no such file.
        """
        bare, _, kind = name.partition(" [")
        folder = {"": self.input, "input]": self.input, "output]": self.output, "temp]": self.temp}
        return _existing(folder.get(kind, self.input), bare, "picture", self.inputs)


def confined(folder: Path, name: str) -> Path:
    """A path below a folder.

    Raises:
        LoraError: the name is empty, absolute, or climbs out of the folder.
    """
    posix = PurePosixPath(name.replace("\\", "/"))
    if not name.strip() or posix.is_absolute() or ".." in posix.parts or ":" in posix.parts[0]:
        raise LoraError(
            f"{name!r} is not a name inside the folder.",
            {"Folder": folder, "Expected": "a relative name without '..'"},
            "give a name inside this folder.",
        )
    return folder / posix


@dataclass(frozen=True)
class Numbered:
    """Where the files of one node go.

    Attributes:
        folder: It exists.
        subfolder: Relative to the output folder, with ``/``.
        stem: File name before its number.
        first: The first free number.
    """

    folder: Path
    subfolder: str
    stem: str
    first: int

    def name(self, index: int, suffix: str = ".png") -> str:
        """File name of number ``index`` of the batch, from 0."""
        return f"{self.stem.replace('%batch_num%', str(index))}_{self.first + index:05}_{suffix}"


def numbered(root: Path, prefix: str, width: int, height: int) -> Numbered:
    """Make room for files called ``prefix_00001_.png`` and so on, as ComfyUI names them.

    Args:
        root: The output folder.
        prefix: May hold folders, and ``%width%``, ``%height%``, ``%year%``, ``%month%``, ``%day%``,
            ``%hour%``, ``%minute%``, ``%second%``, ``%batch_num%``.
        width: In pixels.
        height: In pixels.

    Raises:
        LoraError: the prefix leaves the folder.
    """
    path = confined(root, _filled(prefix, width, height))
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = [
        int(match[1])
        for other in path.parent.iterdir()
        if other.name.lower().startswith(f"{path.name}_".lower())
        and (match := _NUMBERED.match(other.name, len(path.name)))
    ]
    subfolder = path.parent.relative_to(root).as_posix()
    return Numbered(
        path.parent, "" if subfolder == "." else subfolder, path.name, max(taken, default=0) + 1
    )


def _filled(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    values = {"width": str(width), "height": str(height), "year": str(now.tm_year)}
    for name, number in {
        "month": now.tm_mon,
        "day": now.tm_mday,
        "hour": now.tm_hour,
        "minute": now.tm_min,
        "second": now.tm_sec,
    }.items():
        values[name] = f"{number:02}"
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", value)
    return prefix


def _files(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    if not root.is_dir():
        return []
    found = (path for path in root.rglob("*") if path.suffix in suffixes and path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in found)


def _existing(folder: Path, name: str, what: str, names: Callable[[], list[str]]) -> Path:
    path = confined(folder, name)
    if not path.exists():
        raise LoraError(
            f"The {what} {name} is missing.",
            {"Folder": folder, "There": ", ".join(names()[:5]) or "nothing"},
            "put it into this folder, or name another folder on the command line.",
        )
    return path
