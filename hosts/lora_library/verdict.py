"""Whether a LoRA suits a model, in one sentence, from the two files' headers."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ...lora_core.binding import MISMATCHED, NOT_USED_HERE, USED, Binding, TensorRow, bind
from ...lora_core.errors import LoraError, NothingMatchedError, ShapeMismatchError
from ...lora_core.explain import Report, printable
from ...lora_core.models import ModelTable
from .facts import KnownLora, label_of

OK, PARTIAL, WRONG, UNKNOWN = "ok", "partial", "wrong", "unknown"


@dataclass(frozen=True)
class Verdict:
    """What a LoRA does to a model.

    Attributes:
        level: ``"ok"``, ``"partial"``, ``"wrong"`` (refused, or made for another base that
            explains more of it) or ``"unknown"``.
        text: One short sentence.
        details: More sentences.
    """

    level: str
    text: str
    details: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The verdict as a route answers it."""
        return {**asdict(self), "details": list(self.details)}


def verdict_on_model(known: KnownLora, table: ModelTable) -> Verdict:
    """What Apply LoRAs would say; NaN alone is found only when the factors are read."""
    binding = bind(known.lora, table)
    try:
        binding.check()
    except LoraError as error:
        return _refused(known, table, binding, error)
    totals = binding.totals()
    used, total = totals.get(USED, 0), len(known.lora.file.tensors)
    if not used:
        return Verdict(UNKNOWN, "This model's file has no part that the LoRA changes.")
    count = f"{used} of {total} tensors match this model."
    if _is_of_another_base(known, table) and used < _most(known):
        return Verdict(WRONG, _made_for(known, table), (count, *_unused(binding)))
    whole = used + totals.get(NOT_USED_HERE, 0) == total
    notes = Report(binding, table.family, known.family, known.matches).notes()
    return Verdict(
        OK if whole else PARTIAL,
        count,
        (*_unused(binding), *_parts(known), *(f"{note}." for note in notes)),
    )


def verdict_alone(known: KnownLora) -> Verdict:
    """What is known of a LoRA without a model."""
    if known.problem is not None:
        return Verdict(WRONG, f"This file cannot be applied: {known.problem}.")
    kinds = ", ".join(known.kinds)
    ranks = f", rank {', '.join(map(str, known.ranks))}" if known.ranks else ""
    made_for = f"Made for {label_of(known.family)}" if known.family else "Made for an unknown base"
    return Verdict(UNKNOWN, f"{made_for}: {kinds}{ranks}.", tuple(_parts(known)))


def verdict_unchecked(known: KnownLora, reason: str) -> Verdict:
    """What is known of a LoRA for a model whose names cannot be read."""
    alone = verdict_alone(known)
    return Verdict(alone.level, alone.text, (reason, *alone.details))


def unusable(told: dict[str, Any]) -> Verdict:
    """For a file that is missing or cannot be read; ``told`` is its error as JSON."""
    facts = (f"{name}: {value}." for name, value in told["facts"].items())
    return Verdict(WRONG, told["headline"], (*facts, f"Fix: {told['fix']}"))


def _refused(known: KnownLora, table: ModelTable, binding: Binding, error: LoraError) -> Verdict:
    details = [printable(error.headline), *_unused(binding), f"Fix: {error.fix}"]
    is_base = isinstance(error, ShapeMismatchError | NothingMatchedError)
    if is_base and _is_of_another_base(known, table):
        return Verdict(WRONG, _made_for(known, table), tuple(details))
    return Verdict(WRONG, details[0], tuple(details[1:]))


def _is_of_another_base(known: KnownLora, table: ModelTable) -> bool:
    """Whether both bases are known and differ; an inpainting model takes its base's LoRAs."""
    if known.family is None or table.family is None:
        return False
    return known.family.removesuffix("-inpaint") != table.family.removesuffix("-inpaint")


def _most(known: KnownLora) -> int:
    """Tensors that the base it was made for uses; 0 for a base without a table."""
    return known.matches[0].tensors if known.matches else 0


def _made_for(known: KnownLora, table: ModelTable) -> str:
    return f"Made for {label_of(known.family or '')}; this model is {label_of(table.family or '')}."


def _unused(binding: Binding) -> Iterator[str]:
    """One sentence per reason why tensors change nothing, the most frequent ones first."""
    groups: dict[tuple[str, str], list[TensorRow]] = {}
    for row in binding.rows():
        if row.verdict != USED:
            # Shapes differ from row to row.
            reason = "" if row.verdict == MISMATCHED else row.reason or ""
            groups.setdefault((row.verdict, reason), []).append(row)
    for (verdict, reason), rows in sorted(groups.items(), key=lambda group: -len(group[1])):
        first = printable(f"{rows[0].key}: {rows[0].reason}" if not reason else rows[0].key)
        why = f"{verdict}: {reason}" if reason else verdict
        yield f"{len(rows)} tensors {why} (first: {first})."


def _parts(known: KnownLora) -> Iterator[str]:
    if not known.has_text_encoder:
        yield "The file has no text-encoder part."
