"""LORA_STACK: a list of (name, strength_model, strength_clip); our entries carry the LoRA too."""

from collections.abc import Callable, Hashable, Sequence
from numbers import Real
from typing import Any

from ..lora_core.errors import LoraError
from ..lora_core.lora import Lora
from ..lora_core.stack import StackItem, checked_strength

MEMORY_PREFIX = "<memory>/"
PLAIN = "came as plain values from another node, without a weighting of its own"
_NOTHING = ("", "None", "none")
_DICT_ON = ("on", "active")
_DICT_NAMES = ("name", "lora_name", "lora")
_DICT_MODEL = ("strength_model", "model_strength", "strength", "model")
_DICT_CLIP = ("strength_clip", "clip_strength", "clipStrength", "clip")


class StackEntry(tuple):
    """One entry of a ``LORA_STACK``; unpacks as exactly ``(name, strength_model, strength_clip)``.

    Other packs read the three values. ``item`` carries the loaded LoRA and its weighting, and
    takes part in equality and hash: a foreign ``set()`` must not fold two entries into one.
    ``notes`` are facts for the report about how it arrived, whichever nodes it passed through.
    """

    item: StackItem
    notes: tuple[str, ...]

    def __new__(cls, name: str, item: StackItem, notes: tuple[str, ...] = ()) -> "StackEntry":
        """Make an entry that other packs see under ``name``."""
        entry = super().__new__(cls, (name, item.strength_model, item.strength_clip))
        entry.item = item
        entry.notes = notes
        return entry

    def __copy__(self) -> "StackEntry":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "StackEntry":
        """Itself: nothing in it changes, and a tuple's own copy would lose the LoRA."""
        return self

    def _identity(self) -> tuple[Hashable, ...]:
        return (*self, self.item.lora.file_key, self.item.weighting)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StackEntry):
            return self._identity() == other._identity()
        return tuple(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._identity())


def read_stack(value: object, load: Callable[[str], Lora]) -> tuple[list[StackEntry], list[str]]:
    """Read a ``LORA_STACK`` of any pack.

    Accepts ``None``, nested lists, tuples of two (one strength for both) or more, and dicts. An
    entry that is not ours is loaded, and named as the host lists its file.

    Args:
        value: What arrived on the socket; never changed.
        load: Gives the LoRA of a file name.

    Returns:
        The entries in order, and notes for the report.

    Raises:
        LoraError: an entry cannot be read as a LoRA and strengths.
    """
    entries: list[StackEntry] = []
    left_out: list[str] = []
    for item in _flattened(value):
        if isinstance(item, StackEntry):
            entries.append(item)
        else:
            entry = _foreign_entry(item, load, left_out)
            if entry is not None:
                entries.append(entry)
    return entries, [*left_out, *_notes_of(entries)]


def _notes_of(entries: Sequence[StackEntry]) -> list[str]:
    """Each note once, with the names of its entries."""
    names: dict[str, dict[str, None]] = {}
    for entry in entries:
        for note in entry.notes:
            names.setdefault(note, {})[entry[0]] = None
    return [f"{note}: {', '.join(of)}" for note, of in names.items()]


def _flattened(value: object) -> list[Any]:
    """Entries in order; a list is a list of entries unless it begins with a name."""
    if value is None:
        return []
    is_entry = isinstance(value, dict | StackEntry) or (
        isinstance(value, tuple | list) and len(value) > 0 and isinstance(value[0], str)
    )
    if is_entry:
        return [value]
    if not isinstance(value, list | tuple):
        raise LoraError(
            "The LORA_STACK holds something that is not an entry.",
            {"Expected": "(name, strength_model, strength_clip)", "Got": repr(value)[:80]},
            "connect the LORA_STACK output of a LoRA stack node.",
        )
    return [entry for item in value for entry in _flattened(item)]


def _foreign_entry(
    item: Any,
    load: Callable[[str], Lora],
    left_out: list[str],
) -> StackEntry | None:
    name, model, clip = _dict_values(item) if isinstance(item, dict) else _tuple_values(item)
    if name is None:
        left_out.append(f"an entry without a file name was left out: {repr(item)[:60]}")
        return None
    if name in _NOTHING or not (model or clip):
        return None
    if name.startswith(MEMORY_PREFIX):
        raise LoraError(
            f"{name} has no file, and the node it passed through dropped its tensors.",
            {"Entry": repr(item)[:80]},
            "connect it straight to a LoRA Workbench node, or save it first.",
        )
    lora = load(name)
    return StackEntry(lora.name, StackItem(lora, model, clip), (PLAIN, *_dropped(item)))


def _dropped(item: Any) -> list[str]:
    """What an entry carries that has no meaning here."""
    if isinstance(item, dict):
        known = (*_DICT_NAMES, *_DICT_MODEL, *_DICT_CLIP, *_DICT_ON)
        fields = [str(key) for key in item if key not in known]
        return [f"these fields were left out: {', '.join(fields)[:60]}"] if fields else []
    return [f"values after the third were left out: {repr(item[3:])[:60]}"] if item[3:] else []


def _tuple_values(item: Any) -> tuple[str | None, float, float]:
    name = item[0]
    model = _strength(item[1] if len(item) > 1 else 1.0, name)
    return name, model, _strength(item[2], name) if len(item) > 2 else model


def _dict_values(item: dict[str, Any]) -> tuple[str | None, float, float]:
    name = next((item[key] for key in _DICT_NAMES if isinstance(item.get(key), str)), None)
    if any(item.get(key) is False for key in _DICT_ON):
        return name, 0.0, 0.0
    model = _strength(next((item[key] for key in _DICT_MODEL if key in item), 1.0), str(name))
    clip = next((item[key] for key in _DICT_CLIP if item.get(key) is not None), model)
    return name, model, _strength(clip, str(name))


def _strength(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise LoraError(
            f"{name}: a strength in the LORA_STACK is not a number.",
            {"Got": repr(value)[:80]},
            "check the node that made the stack.",
        )
    return checked_strength(float(value), f"{name}: strength")
