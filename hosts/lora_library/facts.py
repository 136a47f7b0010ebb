"""What the header of one LoRA file says, as JSON."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...lora_core.binding import is_text_encoder_key
from ...lora_core.family import BaseMatch
from ...lora_core.lora import Lora
from ...lora_core.metadata import summarize, tag_counts, trigger_phrase
from .sidecars import notes_of, preview_of, words_of

_LABELS = {
    "sd15": "SD 1.5",
    "sd15-inpaint": "SD 1.5 inpainting",
    "sd21": "SD 2",
    "sd21-inpaint": "SD 2 inpainting",
    "sdxl": "SDXL",
    "sdxl-inpaint": "SDXL inpainting",
    "sdxl-refiner": "SDXL refiner",
    "sd3": "SD 3",
    "flux": "Flux",
}
_TAGS = 100
_LONGEST_TEXT = 500  # characters


@dataclass(frozen=True)
class KnownLora:
    """A LoRA file and the bases that explain it, best first.

    Attributes:
        lora: Read from the header.
        matches: See ``match_bases``.
        family: See ``detect_lora_family``.
    """

    lora: Lora
    matches: tuple[BaseMatch, ...]
    family: str | None

    @property
    def problem(self) -> str | None:
        """Why the file cannot be applied to any model, or None."""
        modules = list(self.lora.modules.values())
        if self.lora.problem is not None or not modules:
            return self.lora.problem or "it holds no LoRA modules"
        return modules[0].problem if all(module.problem for module in modules) else None

    @property
    def has_text_encoder(self) -> bool:
        """Whether a module addresses a text encoder."""
        return any(map(is_text_encoder_key, self.lora.modules))

    @property
    def kinds(self) -> Counter[str]:
        """Number of modules by kind."""
        return Counter(module.kind for module in self.lora.modules.values())

    @property
    def ranks(self) -> list[int]:
        """Every rank that occurs, ascending."""
        return sorted({m.rank for m in self.lora.modules.values() if m.rank is not None})


def label_of(base: str) -> str:
    """What people call a base."""
    return _LABELS.get(base, base)


def facts_json(name: str, path: Path, known: KnownLora) -> dict[str, Any]:
    """The facts of one file; nothing but its header and the small files beside it is read."""
    lora = known.lora
    return {
        "name": name,
        "size": path.stat().st_size,
        "kinds": dict(known.kinds.most_common()),
        "formats": list(lora.formats),
        "ranks": known.ranks,
        "has_text_encoder": known.has_text_encoder,
        "family": known.family,
        "bases": [_match_json(match, len(lora.file.tensors)) for match in known.matches],
        "title": summarize(lora.metadata).get("title"),
        "words": _words(lora, path),
        "notes": notes_of(path),
        "metadata": {key: value[:_LONGEST_TEXT] for key, value in lora.metadata.items()},
        "problem": known.problem,
        "preview": preview_of(path) is not None,
    }


def _match_json(match: BaseMatch, total: int) -> dict[str, Any]:
    return {
        "base": match.base,
        "label": label_of(match.base),
        "used": match.tensors,
        "of": total,
    }


def _words(lora: Lora, path: Path) -> list[dict[str, Any]]:
    """Each word once: the author's phrase, the counted tags, then those of sidecar files."""
    words: dict[str, dict[str, Any]] = {}
    for word in _all_words(lora, path):
        words.setdefault(word["word"], word)
    return list(words.values())


def _all_words(lora: Lora, path: Path) -> Iterator[dict[str, Any]]:
    counts = tag_counts(lora.metadata)
    phrase = trigger_phrase(lora.metadata)
    if phrase and phrase not in counts:
        yield {"word": phrase[:_LONGEST_TEXT]}
    for tag, count in counts.most_common(_TAGS):
        yield {"word": tag[:_LONGEST_TEXT], "count": count}
    for word in words_of(path):
        yield {"word": word[:_LONGEST_TEXT]}
