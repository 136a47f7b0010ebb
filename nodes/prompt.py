"""Prompt with LoRAs: `<lora:name:1:0.8>` in a prompt, as LoRAs and as text without the tags."""

import re
from collections.abc import Sequence
from typing import Any

from ..lora_core.errors import LoraError
from .base import Node
from .lora_stack import StackEntry
from .resolve import entries_of, fingerprint_of_rows, problem_of
from .rows import TAG, Row, Rows, tag_row

_BROKEN_TAG = re.compile(r"<\s*lora\s*:[^<>\n]{0,60}>?", re.IGNORECASE)
_SEPARATORS = " \t\r\n,"
_OPENING = "([{|"
_CLOSING = ")]}|:;.!?"


def read_prompt(text: str) -> tuple[str, tuple[Row, ...]]:
    """A prompt without its ``<lora:...>`` tags, and a row per tag in their order.

    Where a tag stood, the separators around it become one: no double space, no comma without a
    neighbour. All other text stays as it is.

    Raises:
        LoraError: a tag cannot be read.
    """
    ends = [0, *(end for tag in TAG.finditer(text) for end in tag.span()), len(text)]
    pieces = [text[first:last] for first, last in zip(ends[::2], ends[1::2], strict=True)]
    broken = next((found for piece in pieces if (found := _BROKEN_TAG.search(piece))), None)
    if broken is not None:
        raise LoraError(
            "A LoRA tag of the prompt cannot be read.",
            {"Tag": broken[0]},
            "write <lora:file>, <lora:file:1.0> or <lora:file:1.0:0.8>.",
        )
    return _joined(pieces), tuple(map(tag_row, TAG.finditer(text)))


def _joined(pieces: Sequence[str]) -> str:
    """The text between the tags as one; ``pieces`` has one more than there are tags."""
    first, *others = pieces
    if not others:
        return first
    joined = first.rstrip(_SEPARATORS)
    gap = [first[len(joined) :]]  # the separators between two texts, cut where tags stood
    for piece in others:
        body = piece.lstrip(_SEPARATORS)
        gap.append(piece[: len(piece) - len(body)])
        if body:
            text = body.rstrip(_SEPARATORS)
            joined += _separator(joined, gap, text) + text
            gap = [body[len(text) :]]
    return joined + gap[0] if len(gap) == 1 else joined


def _separator(before: str, gap: Sequence[str], after: str) -> str:
    if not before or before[-1] in _OPENING or after[0] in _CLOSING:
        return ""
    comma = "," if any("," in part for part in gap) else ""
    lines = max(part.count("\n") for part in gap)
    if lines:
        return comma + "\n" * lines
    is_space = comma or any(gap) or (before[-1].isalnum() and after[0].isalnum())
    return comma + " " if is_space else ""


class LoraWorkbenchPrompt(Node):
    """Splits a prompt into text and LoRAs."""

    DISPLAY_NAME = "Prompt with LoRAs"
    DESCRIPTION = (
        "Reads <lora:name:1:0.8> in a prompt, as other programs write it: gives the text without "
        "the tags, and the LoRAs as a stack."
    )
    SEARCH_ALIASES = ("lora tag loader", "prompt lora", "a1111 lora syntax", "text to lora stack")
    RETURN_TYPES = ("STRING", "LORA_STACK")
    RETURN_NAMES = ("text", "lora_stack")
    OUTPUT_TOOLTIPS = (
        "The prompt without the tags, for CLIP Text Encode.",
        "The LoRAs in the order of their tags.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        text = {
            "multiline": True,
            "dynamicPrompts": False,
            "default": "",
            "tooltip": (
                "A prompt with <lora:name>, <lora:name:1.0> or <lora:name:1.0:0.8>: file name, "
                "then strength on the model and on the text encoders; 1 is as trained."
            ),
        }
        return {"required": {"text": ("STRING", text)}, "optional": {}}

    @classmethod
    def VALIDATE_INPUTS(cls, text: object = None) -> bool | str:  # noqa: N802  ComfyUI's name
        """Refuse unreadable tags when the graph is queued; linked text is read when it comes."""
        return problem_of(text, read_prompt) or True

    @classmethod
    def IS_CHANGED(cls, text: object = None, **_: object) -> str:  # noqa: N802  ComfyUI's name
        """Changes when a LoRA file changes on disk."""
        return fingerprint_of_rows(cls.host, read_prompt(text)[1]) if isinstance(text, str) else ""

    def execute(self, text: str) -> tuple[str, list[StackEntry]]:
        """Load the LoRAs of the tags."""
        cleaned, rows = read_prompt(text)
        entries, _ = entries_of(self.host, None, Rows(rows))
        return cleaned, entries
