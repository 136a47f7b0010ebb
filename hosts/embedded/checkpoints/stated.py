"""What a file's header says about its model where shapes cannot: ``lora_workbench.*`` entries.

Each is a JSON object. Facts that shapes show may stand there too; they must agree.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from ....lora_core.errors import LoraError, UnknownChoiceError
from ....lora_core.files.safetensors_file import SafetensorsFile

UNET, VAE = "lora_workbench.unet", "lora_workbench.vae"
TEXT_ENCODERS = ("lora_workbench.text_encoder", "lora_workbench.text_encoder_2")
_FIX = "correct the header entry, or write the checkpoint again."


def stated(file: SafetensorsFile, entry: str, known: Collection[str]) -> dict[str, Any]:
    """Read one entry of a header; ``{}`` when it is not there.

    Raises:
        UnknownChoiceError: a name in it is not in ``known``.
        LoraError: it is no JSON object.
    """
    text = file.metadata.get(entry)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(entry, "is not JSON", text[:100]) from error
    if not isinstance(found, dict):
        raise _wrong(entry, "is not a JSON object", text[:100])
    for name in found:
        if name not in known:
            raise UnknownChoiceError(f"name in {entry}", name, known)
    return found


def require_agreement(entry: str, said: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """Check what a header says against what shapes show, for the names both have.

    Raises:
        LoraError: they differ.
    """
    for name, value in said.items():
        if name in shown and _plain(value) != _plain(shown[name]):
            raise LoraError(
                f"{entry} says something else than the tensors.",
                {"Name": name, "Header": value, "Tensors": _plain(shown[name])},
                _FIX,
            )


def positive(entry: str, name: str, value: Any) -> int:
    """The value, if it is a whole number above 0.

    Raises:
        LoraError: it is not.
    """
    if type(value) is not int or value < 1:
        raise _wrong(entry, f"needs a whole number above 0 for {name!r}", value)
    return value


def choice(entry: str, name: str, value: Any, known: Collection[str]) -> str:
    """The value, if it is one of ``known``.

    Raises:
        LoraError: it is not.
    """
    if value not in known:
        raise UnknownChoiceError(f"{name} in {entry}", str(value), known)
    return str(value)


def per_level(entry: str, name: str, value: Any, levels: int) -> tuple[int, ...]:
    """One positive number for each level, given as one for all or as a list.

    Raises:
        LoraError: another count, or not positive whole numbers.
    """
    values = value if isinstance(value, list) else [value] * levels
    if len(values) != levels:
        raise _wrong(entry, f"needs one number, or {levels}, for {name!r}", value)
    return tuple(positive(entry, name, one) for one in values)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _wrong(entry: str, problem: str, got: Any) -> LoraError:
    return LoraError(f"{entry} {problem}.", {"Got": got}, _FIX)
