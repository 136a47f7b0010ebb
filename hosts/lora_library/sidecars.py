"""Files that other programs put beside a LoRA: pictures, notes, trigger words. Never written."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

PICTURE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
}
_PICTURE_ENDINGS = (*PICTURE_TYPES, *(f".preview{ending}" for ending in PICTURE_TYPES))
_LONGEST_NOTES = 64 << 10  # bytes
_LONGEST_JSON = 8 << 20  # bytes; these files hold a model's page of a web site


def pictured(names: Iterable[str]) -> frozenset[str]:
    """The names, without their endings, of the LoRAs that have a picture among ``names``."""
    pictures = [name for name in names if name.endswith(_PICTURE_ENDINGS)]
    return frozenset(
        name.removesuffix(ending)
        for name in pictures
        for ending in _PICTURE_ENDINGS
        if name.endswith(ending)
    )


def preview_of(path: Path) -> Path | None:
    """The picture beside a LoRA, or None."""
    pictures = (path.with_name(path.stem + ending) for ending in _PICTURE_ENDINGS)
    return next((picture for picture in pictures if picture.is_file()), None)


def notes_of(path: Path) -> str | None:
    """The text beside a LoRA; None when there is none, or when it is too long for a note."""
    data = _read(path.with_name(f"{path.stem}.txt"), _LONGEST_NOTES)
    return None if data is None else data.decode("utf-8-sig", "replace").strip() or None


def words_of(path: Path) -> Iterator[str]:
    """Trigger words from the files of rgthree-comfy and of Lora Manager, in this order."""
    yield from _words(_json(path.with_name(f"{path.name}.rgthree-info.json")).get("trainedWords"))
    civitai = _json(path.with_name(f"{path.stem}.metadata.json")).get("civitai")
    if isinstance(civitai, dict):
        yield from _words(civitai.get("trainedWords"))


def _words(found: object) -> Iterator[str]:
    """Yield texts, and texts under ``word`` as rgthree-comfy has them."""
    for item in found if isinstance(found, list) else ():
        word = item.get("word") if isinstance(item, dict) else item
        if isinstance(word, str) and word.strip():
            yield word.strip()


def _json(path: Path) -> dict[str, object]:
    """The object in a file; empty when there is none: what others left broken is not our error."""
    data = _read(path, _LONGEST_JSON)
    try:
        found = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path, longest: int) -> bytes | None:
    """A file's bytes; None when it cannot be read or is longer than ``longest``."""
    try:
        with path.open("rb") as file:
            data = file.read(longest + 1)
    except OSError:
        return None
    return data if len(data) <= longest else None
