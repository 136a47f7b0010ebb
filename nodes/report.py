"""What nodes tell a user, as text."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..hosts import Applied, Merged, Saved
from ..lora_core.binding import NOT_USED_HERE, USED, Binding, TensorRow
from ..lora_core.explain import printable
from ..lora_core.family import detect_lora_family, known_tables, match_bases
from ..lora_core.lora import Lora
from ..lora_core.metadata import summarize, trigger_words
from ..lora_core.models import ModelTable
from .lora_stack import StackEntry

_EXAMPLES = 3
_LONGEST_VALUE = 80  # characters of a header's value
_SHOWN_BY_THE_TENSORS = ("rank", "alpha")


def applied_report(applied: Applied, entries: Sequence[StackEntry], notes: Iterable[str]) -> str:
    """One block per LoRA: strengths, tensors used, and what was not used and why."""
    active = [entry for entry in entries if entry[1] or entry[2]]
    lines = [f"{counted(len(active), 'LoRA')} applied · {applied.path}"]
    for entry, binding in zip(active, applied.bindings, strict=True):
        lines += _entry_lines(entry, binding)
    lines += [f"note: {note}" for note in (*notes, *applied.notes)]
    return "\n".join(lines)


def receipt(
    headline: str,
    done: Merged | Saved,
    entries: Sequence[StackEntry] = (),
    notes: Iterable[str] = (),
) -> str:
    """What was done, fact by fact; one block per LoRA where ``entries`` has any.

    Args:
        headline: What the node did.
        done: The host's answer.
        entries: The stack that ``done`` has bindings for.
        notes: Facts the node itself adds.
    """
    lines = [headline, *(f"{name}: {text}" for name, text in done.facts.items())]
    if isinstance(done, Merged):
        active = [entry for entry in entries if entry[1] or entry[2]]
        for entry, binding in zip(active, done.bindings, strict=True):
            lines += _entry_lines(entry, binding)
        notes = (*notes, *done.notes)
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def inspection_report(entries: Sequence[StackEntry], bindings: Sequence[Binding]) -> str:
    """What each LoRA is; with bindings, what it does to the connected model."""
    if not entries:
        return "No LoRA is connected."
    blocks = []
    tables = known_tables()
    for number, entry in enumerate(entries):
        lines = _lora_lines(entry.item.lora, tables)
        if bindings:
            lines += _binding_lines(entry[0], entry, bindings[number])
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _entry_lines(entry: StackEntry, binding: Binding) -> list[str]:
    name, model, clip = entry
    return _binding_lines(f"{name} · model {model:g} · clip {clip:g}", entry, binding)


def _binding_lines(title: str, entry: StackEntry, binding: Binding) -> list[str]:
    rows = binding.rows()
    used = sum(row.verdict == USED for row in rows)
    elsewhere = sum(row.verdict == NOT_USED_HERE for row in rows)
    mark = "OK" if used + elsewhere == len(rows) else "!!"
    lines = [f"{mark} {title} · {used} / {len(rows)} tensors used"]
    if not entry.item.weighting.is_identity:
        lines.append(f"   weighting: {entry.item.weighting.to_text()}")
    lines += [f"   {line}" for line in unused_lines(rows)]
    lines += [f"   note: {note}" for note in binding.notes()]
    return lines


def unused_lines(rows: Iterable[TensorRow]) -> list[str]:
    """Tensors that change nothing, grouped by reason, with examples."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.verdict != USED:
            groups.setdefault((row.verdict, row.reason or ""), []).append(row.key)
    lines = []
    for (verdict, reason), keys in groups.items():
        examples = ", ".join(keys[:_EXAMPLES]) + (", ..." if len(keys) > _EXAMPLES else "")
        lines.append(f"{len(keys)} {verdict}: {reason} ({examples})")
    return lines


def _lora_lines(lora: Lora, tables: Mapping[str, ModelTable]) -> list[str]:
    kinds = Counter(module.kind for module in lora.modules.values())
    ranks = Counter(m.rank for m in lora.modules.values() if m.rank is not None)
    alphas = {m.alpha for m in lora.modules.values() if m.rank is not None}
    lines = [
        lora.name,
        f"   {len(lora.modules)} modules in {len(lora.file.tensors)} tensors: "
        + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
        f"   format: {', '.join(lora.formats) or 'unknown'}",
    ]
    if ranks:
        text = ", ".join(f"{rank} ({count})" for rank, count in ranks.most_common(4))
        shown = ", ".join(
            "none" if alpha is None else f"{alpha:g}"
            for alpha in sorted(alphas, key=lambda alpha: (alpha is not None, alpha or 0.0))[:4]
        )
        lines.append(f"   rank: {text} · alpha: {shown}")
    lines += _origin_lines(lora, tables)
    if lora.problem:
        lines.append(f"   cannot be applied: {lora.problem}")
    words = trigger_words(lora.metadata)
    if words:
        lines.append(f"   trigger words: {', '.join(map(_shown, words))}")
    return lines


def _origin_lines(lora: Lora, tables: Mapping[str, ModelTable]) -> list[str]:
    """The base it was made for, and what the header says about it."""
    family = detect_lora_family(lora, match_bases(lora, tables))
    told = summarize(lora.metadata).items()
    return [
        f"   made for: {f'{family} (by names and shapes)' if family else 'unknown'}",
        *(
            f"   {name}: {_shown(value)}"
            for name, value in told
            if name not in _SHOWN_BY_THE_TENSORS
        ),
    ]


def _shown(text: str) -> str:
    """A header's value on one line, as long as a line bears."""
    line = printable(text)
    return line if len(line) <= _LONGEST_VALUE else f"{line[: _LONGEST_VALUE - 3]}..."


def counted(count: int, noun: str) -> str:
    """``1 LoRA``, ``2 LoRAs``."""
    return f"{count} {noun}{'s' * (count != 1)}"
