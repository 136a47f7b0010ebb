"""Constant inputs: converted, and refused in ComfyUI's words, which clients compare."""

from collections.abc import Mapping
from typing import Any

from .node_classes import InputInfo, LiteralList

Error = dict[str, Any]  # type, message, details, extra_info
_CONVERSIONS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
_LONG_LIST = 20  # longer choices are not sent back


def error(kind: str, message: str, details: str, **extra: object) -> Error:
    """One error, as POST /prompt answers it."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def type_name(kind: type) -> str:
    """The name of an exception's class, with its module unless that is builtins."""
    prefix = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return prefix + kind.__qualname__


def converted(value: Any, info: InputInfo) -> Any:  # noqa: ANN401
    """The value as the node takes it; a list, which was wrapped, stays apart from links.

    Raises:
        Exception: as the constructor of the type raises it.
    """
    for kind, convert in _CONVERSIONS.items():
        if info.type == kind:
            value = convert(value)
    return LiteralList(value) if isinstance(value, list) else value


def unwrapped(value: Any) -> Any:  # noqa: ANN401
    """A value without its ``{"__value__": ...}``, which keeps lists from being taken for links."""
    if isinstance(value, Mapping) and "__value__" in value:
        return value["__value__"]
    return value


def conversion_error(name: str, value: object, info: InputInfo, cause: Exception) -> Error:
    """The value is not of the input's type."""
    return error(
        "invalid_input_type",
        f"Failed to convert an input value to a {info.type} value",
        f"{name}, {value}, {cause}",
        input_name=name,
        input_config=(info.type, info.options),
        received_value=value,
        exception_message=str(cause),
    )


def value_error(name: str, value: Any, info: InputInfo) -> Error | None:  # noqa: ANN401
    """What is wrong with a value of the right type: out of range, or not among the choices."""
    options = info.options
    config = (info.type, options)
    if "min" in options and value < options["min"]:
        message = f"Value {value} smaller than min of {options['min']}"
        kind = "value_smaller_than_min"
    elif "max" in options and value > options["max"]:
        message = f"Value {value} bigger than max of {options['max']}"
        kind = "value_bigger_than_max"
    else:
        return _choice_error(name, value, info)
    return error(kind, message, name, input_name=name, input_config=config, received_value=value)


def _choice_error(name: str, value: Any, info: InputInfo) -> Error | None:  # noqa: ANN401
    if info.type == "COMBO":
        choices = info.options.get("options", [])
    elif isinstance(info.type, list):
        choices = info.type
    else:
        return None
    several = info.options.get("multiselect", False) and isinstance(value, list)
    unknown = [item for item in (value if several else [value]) if item not in choices]
    if not unknown:
        return None
    is_long = len(choices) > _LONG_LIST
    shown = f"(list of length {len(choices)})" if is_long else str(choices)
    return error(
        "value_not_in_list",
        "Value not in list",
        f"{name}: {', '.join(map(repr, unknown))} not in {shown}",
        input_name=name,
        input_config=None if is_long else (info.type, info.options),
        received_value=value,
    )
