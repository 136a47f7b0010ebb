"""Alpha of PEFT files: it stands in a config beside the tensors or in the file's header."""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import DamagedFileError, UnsupportedFormatError

HEADER_KEY = "lora_adapter_metadata"
_KINDS = ("LORA", "LOHA", "LOKR")
_REGEX_CHARACTERS = frozenset("*+?[](){}|\\$")


@dataclass(frozen=True)
class PeftConfig:
    """The fields of a PEFT ``LoraConfig``, ``LoHaConfig`` or ``LoKrConfig`` that decide the scale.

    ``alpha`` is in the unit of rank; ``alpha_pattern`` overrides it by module name, as
    ``rank_pattern`` does ``rank``.
    Source: peft ``LoraConfig``, ``LycorisConfig`` and ``get_pattern_key`` (0.21).
    """

    alpha: float | None = None
    use_rslora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    unsupported: str | None = None
    kind: str = "LORA"
    rank: float | None = None
    rank_pattern: Mapping[str, float] = field(default_factory=dict)

    def problem_for(self, kind: str) -> str | None:
        """Why a module of a kind, as PEFT names kinds, cannot be applied, or None."""
        if self.unsupported is None and kind != self.kind:
            return f"the config beside it is of PEFT type {self.kind}"
        return self.unsupported

    def rank_of(self, module_key: str) -> int | None:
        """The rank that a LoKr of two full matrices was given."""
        rank = _by_name(self.rank_pattern, module_key, self.rank)
        return None if rank is None or self.kind != "LOKR" else int(rank)

    def alpha_of(self, module_key: str, rank: int) -> float | None:
        """Alpha such that ``alpha / rank`` is the scale, or None when the config has none."""
        alpha = _by_name(self.alpha_pattern, module_key, self.alpha)
        if alpha is None:
            return None
        return alpha * rank**0.5 if self.use_rslora else alpha


def _by_name(patterns: Mapping[str, float], module_key: str, default: float | None) -> float | None:
    return next((v for pattern, v in patterns.items() if _names(pattern, module_key)), default)


def _names(pattern: str, module_key: str) -> bool:
    if pattern.startswith("^"):
        return module_key == pattern[1:]
    return module_key == pattern or module_key.endswith("." + pattern)


def parse_peft_config(fields: Mapping[str, Any], where: str) -> PeftConfig:
    """Read one adapter's config.

    Raises:
        DamagedFileError: a field has the wrong type.
        UnsupportedFormatError: a pattern of names uses regular expressions.
    """
    kind = str(fields.get("peft_type", "LORA"))
    alpha = "lora_alpha" if kind == "LORA" else "alpha"
    is_lokr = kind == "LOKR"
    return PeftConfig(
        alpha=_number(fields.get(alpha), alpha, where),
        use_rslora=bool(fields.get("use_rslora", False)),
        alpha_pattern=_pattern(fields, "alpha_pattern", where),
        unsupported=_unsupported(fields),
        kind=kind,
        rank=_number(fields.get("r"), "r", where) if is_lokr else None,
        rank_pattern=_pattern(fields, "rank_pattern", where) if is_lokr else {},
    )


def _pattern(fields: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    """Numbers by module name or its ending."""
    pattern = fields.get(key) or {}
    if not isinstance(pattern, dict):
        raise DamagedFileError(
            f"{where}: {key} is not an object.",
            {"Got": type(pattern).__name__},
            "restore the adapter_config.json that was saved with the file.",
        )
    for name in pattern:
        if _REGEX_CHARACTERS & set(name):
            raise UnsupportedFormatError(
                f"{where}: {key} {name!r} is a regular expression.",
                {"Expected": "module names or their endings"},
                "write the alphas into the file as <module>.alpha tensors.",
            )
    return {
        name: value
        for name, raw in pattern.items()
        if (value := _number(raw, f"{key} {name!r}", where)) is not None
    }


def _unsupported(fields: Mapping[str, Any]) -> str | None:
    init = fields.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(("pissa", "olora", "corda", "loftq")):
        return f"raw {init} adapter: it belongs to a changed base, export it as plain LoRA first"
    if fields.get("fan_in_fan_out"):
        return "fan_in_fan_out adapters store transposed weights"
    kind = fields.get("peft_type", "LORA")
    return None if kind in _KINDS else f"PEFT type {kind}"


def _number(value: object, name: str, where: str) -> float | None:
    if value is None:
        return None
    number = _as_float(value)
    if not math.isfinite(number):
        raise DamagedFileError(
            f"{where}: {name} is not a finite number.",
            {"Got": reprlib.repr(value)},
            "restore the config that was saved with the file.",
        )
    return number


def _as_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def parse_header_configs(metadata: Mapping[str, str], where: str) -> dict[str, PeftConfig]:
    """Configs in a safetensors header, by component prefix ("" when they carry none).

    Source: diffusers ``LoraBaseMixin._save_lora_weights`` (keys ``unet.lora_alpha``, ...).
    """
    text = metadata.get(HEADER_KEY)
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"{where}: {HEADER_KEY} in the header is not JSON.",
            {"Cause": error},
            "save the file again with an intact header.",
        ) from error
    if not isinstance(fields, dict):
        return {}
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        prefix, _, plain = name.rpartition(".")
        grouped.setdefault(prefix, {})[plain] = value
    return {prefix: parse_peft_config(group, where) for prefix, group in grouped.items()}
