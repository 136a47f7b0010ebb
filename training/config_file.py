"""Configurations from text: TOML files, and what a node's inputs say."""

import dataclasses
import importlib
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ..lora_core.errors import LoraError, UnknownChoiceError
from .config import TrainConfig

_T = TypeVar("_T")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        LoraError: there is no such file, or it is no TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise LoraError(
            f"The configuration {path.name} cannot be read.",
            {"Cause": cause},
            "name a TOML file.",
        ) from error
    return parse_toml(text, path.name)


def parse_toml(text: str, label: str) -> dict[str, Any]:
    """The tables of TOML text.

    Raises:
        LoraError: it is no TOML; ``label`` says what it is.
    """
    tomllib = _tomllib()
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LoraError(
            f"{label}: no TOML.", {"Cause": error}, "mend the line that the cause names."
        ) from error


def _tomllib() -> ModuleType:
    """Python's own from 3.11 on."""
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LoraError(
            "Reading TOML needs tomli in Python 3.10.", {}, "pip install tomli"
        ) from error


def read_config(kind: type[_T], data: Mapping[str, Any], where: str = "") -> _T:
    """A dataclass of plain data, with those within.

    Args:
        kind: A dataclass of numbers, text, choices, tuples and dataclasses.
        data: Names of its fields to values as JSON or TOML hold them; what is absent has its
            default.
        where: Names of the fields around it, for errors.

    Raises:
        LoraError: a name that is none of its fields, a field without value or default, or a value
            of another kind.
    """
    hints = typing.get_type_hints(kind)
    for name in data:
        if name not in hints:
            raise _unknown(where, name, hints)
    missing = [each.name for each in dataclasses.fields(kind) if _is_missing(each, data)]
    if missing:
        raise LoraError(
            f"{_path(where, missing[0])} is not given.",
            {"Given": ", ".join(_path(where, name) for name in data) or "nothing"},
            "add it to the configuration.",
        )
    values = {name: _value(hints[name], data[name], _path(where, name)) for name in data}
    return kind(**values)


def _unknown(where: str, name: str, hints: Mapping[str, Any]) -> LoraError:
    """A name that is no field; it may be one of a table that was left out."""
    tables = [
        _path(_path(where, table), name)
        for table, kind in hints.items()
        if dataclasses.is_dataclass(kind) and name in {f.name for f in dataclasses.fields(kind)}
    ]
    if not tables:
        return UnknownChoiceError("key", name, hints, f"{where}." if where else "")
    return LoraError(
        f"{_path(where, name)} stands in no table.",
        {"Did you mean": " or ".join(tables)},
        f"write {tables[0]}, or put it below its table's name.",
    )


def _is_missing(field: dataclasses.Field[Any], data: Mapping[str, Any]) -> bool:
    defaults = (field.default, field.default_factory)
    return field.name not in data and all(each is dataclasses.MISSING for each in defaults)


def to_data(config: TrainConfig) -> dict[str, Any]:
    """A configuration as JSON data, every field of it."""
    return dataclasses.asdict(config)


def _value(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401  what a hint says
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _one_of([each for each in arguments if each is not type(None)], value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UnknownChoiceError(where, str(value), arguments)
        return value
    if origin is tuple:
        return _tuple(arguments, value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _wrong(where, "a table", value)
        return read_config(kind, value, where)
    return _plain(kind, value, where)


def _one_of(kinds: list[Any], value: object, where: str) -> Any:  # noqa: ANN401
    """The value as the first kind that takes it; None is never written, a default alone."""
    for kind in kinds[:-1]:
        try:
            return _value(kind, value, where)
        except LoraError:
            continue
    return _value(kinds[-1], value, where)


def _tuple(kinds: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list", value)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _wrong(where, f"a list of {len(kinds)}", value)
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_value(kind, each, f"{where}[{index}]") for index, (kind, each) in pairs)


def _plain(kind: type, value: object, where: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise _wrong(where, names[kind], value)
    return value


def _wrong(where: str, expected: str, got: object) -> LoraError:
    return LoraError(
        f"{where} is no value of its kind.",
        {"Expected": expected, "Got": repr(got)},
        "give it another value, or take it out for the default.",
    )


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
