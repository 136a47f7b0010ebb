"""Every key of a training configuration, from the docstrings of its dataclasses."""

import dataclasses
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from .text_table import text_table

_WIDTH = 98
_ENTRY = re.compile(r"^(\w+): ", re.M)
_EXAMPLES = {
    "alpha": 8.0,
    "bucket_max": 1024,
    "bucket_min": 256,
    "clip_skip": -2,
    "last_timestep": 999,
    "rank": 8,
    "rate": 5e-5,
    "size": [512, 512],
    "text_encoder_rate": 5e-5,
}
"""Of keys without a default that may be left out; TOML has no None."""


class Key(NamedTuple):
    """One key.

    Attributes:
        table: The TOML table it lies in.
        name: Its name.
        default: Its default; ``MISSING`` where it must be given.
        text: What it means.
    """

    table: str
    name: str
    default: Any
    text: str


def all_keys() -> Iterator[Key]:
    """Every key, table by table."""
    from ..training.config import TargetRule
    from ..training.file_config import FileConfig

    hints = inspect.get_annotations(FileConfig)
    for table in dataclasses.fields(FileConfig):
        yield from _keys_of(table.name, hints[table.name])
    yield from _keys_of("adapter.rules", TargetRule)


def example_config() -> str:
    """A TOML file with every key, commented out where it has its default."""
    lines = ["# A training run of LoRA Workbench: every key with its default."]
    table = ""
    for key in all_keys():
        if key.table != table:
            table = key.table
            is_list = table == "adapter.rules"
            lines += ["", f"# [[{table}]]" if is_list else f"[{table}]"]
        lines += _example_lines(key)
    return "\n".join(lines)


def key_table() -> str:
    """All keys as a table."""
    rows = [(f"{k.table}.{k.name}", _shown_default(k.default), k.text) for k in all_keys()]
    return "\n".join(text_table([("key", "default", "meaning"), *rows], indent=""))


def markdown_table() -> str:
    """All keys as tables in Markdown, one a table of the file."""
    lines: list[str] = []
    for table, keys in groupby(all_keys(), lambda key: key.table):
        lines += ["", f"### `{table}`", "", "| key | default | meaning |", "|---|---|---|"]
        for key in keys:
            default = _shown_default(key.default)
            shown = f"`{default}`" if default not in ("", "required") else default
            text = key.text.replace("|", "\\|")
            lines.append(f"| `{key.name}` | {shown} | {text} |")
    return "\n".join(lines[1:])


def _keys_of(table: str, kind: type) -> Iterator[Key]:
    texts, hints = _texts(kind), typing.get_type_hints(kind)
    for each in dataclasses.fields(kind):
        if each.name != "rules":
            text = _with_choices(texts[each.name], hints[each.name])
            yield Key(table, each.name, each.default, text)


def _with_choices(text: str, hint: Any) -> str:  # noqa: ANN401  of any kind
    """With the allowed values, where the text does not name them; in TOML's terms."""
    choices = [f'"{value}"' for value in typing.get_args(hint) if isinstance(value, str)]
    if not all(choice in text for choice in choices):
        text += f" One of {', '.join(choices)}."
    return text.replace("None is", "left out, it is")


def _texts(kind: type) -> Mapping[str, str]:
    """Name of an attribute to what its class's docstring says of it."""
    section = inspect.getdoc(kind).partition("Attributes:\n")[2]
    pieces = _ENTRY.split(textwrap.dedent(section))[1:]
    return {
        name: " ".join(text.split()).replace("``", "")
        for name, text in zip(pieces[::2], pieces[1::2], strict=True)
    }


def _example_lines(key: Key) -> Iterator[str]:
    yield from (f"# {line}" for line in textwrap.wrap(key.text, _WIDTH))
    if key.default is dataclasses.MISSING:
        yield f'{key.name} = ""' if key.table != "adapter.rules" else f'# {key.name} = "attn2"'
    elif key.default is None:
        yield f"# {key.name} = {json.dumps(_EXAMPLES[key.name])}"
    else:
        yield f"# {key.name} = {_shown_default(key.default)}"


def _shown_default(default: Any) -> str:  # noqa: ANN401  of any kind
    if default is None:
        return ""
    return "required" if default is dataclasses.MISSING else json.dumps(default)
