"""The weighting of a LoRA: one factor per target, from rules."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..models.target import Target
from .reading import read_entries
from .selectors import Selector, parse_selector


@dataclass(frozen=True, slots=True)
class Rule:
    """A factor for the targets that all ``selectors`` name."""

    selectors: tuple[Selector, ...]
    factor: float

    @property
    def select(self) -> str:
        """The selectors' canonical text."""
        return " & ".join(map(str, self.selectors))

    def matches(self, target: Target) -> bool:
        """Tell whether the rule names this target."""
        return all(selector.matches(target) for selector in self.selectors)

    def __str__(self) -> str:
        return f"{self.select}={_number_text(self.factor)}"


@dataclass(frozen=True, slots=True)
class Weighting:
    """Factors by which a LoRA's strength is multiplied, target by target.

    Immutable and hashable; equal rules in equal order are equal. The grammar is in
    ``docs/weighting.md``.

    Attributes:
        rules: In the order written; the last that names a target decides.
        default: The factor of targets that no rule names, dimensionless.
    """

    rules: tuple[Rule, ...] = ()
    default: float = 1.0

    @classmethod
    def parse(cls, value: str | Sequence[object] | None) -> "Weighting":
        """Read a weighting in any of its forms.

        Args:
            value: Rule text (``IN04-08=0.5, attn2=0``), JSON text, a list of
                ``{"select": ..., "factor": ...}``, or 12, 17, 20 or 26 numbers as text or list.
                ``None`` and empty text give the identity.

        Returns:
            The weighting.

        Raises:
            UnknownChoiceError: A selector is unknown; near matches are named.
            LoraError: Any other fault; the rule is named.
        """
        entries = read_entries(value)
        defaults = [entry.factor for entry in entries if entry.select == "default"]
        rules = tuple(
            Rule(parse_selector(entry.select, entry.written), entry.factor)
            for entry in entries
            if entry.select != "default"
        )
        return cls(rules, defaults[-1] if defaults else 1.0)

    @property
    def is_identity(self) -> bool:
        """True when every factor written is 1, so that no strength can change."""
        return self.default == 1.0 and all(rule.factor == 1.0 for rule in self.rules)

    def factor(self, target: Target) -> float:
        """Return the factor of one target, in -100..100, dimensionless."""
        for rule in reversed(self.rules):
            if rule.matches(target):
                return rule.factor
        return self.default

    def unmatched_rules(self, targets: Iterable[Target]) -> list[str]:
        """Return the text of each rule that names none of a model's targets."""
        model = tuple(targets)
        return [str(rule) for rule in self.rules if not any(map(rule.matches, model))]

    def to_text(self) -> str:
        """Return canonical rule text; ``parse`` reads it back to an equal weighting."""
        entries = (f"{select}={_number_text(factor)}" for select, factor in self._entries())
        return ", ".join(entries)

    def to_json(self) -> str:
        """Return canonical JSON text; ``parse`` reads it back to an equal weighting."""
        return json.dumps(
            [{"select": select, "factor": factor} for select, factor in self._entries()]
        )

    def _entries(self) -> list[tuple[str, float]]:
        default = [] if self.default == 1.0 else [("default", self.default)]
        return [*default, *((rule.select, rule.factor) for rule in self.rules)]


def _number_text(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)
