"""Names of LoRA files as rows and hosts write them."""

from difflib import get_close_matches
from pathlib import PurePosixPath

from ..lora_core.errors import LoraError

SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")


def posix_name(name: str) -> str:
    """The name with ``/``, whichever system wrote it."""
    return name.replace("\\", "/")


def base_name(name: str) -> str:
    """The name without folders and without the ending of a LoRA file."""
    path = PurePosixPath(posix_name(name))
    return path.stem if path.suffix in SUFFIXES else path.name


def confined(name: str) -> str:
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


def near_names(wanted: str, names: list[str]) -> list[str]:
    """Up to three names that hold the wanted one, or resemble it."""
    by_base = {base_name(name).lower(): name for name in names}
    base = base_name(wanted).lower()
    holding = [name for stem, name in by_base.items() if base and base in stem]
    similar = [by_base[stem] for stem in get_close_matches(base, by_base, n=3, cutoff=0.5)]
    return list(dict.fromkeys([*holding, *similar]))[:3]
