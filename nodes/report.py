"""What nodes tell a user."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..hosts import Applied, Merged, Saved
from ..lora_core.binding import NOT_USED_HERE, USED, Binding, TensorRow
from ..lora_core.explain import printable
from ..lora_core.factors import ROTATIONS
from ..lora_core.family import detect_lora_family, known_tables, match_bases
from ..lora_core.lora import Lora
from ..lora_core.metadata import summarize, trigger_words
from ..lora_core.models import ModelTable
from .lora_stack import StackEntry
from .report_form import IN_PART, NOTHING, OK, Bars, Facts, Report, Section, Unused

_LONGEST_VALUE = 80  # characters of a header's value
_SHOWN_BY_THE_TENSORS = ("rank", "alpha")


def applied_report(applied: Applied, entries: Sequence[StackEntry], notes: Iterable[str]) -> Report:
    """One section per LoRA: strengths, tensors used, and what was not used and why."""
    active = [entry for entry in entries if entry[1] or entry[2]]
    return Report(
        f"{counted(len(active), 'LoRA')} applied · {applied.path}",
        sections=_entry_sections(active, applied.bindings),
        notes=(*notes, *applied.notes),
    )


def receipt(
    headline: str,
    done: Merged | Saved,
    entries: Sequence[StackEntry] = (),
    notes: Iterable[str] = (),
) -> Report:
    """What was done, fact by fact; one section per LoRA where ``entries`` has any.

    Args:
        headline: What the node did.
        done: The host's answer.
        entries: The stack that ``done`` has bindings for.
        notes: Facts the node itself adds.
    """
    facts = tuple(done.facts.items())
    if isinstance(done, Saved):
        return Report(headline, facts, notes=tuple(notes))
    active = [entry for entry in entries if entry[1] or entry[2]]
    sections = _entry_sections(active, done.bindings)
    return Report(headline, facts, sections, (*notes, *done.notes))


def inspection_report(
    entries: Sequence[StackEntry],
    bindings: Sequence[Binding],
    norms: Sequence[Mapping[str, float]] = (),
    unit: str = "",
) -> Report:
    """What each LoRA is; with bindings, what it does to the connected model.

    Args:
        entries: The LoRAs.
        bindings: One per LoRA; none without a model.
        norms: One chart per LoRA, label to value; none without charts.
        unit: Of the charts' values.
    """
    if not entries:
        return Report("No LoRA is connected.")
    sections = []
    tables = known_tables()
    highest = max((value for chart in norms for value in chart.values()), default=0.0)
    for number, entry in enumerate(entries):
        lora = entry.item.lora
        bars = Bars(tuple(norms[number].items()), highest, unit) if norms else None
        facts = _lora_facts(lora, tables) + (_chart_facts(lora) if norms else ())
        sections.append(Section(lora.name, facts=facts, bars=bars))
        if bindings:
            sections.append(_bound_section(entry, bindings[number], ()))
    return Report(sections=tuple(sections))


def _chart_facts(lora: Lora) -> Facts:
    """What a chart of norms leaves out."""
    turning = sum(module.kind in ROTATIONS for module in lora.modules.values())
    if not turning:
        return ()
    return (("chart", f"without {turning} OFT modules, whose change depends on the base weights"),)


def _entry_sections(
    entries: Sequence[StackEntry], bindings: Sequence[Binding]
) -> tuple[Section, ...]:
    return tuple(
        _bound_section(entry, binding, (f"model {entry[1]:g}", f"clip {entry[2]:g}"))
        for entry, binding in zip(entries, bindings, strict=True)
    )


def _bound_section(entry: StackEntry, binding: Binding, strengths: Sequence[str]) -> Section:
    rows = binding.rows()
    used = sum(row.verdict == USED for row in rows)
    elsewhere = sum(row.verdict == NOT_USED_HERE for row in rows)
    weighting = entry.item.weighting
    return Section(
        entry[0],
        " · ".join([*strengths, f"{used} / {len(rows)} tensors used"]),
        OK if used + elsewhere == len(rows) else IN_PART if used else NOTHING,
        () if weighting.is_identity else (("weighting", weighting.to_text()),),
        unused_groups(rows),
        tuple(binding.notes()),
    )


def unused_groups(rows: Iterable[TensorRow]) -> tuple[Unused, ...]:
    """Tensors that change nothing, grouped by reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.verdict != USED:
            groups.setdefault((row.verdict, row.reason or ""), []).append(row.key)
    return tuple(Unused(verdict, reason, tuple(keys)) for (verdict, reason), keys in groups.items())


def _lora_facts(lora: Lora, tables: Mapping[str, ModelTable]) -> Facts:
    kinds = Counter(module.kind for module in lora.modules.values())
    ranks = Counter(m.rank for m in lora.modules.values() if m.rank is not None)
    alphas = {m.alpha for m in lora.modules.values() if m.rank is not None}
    contents = f"{len(lora.modules)} modules in {len(lora.file.tensors)} tensors: "
    contents += ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    facts = [("", contents), ("format", ", ".join(lora.formats) or "unknown")]
    if ranks:
        text = ", ".join(f"{rank} ({count})" for rank, count in ranks.most_common(4))
        shown = ", ".join(
            "none" if alpha is None else f"{alpha:g}"
            for alpha in sorted(alphas, key=lambda alpha: (alpha is not None, alpha or 0.0))[:4]
        )
        facts.append(("rank", f"{text} · alpha: {shown}"))
    facts += _origin_facts(lora, tables)
    if lora.problem:
        facts.append(("cannot be applied", lora.problem))
    words = trigger_words(lora.metadata)
    if words:
        facts.append(("trigger words", ", ".join(map(_shown, words))))
    return tuple(facts)


def _origin_facts(lora: Lora, tables: Mapping[str, ModelTable]) -> Facts:
    """The base it was made for, and what the header says about it."""
    family = detect_lora_family(lora, match_bases(lora, tables))
    told = summarize(lora.metadata).items()
    return (
        ("made for", f"{family} (by names and shapes)" if family else "unknown"),
        *((name, _shown(value)) for name, value in told if name not in _SHOWN_BY_THE_TENSORS),
    )


def _shown(text: str) -> str:
    """A header's value on one line, as long as a line bears."""
    line = printable(text)
    return line if len(line) <= _LONGEST_VALUE else f"{line[: _LONGEST_VALUE - 3]}..."


def counted(count: int, noun: str) -> str:
    """``1 LoRA``, ``2 LoRAs``."""
    return f"{count} {noun}{'s' * (count != 1)}"
