"""From rows and stacks to loaded items."""

from collections.abc import Callable, Iterable, Sequence

from ..hosts import Host, LoraChoice
from ..lora_core.errors import LoraError
from ..lora_core.metadata import trigger_words
from ..lora_core.stack import StackItem
from ..lora_core.weighting import Weighting
from .lora_stack import StackEntry, read_stack
from .rows import Row, Rows, parse_rows


def entries_of(host: Host, lora_stack: object, rows: Rows) -> tuple[list[StackEntry], list[str]]:
    """The incoming stack, then the active rows; a new list, and notes for the report.

    Raises:
        LoraError: a file is missing or an entry cannot be read.
    """
    entries, notes = read_stack(lora_stack, lambda name: host.load_lora(LoraChoice(name)))
    for row in rows.rows:
        if row.is_active:
            entries.append(entry_of(host, row))
    return entries, [*notes, *rows.notes]


def entry_of(host: Host, row: Row) -> StackEntry:
    """The stack entry of one row.

    Raises:
        LoraError: its file is missing or cannot be read.
    """
    choice = LoraChoice(row.name, row.sha256, row.size)
    weighting = Weighting.parse(row.weighting)
    item = StackItem(host.load_lora(choice), row.model, row.strength_clip, weighting)
    return StackEntry(host.resolve(choice), item)


def fingerprint_of(host: Host, rows: str) -> str:
    """Changes when a file of an active row of a rows value changes."""
    return fingerprint_of_rows(host, parse_rows(rows).rows)


def fingerprint_of_rows(host: Host, rows: Iterable[Row]) -> str:
    """Changes when a file of an active row changes."""
    choices = (LoraChoice(row.name, row.sha256, row.size) for row in rows if row.is_active)
    return ";".join(map(host.fingerprint, choices))


def rows_problem(rows: object) -> str | None:
    """Why a rows value cannot be read, or None; looks at no file."""
    return problem_of(rows, parse_rows)


def problem_of(value: object, read: Callable[[str], object]) -> str | None:
    """Why ``read`` refuses a text, or None; a linked input has no text yet."""
    if isinstance(value, str):
        try:
            read(value)
        except LoraError as error:
            return str(error)
    return None


def words_of(entries: Sequence[StackEntry]) -> str:
    """Trigger words of all entries, each once, separated by commas."""
    words = (word for entry in entries for word in trigger_words(entry.item.lora.metadata))
    return ", ".join(dict.fromkeys(words))
