r"""Prompt weights: ``(word:1.2)``, ``(word)`` for times 1.1, and ``\(`` for a plain bracket."""

import re

_EMPHASIS = 1.1
_ESCAPED_BRACKET = re.compile(r"\\([()])")


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Split a prompt where its weight changes.

    A number replaces the weight around it, brackets without one multiply it by 1.1. What is not
    a number stays text; a bracket without its partner does too.

    Returns:
        The parts in order, with plain brackets in place of escaped ones; none of them is empty.

    Source: the syntax of ComfyUI 0.30, unbalanced brackets included.
    """
    # Two characters for two: every index is good in both.
    mask = _ESCAPED_BRACKET.sub("\0\0", text)
    parts = []
    waiting = [(start, end, 1.0) for start, end in reversed(_pieces(mask, 0, len(text)))]
    while waiting:  # a stack: brackets may be nested deeper than calls
        start, end, weight = waiting.pop()
        if mask[start] == "(" and mask[end - 1] == ")":
            last, inner_weight = _read_group(mask[start + 1 : end - 1], weight)
            inner = _pieces(mask, start + 1, start + 1 + last)
            waiting += [(first, stop, inner_weight) for first, stop in reversed(inner)]
        else:
            parts.append((_ESCAPED_BRACKET.sub(r"\1", text[start:end]), weight))
    return parts


def _pieces(mask: str, start: int, end: int) -> list[tuple[int, int]]:
    """The outermost bracketed groups of a range and the texts between them, as index ranges.

    A ")" too many makes the depth negative: the next "(" only levels it and opens no group.
    """
    pieces, first, depth = [], start, 0
    for index in range(start, end):
        if mask[index] == "(":
            if depth == 0:
                pieces.append((first, index))
                first = index
            depth += 1
        elif mask[index] == ")":
            depth -= 1
            if depth == 0:
                pieces.append((first, index + 1))
                first = index + 1
    pieces.append((first, end))
    return [piece for piece in pieces if piece[0] < piece[1]]


def _read_group(inner: str, weight: float) -> tuple[int, float]:
    """Where the text of a group ends, and the weight of that text."""
    colon = inner.rfind(":")
    if colon > 0:
        try:
            return colon, float(inner[colon + 1 :])
        except ValueError:  # not a number: the colon is part of the text
            pass
    return len(inner), weight * _EMPHASIS
