"""The form of what nodes tell a user: the same facts as text, and as JSON for the canvas."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OK, IN_PART, NOTHING = "ok", "partial", "wrong"  # levels, as in the verdicts of rows

Facts = tuple[tuple[str, str], ...]
"""Name and value; an empty name for a value that says itself what it is."""

_EXAMPLES = 3
_MOST_KEYS = 500  # of a group, in JSON


@dataclass(frozen=True)
class Unused:
    """Tensors that change nothing, for one reason."""

    verdict: str
    reason: str
    keys: tuple[str, ...]

    def to_text(self) -> str:
        """One line, with examples."""
        more = ", ..." if len(self.keys) > _EXAMPLES else ""
        examples = ", ".join(self.keys[:_EXAMPLES]) + more
        return f"{len(self.keys)} {self.verdict}: {self.reason} ({examples})"

    def to_json(self) -> dict[str, Any]:
        """All names, up to a bound."""
        return {
            "count": len(self.keys),
            "verdict": self.verdict,
            "reason": self.reason,
            "keys": self.keys[:_MOST_KEYS],
        }


@dataclass(frozen=True)
class Bars:
    """A bar chart for the canvas; clients that want pixels take the node's pictures.

    Attributes:
        values: Label to a value of at least 0, in order.
        highest: Of all charts of the report, so that they can be compared.
        unit: What the values are.
    """

    values: tuple[tuple[str, float], ...]
    highest: float
    unit: str

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"values": self.values, "highest": self.highest, "unit": self.unit}


@dataclass(frozen=True)
class Section:
    """What a report tells of one LoRA.

    Attributes:
        title: Its name.
        summary: Strengths and how much of it is used; empty when it was not bound to a model.
        level: ``OK``, ``IN_PART`` or ``NOTHING`` of it is used; empty when it was not bound.
    """

    title: str
    summary: str = ""
    level: str = ""
    facts: Facts = ()
    unused: tuple[Unused, ...] = ()
    notes: tuple[str, ...] = ()
    bars: Bars | None = None

    def lines(self) -> Iterator[str]:
        """As text."""
        mark = "OK" if self.level == OK else "!!"
        yield f"{mark} {self.title} · {self.summary}" if self.level else self.title
        for name, value in self.facts:
            yield f"   {name}: {value}" if name else f"   {value}"
        yield from (f"   {group.to_text()}" for group in self.unused)
        yield from (f"   note: {note}" for note in self.notes)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "title": self.title,
            "summary": self.summary,
            "level": self.level,
            "facts": self.facts,
            "unused": [group.to_json() for group in self.unused],
            "notes": self.notes,
            "bars": self.bars.to_json() if self.bars and self.bars.values else None,
        }


@dataclass(frozen=True)
class Report:
    """What a node tells.

    Attributes:
        headline: What was done; empty when the facts say it.
    """

    headline: str = ""
    facts: Facts = ()
    sections: tuple[Section, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def level(self) -> str:
        """The worst of its sections."""
        levels = {section.level for section in self.sections}
        return next((level for level in (NOTHING, IN_PART) if level in levels), OK)

    def to_text(self) -> str:
        """For the node's outputs, and for clients of the API."""
        lines = [self.headline] if self.headline else []
        lines += [f"{name}: {value}" for name, value in self.facts]
        lines += self._section_lines()
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _section_lines(self) -> Iterator[str]:
        for number, section in enumerate(self.sections):
            if number and not section.level:
                yield ""  # the next LoRA
            yield from section.lines()

    def to_ui(self) -> dict[str, Any]:
        """What a node gives under ``ui``."""
        form = {
            "headline": self.headline,
            "level": self.level,
            "facts": self.facts,
            "sections": [section.to_json() for section in self.sections],
            "notes": self.notes,
        }
        return {"text": [self.to_text()], "lora_workbench_report": [form]}
