"""From a prompt to chunks of 77 weighted tokens."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ....lora_core.errors import LoraError
from ..parts import EncoderName
from .tokenizer import END, START, Tokenizer
from .weights import parse_weights

CHUNK = 77
"""Tokens that an encoder reads at once, the start and end tokens included."""

_PAD = {"l": END, "h": 0, "g": 0}
_CAN_BE_CUT = 8  # a part of fewer tokens moves to the next chunk as a whole
_EMBEDDING = re.compile(r"(?:^|(?<=\s))embedding:\S*")


class Token(NamedTuple):
    """One token of a prompt."""

    id: int
    weight: float


def tokenize(text: str, encoder: EncoderName, tokenizer: Tokenizer) -> list[list[Token]]:
    """Token chunks of a prompt as an encoder reads them.

    Args:
        text: With weights such as ``(word:1.2)``.
        encoder: Decides the padding: the end token for CLIP-L, 0 for the others.
        tokenizer: CLIP's.

    Returns:
        At least one chunk of 77 tokens: start, text, end, padding. Encoders differ in nothing but
        the padding, so the chunks of two of them are as many.

    Raises:
        LoraError: the prompt names an embedding, or is no valid Unicode.
    """
    return [_framed(body, _PAD[encoder]) for body in _bodies(text, tokenizer)]


def empty_chunk(encoder: EncoderName) -> list[Token]:
    """The only chunk of an empty prompt."""
    return _framed([], _PAD[encoder])


def _bodies(text: str, tokenizer: Tokenizer) -> list[list[Token]]:
    """At most 75 tokens each, what stands between start and end."""
    _check_unicode(text)
    bodies: list[list[Token]] = [[]]
    for part, weight in parse_weights(text):
        _check_embeddings(part)
        tokens = [Token(int(token), weight) for token in tokenizer(part)]
        can_be_cut = len(tokens) >= _CAN_BE_CUT
        while len(tokens) > (room := CHUNK - 2 - len(bodies[-1])):
            if can_be_cut:
                bodies[-1] += tokens[:room]
                tokens = tokens[room:]
            bodies.append([])
        bodies[-1] += tokens
    return bodies


def _framed(body: Sequence[Token], pad: int) -> list[Token]:
    rest = CHUNK - 2 - len(body)
    return [Token(START, 1.0), *body, Token(END, 1.0), *[Token(pad, 1.0)] * rest]


def _check_embeddings(part: str) -> None:
    found = _EMBEDDING.search(part)
    if found is not None:
        raise LoraError(
            "Embeddings in prompts need ComfyUI.",
            {"Embedding": found[0]},
            "remove it from the prompt, or run this graph with --comfyui URL or PATH.",
        )


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LoraError(
            "The prompt holds half a character.",
            {"Position": error.start, "Code": f"U+{ord(text[error.start]):04X}"},
            "write the character again.",
        ) from error
