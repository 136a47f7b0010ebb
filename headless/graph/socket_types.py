"""Socket types: which output may go into which input."""

from typing import Any

ANY = "*"


def fits(given: Any, wanted: Any) -> bool:  # noqa: ANN401  types are strings, or lists of choices
    """Whether an output of type ``given`` may be linked to an input of type ``wanted``.

    A type may be several, separated by commas; one in common is enough.
    """
    # Packs that predate "*" take any type through a str subclass which is unequal to nothing.
    if not given != wanted:  # noqa: SIM202
        return True
    if ANY in (given, wanted) or (isinstance(given, list) and wanted == "COMBO"):
        return True
    if not isinstance(given, str) or not isinstance(wanted, str):
        return False
    outputs, inputs = _names(given), _names(wanted)
    return ANY in outputs | inputs or bool(outputs & inputs)


def _names(types: str) -> set[str]:
    return {name.strip() for name in types.split(",")}
