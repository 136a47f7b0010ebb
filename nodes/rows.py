"""The rows value: a stack as text, in the three forms that reach a node."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..lora_core.errors import LoraError
from ..lora_core.stack import checked_strength
from ..lora_core.weighting import Weighting

VERSION = 1
TAG = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?(?::([^:<>]*))?>")
# A fresh node shows "[]"; people type their tags before or after it.
_DEFAULT = re.compile(r"^\[\s*\]|\[\s*\]$")
_FIELDS = ("on", "name", "sha256", "size", "model", "clip", "weighting")


@dataclass(frozen=True)
class Row:
    r"""One LoRA of a stack as a user writes it.

    Attributes:
        name: File name as the host lists it; may carry folders, with ``/`` or ``\``.
        on: A row that is off is kept and not used.
        model: Dimensionless strength on the diffusion model.
        clip: Strength on the text encoders; None means the same as ``model``.
        weighting: Rules by block and part, see docs/weighting.md.
        sha256: Pins the file's content, hexadecimal; None when the row does not.
        size: Pins the file's size in bytes.
        extra: Fields that this version does not know, kept as they are.
    """

    name: str
    on: bool = True
    model: float = 1.0
    clip: float | None = None
    weighting: str = ""
    sha256: str | None = None
    size: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def strength_clip(self) -> float:
        """Strength on the text encoders."""
        return self.model if self.clip is None else self.clip

    @property
    def is_active(self) -> bool:
        """Whether the row changes anything: on, and some strength is not 0."""
        return self.on and bool(self.model or self.strength_clip)


@dataclass(frozen=True)
class Rows:
    """Rows, and facts about how they were written that the report mentions."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def parse_rows(value: str) -> Rows:
    """Read a rows value.

    Accepts versioned JSON (``{"version": 1, "rows": [...]}`` or a bare list of rows), lines of
    ``<lora:name:1:0.8>``, and Python's ``str()`` of either JSON form: what is left of a raw object
    in an API prompt. ``[]``, what a fresh node holds, may stand before or after the lines.

    Raises:
        LoraError: the text is none of these, or a field has a wrong type or range.
    """
    text = _DEFAULT.sub("", value.strip()).strip()
    if not text:
        return Rows(())
    if text[0] in "[{":
        data, note = _data(text)
        rows = tuple(_row(item, number) for number, item in enumerate(_items(data), 1))
        return Rows(rows, (note,) if note else ())
    return Rows(tuple(_tagged_rows(text)))


def to_json(rows: Sequence[Row]) -> str:
    """Write rows as versioned JSON; ``parse_rows`` reads it back."""
    return json.dumps({"version": VERSION, "rows": [_fields(row) for row in rows]})


def to_text(rows: Sequence[Row]) -> str:
    """Write the rows that are on as ``<lora:name:model:clip>`` lines; weightings are left out."""
    return "\n".join(
        f"<lora:{row.name}:{row.model:g}:{row.strength_clip:g}>" for row in rows if row.on
    )


def _data(text: str) -> tuple[object, str | None]:
    try:
        return json.loads(text), None
    except (ValueError, RecursionError):
        pass
    try:
        note = "the rows came as a Python value, not as JSON text: send json.dumps(rows)"
        return ast.literal_eval(text), note
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise _unreadable({"Got": text[:80]}) from error


def _unreadable(facts: Mapping[str, object]) -> LoraError:
    return LoraError(
        "The rows are neither JSON nor <lora:name:strength> lines.",
        {"Expected": "a JSON list of rows, or <lora:name:strength> lines; not both", **facts},
        'write [{"name": "file.safetensors", "model": 1.0}], '
        "or one <lora:file:1.0> or <lora:file:1.0:0.8> per line.",
    )


def _items(data: object) -> Sequence[object]:
    if isinstance(data, dict) and "__value__" in data:
        data = data["__value__"]
    if isinstance(data, dict):
        version = data.get("version", VERSION)
        if version != VERSION:
            raise LoraError(
                "The rows were written by a newer version.",
                {"Expected": f"version {VERSION}", "Got": f"version {version}"},
                "update LoRA Workbench.",
            )
        data = data.get("rows", [])
    if not isinstance(data, list | tuple):
        raise LoraError(
            "The rows are not a list.",
            {"Expected": "a list of objects", "Got": type(data).__name__},
            'write [{"name": "file.safetensors", "model": 1.0}].',
        )
    return data


def _row(item: object, number: int) -> Row:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise LoraError(
            f"Row {number} has no name.",
            {"Expected": 'an object with "name"', "Got": repr(item)[:80]},
            'write {"name": "file.safetensors", "model": 1.0}.',
        )
    where = f"Row {number} ({item['name']})"
    clip = item.get("clip")
    row = Row(
        name=item["name"],
        on=_typed(item.get("on", True), bool, f"{where}: on"),
        model=_strength(item.get("model", 1.0), f"{where}: model"),
        clip=None if clip is None else _strength(clip, f"{where}: clip"),
        weighting=_weighting(item.get("weighting") or ""),
        sha256=_typed(item.get("sha256"), str | None, f"{where}: sha256"),
        size=_typed(item.get("size"), int | None, f"{where}: size"),
    )
    return replace(row, extra={k: v for k, v in item.items() if k not in _FIELDS})


def _weighting(value: object) -> str:
    """Check a weighting and return its text."""
    text = value if isinstance(value, str) else json.dumps(value)
    Weighting.parse(text)
    return text


def _typed(value: object, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        name = getattr(kind, "__name__", str(kind))
        raise LoraError(
            f"{where} has a wrong type.",
            {"Expected": name, "Got": repr(value)[:80]},
            "correct the row.",
        )
    return value


def _strength(value: object, where: str) -> float:
    number = _typed(value, int | float, where)
    return checked_strength(float(number), where)


def _fields(row: Row) -> dict[str, Any]:
    fields: dict[str, Any] = {"on": row.on, "name": row.name, "model": row.model}
    optional = {"clip": row.clip, "sha256": row.sha256, "size": row.size}
    fields |= {name: value for name, value in optional.items() if value is not None}
    if row.weighting:
        fields["weighting"] = row.weighting
    return fields | dict(row.extra)


def _tagged_rows(text: str) -> list[Row]:
    rest = TAG.sub("", text).strip(" \t\r\n,")
    if rest:
        raise _unreadable({"Not understood": rest[:80]})
    return [tag_row(match) for match in TAG.finditer(text)]


def tag_row(match: re.Match[str]) -> Row:
    """The row of one ``<lora:name:model:clip>``; strengths default to 1 and to ``model``.

    Raises:
        LoraError: it names no file, or a strength is not a number in range.
    """
    name, model, clip = match[1].strip(), match[2], match[3]
    where = f"<lora:{name}>"
    if not name:
        raise LoraError(f"{match[0]} names no file.", fix="write <lora:file:1.0>.")
    return Row(
        name=name,
        model=_number(model, where) if model else 1.0,
        clip=_number(clip, where) if clip else None,
    )


def _number(text: str, where: str) -> float:
    try:
        return checked_strength(float(text), where)
    except ValueError as error:
        if isinstance(error, LoraError):
            raise
        raise LoraError(
            f"{where}: the strength is not a number.",
            {"Got": text},
            "write <lora:file:1.0>.",
        ) from error
