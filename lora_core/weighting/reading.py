"""Read the forms in which a weighting is written, as `(select, factor)` entries."""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import LoraError

LIMIT = 100.0  # the strengths' own range

_SEPARATOR = re.compile(r"\s*,\s*|\s*\n\s*")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.I | re.ASCII)
_INSPIRE_LETTERS = frozenset("RUABruab")


def _numbered(prefix: str, *numbers: int) -> list[str]:
    return [f"{prefix}{number:02}" for number in numbers]


# The block of each position. Source: hako-mikan/sd-webui-lora-block-weight, BLOCKID12 to 26.
NUMBER_LISTS = {
    12: ("BASE", *_numbered("IN", 4, 5, 7, 8), "M00", *_numbered("OUT", *range(6))),
    17: ("BASE", *_numbered("IN", 1, 2, 4, 5, 7, 8), "M00", *_numbered("OUT", *range(3, 12))),
    20: ("BASE", *_numbered("IN", *range(9)), "M00", *_numbered("OUT", *range(9))),
    26: ("BASE", *_numbered("IN", *range(12)), "M00", *_numbered("OUT", *range(12))),
}


class Entry(NamedTuple):
    """One rule before its selector is read; ``written`` is the user's own text, for errors."""

    select: str
    factor: float
    written: str


def read_entries(value: str | Sequence[object] | None) -> list[Entry]:
    """Read rule text, JSON text, a list of rule objects, a list of numbers, or nothing.

    Args:
        value: ``None`` and empty text mean no rule.

    Returns:
        The rules in the order written. A list of numbers becomes ``default=0`` and one rule per
        block that is not 0.

    Raises:
        LoraError: The value has none of these forms, or a factor is no number in -100..100.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return _read_text(value.strip())
    if isinstance(value, list | tuple):
        return _read_list(value)
    raise _wrong_form(repr(value))


def _read_text(text: str) -> list[Entry]:
    if text[:1] + text[-1:] in ("[]", "{}"):
        return _read_json(text)
    items = _SEPARATOR.split(text.rstrip(", \t\r\n"))
    if "=" not in text and any(_NUMBER.fullmatch(i) or i in _INSPIRE_LETTERS for i in items):
        return _read_numbers([_read_number(item, text) for item in items], text)
    return [_read_rule(item) for item in items if item]


def _read_json(text: str) -> list[Entry]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        facts = {"Text": text[:200], "Reason": error}
        raise LoraError("The weighting is not valid JSON.", facts, "correct the JSON.") from error
    if not isinstance(value, list):
        raise _wrong_form(text)
    return _read_list(value)


def _read_list(items: Sequence[object]) -> list[Entry]:
    if items and not any(isinstance(item, dict) for item in items):
        written = repr(items)[:200]
        return _read_numbers([_check_factor(item, written) for item in items], written)
    return [_read_object(item) for item in items]


def _read_object(item: object) -> Entry:
    written = json.dumps(item, default=repr)
    if not isinstance(item, dict) or set(item) != {"select", "factor"}:
        raise _wrong_form(written)
    if not isinstance(item["select"], str):
        raise _wrong_form(written)
    return Entry(item["select"].strip(), _check_factor(item["factor"], written), written)


def _read_rule(rule: str) -> Entry:
    select, equals, factor = rule.rpartition("=")
    if not equals:
        raise LoraError(
            f"Rule {rule!r} has no factor.",
            fix="write selector=factor, as in IN04=0.5 (decimal point; a comma separates rules).",
        )
    return Entry(select.strip(), _read_number(factor.strip(), rule), rule)


def _read_number(text: str, written: str) -> float:
    if text in _INSPIRE_LETTERS:
        raise LoraError(
            f"The letter {text!r} is not supported in a list of block factors.",
            {"Rule": written, "Inspire Pack": "R and U are random, A and B are inputs"},
            "write a number in its place.",
        )
    if not _NUMBER.fullmatch(text):
        raise LoraError(
            f"{text!r} is not a number.",
            {"Rule": written},
            "write a number with a decimal point, as in 0.5.",
        )
    return _check_factor(float(text), written)


def _check_factor(value: object, written: str) -> float:
    """Return ``value`` as a float; NaN fails the comparison like any number out of range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LoraError(f"{value!r} is not a number.", {"Rule": written}, "write a number.")
    if not -LIMIT <= value <= LIMIT:
        raise LoraError(
            f"Factor {value} is out of range.",
            {"Rule": written, "Range": f"{-LIMIT:g} to {LIMIT:g}"},
            "choose a factor in the range; 1 leaves the strength as it is.",
        )
    return float(value) + 0.0  # -0.0 becomes 0.0, so that equal weightings have equal text


def _read_numbers(numbers: Sequence[float], written: str) -> list[Entry]:
    if len(numbers) not in NUMBER_LISTS:
        raise LoraError(
            f"A list of {len(numbers)} block factors is not known.",
            {
                "Rule": written,
                "Accepted": ", ".join(f"{length} numbers" for length in NUMBER_LISTS),
            },
            "give a list of an accepted length, or rules: default=0, IN04-08=0.5",
        )
    named = zip(NUMBER_LISTS[len(numbers)], numbers, strict=True)
    blocks = [Entry(block, number, written) for block, number in named if number]
    return [Entry("default", 0.0, written), *blocks]


def _wrong_form(written: str) -> LoraError:
    return LoraError(
        "The weighting has no form that is read.",
        {"Got": written[:200], "JSON": '[{"select": "IN04-08", "factor": 0.5}]'},
        "write rules as text, 'IN04-08=0.5, attn2=0', or in the JSON form.",
    )
