"""A schedule of the sampling as text: from which share on, which factor."""

import re
from collections.abc import Iterator

from ..lora_core.errors import LoraError
from ..lora_core.stack import checked_strength

RAMP_STEPS = 10
_MOST_STEPS = 100
_SHARE = r"((?:\d+(?:\.\d+)?|\.\d+)\s*%?)"
_FACTOR = r"([+-]?(?:\d+(?:\.\d+)?|\.\d+))"
_POINT = re.compile(rf"{_SHARE}\s*=\s*{_FACTOR}", re.ASCII)
_RAMP = re.compile(
    rf"{_SHARE}\s*-\s*{_SHARE}\s*=\s*{_FACTOR}\s*\.\.\s*{_FACTOR}(?:\s+in\s+(\d{{1,4}}))?", re.ASCII
)
_FORM = "start=factor as in 0.3=0.5 or 30%=0.5, or a ramp as in 0.2-0.8=0..1 in 6"

Keyframe = tuple[float, float]
"""Start, a share of the sampling from 0 to 1, and the factor from there on."""


def parse_schedule(text: str) -> tuple[Keyframe, ...]:
    """Read a schedule.

    Comma- or newline-separated ``start=factor`` and ramps ``start-end=from..to in N``: ``N`` steps
    (10 when not said) from ``start`` to ``end``, both included. Starts are shares, 0 to 1, or
    percent with ``%``. Before the first start the factor is 1.

    Args:
        text: Empty for factor 1 throughout.

    Returns:
        ``(start, factor)`` by rising start, the first at 0; empty for empty text.

    Raises:
        LoraError: an entry has none of these forms, a start is out of range or before the one
            above it, a factor is not in -100..100, or the schedule changes nothing.
    """
    factors: dict[float, float] = {}
    latest = 0.0
    for entry in filter(None, re.split(r"\s*[,\n]\s*", text.strip())):
        for start, factor in _keyframes(entry):
            if start < latest:
                raise LoraError(
                    "The starts of the schedule do not rise.",
                    {"Entry": entry, "Starts at": f"{start:g}", "After": f"{latest:g}"},
                    "write the entries in the order of the sampling.",
                )
            factors[start] = factor  # at an equal start the later entry decides
            latest = start
    return _from_0(tuple(factors.items()))


def _from_0(keyframes: tuple[Keyframe, ...]) -> tuple[Keyframe, ...]:
    if not keyframes or keyframes[0][0] == 0.0:
        return keyframes
    start, factor = keyframes[0]
    if factor == 1.0:
        raise LoraError(
            f"The schedule's first entry changes nothing: before {start:g} the factor is 1 too.",
            {"First entry": f"{start:g}=1"},
            f"to begin there, write 0=0, {start:g}=1.",
        )
    return ((0.0, 1.0), *keyframes)


def _keyframes(entry: str) -> Iterator[Keyframe]:
    if point := _POINT.fullmatch(entry):
        yield _share(point[1], entry), _factor(point[2], entry)
    elif ramp := _RAMP.fullmatch(entry):
        yield from _ramp(ramp, entry)
    else:
        raise LoraError("The schedule cannot be read.", {"Entry": entry}, f"write {_FORM}.")


def _ramp(ramp: re.Match[str], entry: str) -> Iterator[Keyframe]:
    start, end = _share(ramp[1], entry), _share(ramp[2], entry)
    first, last = _factor(ramp[3], entry), _factor(ramp[4], entry)
    steps = int(ramp[5] or RAMP_STEPS)
    if not start < end or not 2 <= steps <= _MOST_STEPS:
        raise LoraError(
            "A ramp of the schedule has no length or no steps.",
            {"Entry": entry, "Expected": f"start < end, 2 to {_MOST_STEPS} steps"},
            "write for example 0.2-0.8=0..1 in 6.",
        )
    for number in range(steps):
        part = number / (steps - 1)
        yield _between(start, end, part), _between(first, last, part)


def _between(first: float, last: float, part: float) -> float:
    return first * (1 - part) + last * part


def _share(text: str, entry: str) -> float:
    number = float(text.rstrip("% \t"))
    share = number / 100 if text.endswith("%") else number
    if share > 1.0:
        raise LoraError(
            "A start of the schedule is out of range.",
            {"Entry": entry, "Expected": "a share from 0 to 1, or 0% to 100%", "Got": text},
            "give the share of the sampling, or add a % sign.",
        )
    return share


def _factor(text: str, entry: str) -> float:
    return checked_strength(float(text), f"The factor of {entry!r}")
