"""Weight LoRA: rules by block and part for LoRAs that are already in a stack."""

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from ..hosts import LoraChoice
from ..hosts.lora_names import base_name, posix_name
from ..lora_core.errors import LoraError
from ..lora_core.weighting import Weighting
from .base import Node
from .lora_stack import StackEntry, read_stack
from .resolve import problem_of

_POSITIONS = re.compile(r"(\d+)(?:\s*-\s*(\d+))?", re.ASCII)


def chosen(which: str, names: Sequence[str]) -> set[int]:
    """Indices (from 0) of the entries that a filter names.

    Args:
        which: Comma- or newline-separated positions (from 1) ``1, 3-4``, names with or without
            folder and ending, and globs ``*style*``; case does not count. Empty for all.
        names: Of the entries, in order.

    Raises:
        LoraError: a part of the filter names no entry.
    """
    parts = [part for part in re.split(r"\s*[,\n]\s*", which.strip()) if part]
    found: set[int] = set()
    for part in parts:
        indices = _indices(part, names)
        if not indices:
            raise LoraError(
                f"The filter {part!r} names no LoRA of the stack.",
                dict(enumerate(names, 1)) or {"Stack": "empty"},
                "give positions (1, 3-4), names or globs (*style*) from this list.",
            )
        found |= indices
    return found if parts else set(range(len(names)))


def _indices(part: str, names: Sequence[str]) -> set[int]:
    if positions := _POSITIONS.fullmatch(part):
        first, last = int(positions[1]), int(positions[2] or positions[1])
        inside = 1 <= first <= last <= len(names)
        return set(range(first - 1, last)) if inside else set()
    pattern = posix_name(part).lower()
    return {
        index
        for index, name in enumerate(names)
        if any(
            fnmatchcase(spelling, pattern) or spelling == pattern for spelling in _spellings(name)
        )
    }


def _spellings(name: str) -> set[str]:
    path = PurePosixPath(posix_name(name).lower())
    base = base_name(str(path))
    return {str(path), path.name, base, str(path.with_name(base))}


def combined(own: Weighting, later: Weighting) -> Weighting:
    """``later`` after ``own``: its rules win, and a default other than 1 covers every weight."""
    if later.default != 1.0:
        return later
    return Weighting((*own.rules, *later.rules), own.default)


class LoraWorkbenchWeight(Node):
    """Adds a weighting to entries of a stack."""

    DISPLAY_NAME = "Weight LoRA"
    DESCRIPTION = "Gives LoRAs of a stack factors by block and part; also those of other packs."
    SEARCH_ALIASES = ("lora block weight", "lbw", "block weight", "layer weight")
    RETURN_TYPES = ("LORA_STACK",)
    RETURN_NAMES = ("lora_stack",)
    OUTPUT_TOOLTIPS = ("The stack, its chosen LoRAs weighted.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        weighting = {
            "default": "",
            "multiline": True,
            "dynamicPrompts": False,
            "tooltip": (
                "Factors of the strength by block or part, for example "
                "'IN04-08=0.5, attn2=0, *.ff.net.0*=0.2'. Empty: no change."
            ),
        }
        which = {
            "default": "",
            "dynamicPrompts": False,
            "tooltip": (
                "Which LoRAs: positions from 1 ('1, 3-4'), names, or globs ('*style*'). "
                "Empty: all of them."
            ),
        }
        return {
            "required": {
                "lora_stack": ("LORA_STACK", {"tooltip": "The LoRAs, from any pack."}),
                "weighting": ("STRING", weighting),
                "which": ("STRING", which),
            },
            "optional": {},
        }

    @classmethod
    def VALIDATE_INPUTS(  # noqa: N802  ComfyUI's name
        cls, weighting: object = None
    ) -> bool | str:
        """Refuse unreadable rules when the graph is queued; linked text is read when it comes."""
        return problem_of(weighting, Weighting.parse) or True

    def execute(self, lora_stack: object, weighting: str, which: str) -> tuple[list[StackEntry]]:
        """Append the rules to those that the chosen entries have."""
        later = Weighting.parse(weighting)
        entries, _ = read_stack(lora_stack, lambda name: self.host.load_lora(LoraChoice(name)))
        for index in chosen(which, [entry[0] for entry in entries]):
            entry = entries[index]
            item = replace(entry.item, weighting=combined(entry.item.weighting, later))
            entries[index] = StackEntry(entry[0], item, entry.notes)
        return (entries,)
