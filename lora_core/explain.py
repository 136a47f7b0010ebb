"""The report of one LoRA against one base: every tensor accounted for, as JSON and as text."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from .binding import (
    MISMATCHED,
    UNMATCHED,
    UNSUPPORTED,
    USED,
    Binding,
    NameTable,
    TensorRow,
    bind,
)
from .errors import LoraError
from .family import BaseMatch, detect_lora_family, known_tables, match_bases
from .lora import Lora, all_finite
from .metadata import summarize, trigger_words
from .models import BASES, ModelTable, ModuleTargets

FITS = "fits"
FITS_IN_PART = "fits in part"
WRONG_BASE = "wrong base"
NOT_SUPPORTED = "not supported"
UNKNOWN_BASE = "unknown base"

_OTHER_NAMES = "no known base has a module so named"
_OTHER_SHAPES = "the known bases' modules so named have other shapes"

_LINES = 12  # rows of a table before the rest is summed up
_KEY_WIDTH = 70


@dataclass(frozen=True)
class Report:
    """One LoRA seen from one base.

    Attributes:
        binding: Where each tensor goes.
        base: The base as asked for, or the family; None when neither is known.
        family: The base the LoRA was made for, by names and shapes; None when none is known.
        matches: Every known base that explains a part of the file, best first.
        no_table: Why there is no table for the base, or None.
    """

    binding: Binding
    base: str | None
    family: str | None
    matches: tuple[BaseMatch, ...] = ()
    no_table: str | None = None

    @property
    def lora(self) -> Lora:
        """The LoRA the report is about."""
        return self.binding.lora

    @cached_property
    def rows(self) -> tuple[TensorRow, ...]:
        """One row per tensor of the file, in its order."""
        rows = self.binding.rows()
        if self.no_table is None:
            return tuple(rows)
        return tuple(
            replace(row, reason=self.no_table) if row.verdict == UNMATCHED else row for row in rows
        )

    @cached_property
    def unused(self) -> tuple[TensorRow, ...]:
        """The rows of tensors that change nothing, each with its reason."""
        return tuple(row for row in self.rows if row.verdict != USED)

    @property
    def tensors_used(self) -> int:
        """Number of tensors that change a weight."""
        return len(self.rows) - len(self.unused)

    @property
    def verdict(self) -> str:
        """One of the constants of this module."""
        lora, verdicts = self.lora, {row.verdict for row in self.rows}
        needed = any(bound.verdict == UNSUPPORTED for bound in self.binding.parts)
        if verdicts == {USED}:
            return FITS
        all_refused = bool(lora.modules) and all(m.problem for m in lora.modules.values())
        if lora.problem or all_refused or needed:
            return NOT_SUPPORTED
        if self.no_table is not None:
            return UNKNOWN_BASE if self.family is None else NOT_SUPPORTED
        if MISMATCHED in verdicts or USED not in verdicts:
            return WRONG_BASE
        return FITS_IN_PART

    def notes(self) -> list[str]:
        """Facts a user may be surprised by."""
        notes = self.binding.notes()
        if self.family in BASES and self.base != self.family and self._is_worse_than_family():
            notes.append(f"by its names and shapes this file was made for {self.family}")
        return notes

    def _is_worse_than_family(self) -> bool:
        return self.tensors_used < next((match.tensors for match in self.matches), 0)

    def to_json(self) -> dict[str, Any]:
        """The report in the form that ``lora-workbench inspect --json`` prints."""
        return {
            "file": str(self.lora.file.path),
            "sha256": self.lora.sha256,
            "base": self.base,
            "family": self.family,
            "formats": list(self.lora.formats),
            "tensors_total": len(self.rows),
            "tensors_used": self.tensors_used,
            "tensors_unused": len(self.unused),
            "modules": list(self._module_rows()),
            "unused": [
                {"key": row.key, "reason": row.reason, "verdict": row.verdict}
                for row in self.unused
            ],
            "verdict": self.verdict,
            "notes": self.notes(),
        }

    def _module_rows(self) -> Iterator[dict[str, Any]]:
        for bound in self.binding.used():
            module = bound.module
            yield {
                "lora_key": module.lora_key,
                "target_key": bound.target.target_key if bound.target else None,
                "kind": bound.part.kind,
                "rank": module.rank,
                "alpha": module.alpha,
                "scale": 1.0 if module.scale is None else module.scale,
            }

    def to_text(self) -> str:
        """The report for people: the verdict first, then what matched and what did not."""
        return "\n".join([_headline(self), "", *_facts(self), *_sections(self)])


def explain(
    lora: Lora,
    table: ModelTable | None = None,
    base: str | None = None,
    tables: Mapping[str, ModelTable] | None = None,
) -> Report:
    """Explain a LoRA: which weight each tensor changes, by which rule, or why none.

    Args:
        lora: Reads no factor; see ``check_finite`` for that.
        table: Names of the model; by default those of ``base``, or of the LoRA's own family.
        base: How the report calls the model; a name of ``BASES`` when there is no ``table``, or
            a family that comes in a later version.
        tables: ``known_tables()``, for a caller that explains many files.
    """
    tables = known_tables() if tables is None else tables
    matches = match_bases(lora, tables)
    family = detect_lora_family(lora, matches)
    name = base or family
    found = table or tables.get(name or "")
    if found is not None:
        return Report(bind(lora, found), name, family, matches)
    if name:
        problem = f"{name} models come in a later version"
    else:
        is_named = any(table.find(key) for table in tables.values() for key in lora.modules)
        problem = _OTHER_SHAPES if is_named else _OTHER_NAMES
    return Report(bind(lora, _NO_NAMES), name, family, matches, problem)


def check_finite(lora: Lora) -> None:
    """Read every tensor once, 64 at a time.

    Raises:
        LoraError: one holds NaN or infinity, or the file changed on disk.
    """
    keys = list(lora.file.tensors)
    for start in range(0, len(keys), 64):
        for key, tensor in lora.file.read_many(keys[start : start + 64]).items():
            if not all_finite(tensor):
                raise LoraError(
                    f"{lora.name}: {key} holds NaN or infinity.",
                    {"Shape": list(tensor.shape), "Dtype": tensor.dtype},
                    "the training run that wrote this file broke; use another copy or checkpoint.",
                )


class _NoNames(NameTable):
    """The table of a model that is not known."""

    components = frozenset({"unet", "te1"})

    def find(self, lora_key: str) -> tuple[ModuleTargets, ...]:
        return ()


_NO_NAMES = _NoNames()


def _headline(report: Report) -> str:
    name, total, used = printable(report.lora.name), len(report.rows), report.tensors_used
    if report.verdict == FITS:
        return f"{name} fits {report.base}: all {total} tensors are used."
    if report.verdict == FITS_IN_PART:
        return f"{name} fits {report.base} in part: {used} of {total} tensors are used."
    if report.verdict == WRONG_BASE:
        own = f" It was made for {report.family}." if report.family else ""
        return f"{name} is not for {report.base}.{own}"
    if report.verdict == NOT_SUPPORTED:
        reasons = Counter(row.reason for row in report.unused)
        return f"{name} cannot be applied: {reasons.most_common(1)[0][0]}."
    if report.no_table == _OTHER_SHAPES:
        return f"{name}: its names are those of known bases, but its shapes are of none."
    return f"{name}: no known base has weights of these names."


def _facts(report: Report) -> Iterator[str]:
    lora, total = report.lora, len(report.rows)
    facts = {
        "file": lora.file.path,
        "sha256": lora.sha256,
        "base": report.base or "unknown",
        "family": report.family or ("unknown" if report.no_table else ""),
        "format": ", ".join(lora.formats) or "unknown",
        "tensors": f"{report.tensors_used} of {total} used" + _changed(report),
        "trained words": ", ".join(trigger_words(lora.metadata)),
        **summarize(lora.metadata),
    }
    facts["other bases"] = ", ".join(
        f"{match.base} {'all' if match.tensors == total else match.tensors}"
        for match in report.matches
        if match.base != report.base and match.tensors
    )
    for name, value in facts.items():
        if value:
            yield f"  {name:<15}{printable(str(value))}"


def _changed(report: Report) -> str:
    components = Counter(
        target.component
        for target in {bound.target for bound in report.binding.used()}
        if target is not None
    )
    if not components:
        return ""
    ordered = sorted(components.items(), key=lambda item: (item[0] != "unet", item))
    return ", changing " + ", ".join(
        f"{count} weight{'s' * (count != 1)} of {name}" for name, count in ordered
    )


def _sections(report: Report) -> Iterator[str]:
    kinds = Counter(
        (b.part.kind, b.module.rank, b.module.alpha, b.module.scale) for b in report.binding.used()
    )
    yield from _table(
        "matched",
        ("weights", "kind", "rank", "alpha", "scale"),
        [(n, kind, *map(_number, rest)) for (kind, *rest), n in kinds.most_common()],
    )
    reasons = sorted(report.unused, key=_group)
    groups = [(group, list(rows)) for group, rows in groupby(reasons, key=_group)]
    groups.sort(key=lambda group: -len(group[1]))
    others = [
        (len(rows), verdict, _shortened(rows[0].key), why or f"for example {rows[0].reason}")
        for (verdict, why), rows in groups
    ]
    yield from _table(
        "not used",
        ("tensors", "verdict", "first", "reason"),
        others,
    )
    if notes := report.notes():
        yield from ("", "  notes", *(f"    {printable(note)}" for note in notes))


def _group(row: TensorRow) -> tuple[str, str]:
    """Rows of one verdict and reason are shown as one; shapes differ from row to row."""
    return row.verdict, "" if row.verdict == MISMATCHED else row.reason or ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    if not rows:
        return
    cells = [head, *([printable(str(cell)) for cell in row] for row in rows[:_LINES])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    yield from ("", f"  {title}")
    for row in cells:
        yield (
            "    "
            + "  ".join(
                cell.rjust(width) if i == 0 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )
    if len(rows) > _LINES:
        yield f"    and {len(rows) - _LINES} more kinds"


def _shortened(text: str) -> str:
    return text if len(text) <= _KEY_WIDTH else f"{text[: _KEY_WIDTH - 3]}..."


def printable(text: str) -> str:
    """Text from a file made harmless for a terminal: control characters are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
