"""Errors as JSON, without the folders of this machine."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...lora_core.errors import LoraError


def error_json(error: LoraError, folders: Iterable[Path]) -> dict[str, Any]:
    """Headline, facts and fix as texts.

    Args:
        error: May name files by their absolute paths.
        folders: What to cut from the front of paths.
    """
    roots = _spellings(folders)
    return {
        "headline": _relative(error.headline, roots),
        "facts": {name: _fact(value, roots) for name, value in error.facts.items()},
        "fix": _relative(error.fix, roots),
    }


def _fact(value: object, roots: list[str]) -> str:
    return value.name if isinstance(value, Path) else _relative(str(value), roots)


def _relative(text: str, roots: list[str]) -> str:
    for root in roots:
        text = text.replace(root, "")
    return text


def _spellings(folders: Iterable[Path]) -> list[str]:
    """The folders as errors write them, the longest first: a folder may lie in another."""
    roots = {str(root) for folder in folders for root in (folder, folder.resolve())}
    quoted = {root.replace("\\", "\\\\") for root in roots}  # as repr() writes them on Windows
    ends = ("/", "\\\\", "\\", "")
    found = {root + end for root in roots | quoted for end in ends if len(root) > 1}
    return sorted(found, key=len, reverse=True)
