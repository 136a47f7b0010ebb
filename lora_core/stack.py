"""An ordered stack of LoRAs, and the plan it makes for a model: one list of terms per storage."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .binding import Binding, BoundPart, NameTable, bind
from .errors import LoraError
from .lora import Lora
from .models.target import Target
from .modules import LoraModule, Part
from .weighting import Weighting

STRENGTH_LIMIT = 100.0
"""Strengths lie in [-100, 100], as in ComfyUI's LoraLoader."""


@dataclass(frozen=True)
class StackItem:
    """One LoRA with its dimensionless strengths and its weighting.

    Raises:
        LoraError: a strength is not a finite number in [-100, 100].
    """

    lora: Lora
    strength_model: float = 1.0
    strength_clip: float = 1.0
    weighting: Weighting = field(default_factory=Weighting)

    def __post_init__(self) -> None:
        for name in ("strength_model", "strength_clip"):
            checked_strength(getattr(self, name), f"{self.lora.name}: {name}")

    def coefficient(self, target: Target) -> float:
        """Strength times weighting for one target; alpha / rank is not included."""
        strength = self.strength_model if target.component == "unet" else self.strength_clip
        return strength * self.weighting.factor(target)


def checked_strength(value: float, where: str) -> float:
    """Return ``value`` when it is a finite number in [-100, 100].

    Raises:
        LoraError: it is not.
    """
    if not math.isfinite(value) or abs(value) > STRENGTH_LIMIT:
        raise LoraError(
            f"{where} is out of range.",
            {"Expected": f"a number from {-STRENGTH_LIMIT:g} to {STRENGTH_LIMIT:g}", "Got": value},
            "give a strength in this range.",
        )
    return value


ShareKey = tuple[str, str, str, float]
"""Module key, parameter, kind and scale: what makes shares of equal files one term."""

Source = tuple[Hashable, str, str, str, float]
"""File key, then a ``ShareKey``."""


def _share_key(module: LoraModule, part: Part) -> ShareKey:
    return (module.lora_key, part.of, part.kind, module.scale or 1.0)


@dataclass(frozen=True)
class Term:
    """One adapter's share of one storage.

    ``coefficient`` is dimensionless; the delta is ``coefficient * adapter.delta(base_weight)``.
    """

    lora: Lora
    module: LoraModule
    part: Part
    target: Target
    coefficient: float

    @property
    def source(self) -> Source:
        """Which factors the term uses, at which scale, whatever its coefficient."""
        return (self.lora.file_key, *_share_key(self.module, self.part))

    def same_as(self, other: "Term") -> bool:
        """Whether both terms make the same delta of the same view."""
        return (
            self.source == other.source
            and self.target == other.target
            and self.coefficient == other.coefficient
        )


Terms = tuple[Term, ...]


@dataclass(frozen=True)
class Plan:
    """What a stack does to a model.

    Attributes:
        terms: Storage name to its terms in canonical order; storages without a term are absent.
        bindings: One per item of the stack that has a strength other than 0.
    """

    terms: Mapping[str, Terms]
    bindings: tuple[Binding, ...] = ()


EMPTY_PLAN = Plan({})


def make_plan(stack: Sequence[StackItem], table: NameTable, unmatched: str = "report") -> Plan:
    """Plan a stack on a model. Reads no factor.

    Terms are ordered by the file's sha256, then the module's key, and equal files are summed into
    one coefficient, so that the order of a stack changes no bit of the result. An item whose
    strengths are both 0 is not looked at.

    Args:
        stack: Ordered items.
        table: Names of the model's modules.
        unmatched: See ``Binding.check``.

    Raises:
        LoraError: an item cannot be applied to this model; see ``Binding.check``.
    """
    active = [item for item in stack if item.strength_model or item.strength_clip]
    bindings = tuple(bind(item.lora, table) for item in active)
    for binding in bindings:
        binding.check(unmatched)
    return plan_of_bound(tuple(zip(active, bindings, strict=True)))


def plan_of_bound(stack: Sequence[tuple[StackItem, Binding]]) -> Plan:
    """Plan items that are bound to a model already, as ``make_plan`` does; refuses nothing."""
    several = len({item.lora.file_key for item, _ in stack}) > 1
    grouped: dict[str, dict[tuple[str, ShareKey], list[_Share]]] = {}
    for item, binding in stack:
        digest = item.lora.sha256 if several else ""
        for bound in binding.used():
            assert bound.target is not None
            share = _Share(item.lora, bound, bound.target, item.coefficient(bound.target))
            storage = grouped.setdefault(bound.target.target_key, {})
            storage.setdefault((digest, _share_key(bound.module, bound.part)), []).append(share)
    planned = {key: _terms(shares) for key, shares in grouped.items()}
    bindings = tuple(binding for _, binding in stack)
    return Plan({key: terms for key, terms in planned.items() if terms}, bindings)


class _Share(NamedTuple):
    lora: Lora
    bound: BoundPart
    target: Target
    coefficient: float


def _terms(by_source: Mapping[tuple[str, ShareKey], Sequence[_Share]]) -> Terms:
    terms = []
    for _, shares in sorted(by_source.items()):
        coefficient = math.fsum(share.coefficient for share in shares)
        if coefficient:
            # Of equal files always the same one, so that their order rewrites nothing.
            lora, bound, target, _ = min(shares, key=lambda share: repr(share.lora.file_key))
            terms.append(Term(lora, bound.module, bound.part, target, coefficient))
    return tuple(terms)
