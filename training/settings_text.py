"""Presets and changes of them, in words and compared."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..lora_core.errors import LoraError, UnknownChoiceError
from ..lora_core.models.target import Target
from .config import TrainConfig
from .config_file import parse_toml, read_config
from .cost import Size
from .presets import PRESETS, merged
from .targets import chosen_weights

_MEGA = 1e6
_FP16_BYTES = 2


def settings_of(preset: str, overrides: str) -> TrainConfig:
    """A preset with changes.

    Args:
        preset: A key of ``PRESETS``.
        overrides: TOML, such as ``run.steps = 800``.

    Raises:
        LoraError: an unknown preset or key, or a value of another kind.
    """
    if preset not in PRESETS:
        raise UnknownChoiceError("preset", preset, PRESETS)
    changes = parse_toml(overrides, "The changes")
    _refuse_bare(changes)
    if "seed" in changes.get("run", {}):
        raise LoraError(
            "run.seed would do nothing here.", {}, "set the seed on Train LoRA, and leave it out."
        )
    return read_config(TrainConfig, merged(PRESETS[preset].settings, changes))


def explained(preset: str, config: TrainConfig) -> str:
    """What is set other than by default, and why."""
    chosen = PRESETS[preset]
    lines = [f"{preset}: {chosen.purpose}"]
    for path, value in changed_settings(config).items():
        reason = chosen.reasons.get(path) if _is_preset_s(chosen.settings, path, value) else None
        lines.append(f"  {path} = {_toml(value)}" + (f": {reason}" if reason else ""))
    told = set(changed_settings(config))
    lines += [f"  {path}: {text}" for path, text in chosen.reasons.items() if path not in told]
    return "\n".join(lines)


def changed_settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting that is not at its default, by its path."""
    found: dict[str, Any] = {}
    for table in dataclasses.fields(config):
        own = getattr(config, table.name)
        for each in dataclasses.fields(own):
            value = getattr(own, each.name)
            if value != each.default:
                found[f"{table.name}.{each.name}"] = value
    return found


def compared(
    config: TrainConfig, weights: Mapping[str, Mapping[str, Target]], presets: Iterable[str]
) -> tuple[tuple[str, str], ...]:
    """What these settings and each preset cost on a model: names and costs.

    Memory is that of factors, gradients and optimizer, without activations.

    Args:
        config: The settings at hand.
        weights: Of the model, by component and module.
        presets: To compare with.
    """
    rows = [("these settings", config), *((name, settings_of(name, "")) for name in presets)]
    return tuple((name, _costs(_size(each, weights))) for name, each in rows)


def _costs(size: Size) -> str:
    return (
        f"{size.modules:,} modules, {size.parameters:,} numbers ({size.share:.2%}), "
        f"file {size.file_bytes / _MEGA:.1f} MB, memory {size.state_bytes / _MEGA:.1f} MB"
    )


def _size(config: TrainConfig, weights: Mapping[str, Mapping[str, Target]]) -> Size:
    chosen = chosen_weights(weights, config.adapter)
    count = sum(_numbers(each.target.shape, each.rank) for each in chosen)
    components = {each.component for each in chosen}
    whole = sum(math.prod(t.shape) for name in components for t in weights[name].values())
    file_bytes = count * _FP16_BYTES + 4 * len(chosen)
    return Size(len(chosen), count, count / whole, file_bytes, count * 16)


def _numbers(shape: tuple[int, ...], rank: int) -> int:
    out, *inside = shape
    return rank * (out + math.prod(inside))


def _toml(value: object) -> str:
    return json.dumps(value, default=str) if isinstance(value, str | tuple) else str(value)


def _is_preset_s(settings: Mapping[str, Mapping[str, Any]], path: str, value: object) -> bool:
    table, _, name = path.partition(".")
    own = settings.get(table, {}).get(name)
    return own == (list(value) if isinstance(value, tuple) else value)


def _refuse_bare(changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if not isinstance(value, Mapping):
            known = [f"{t.name}.{f.name}" for t in dataclasses.fields(TrainConfig)
                     for f in dataclasses.fields(t.default_factory)]  # fmt: skip
            near = [path for path in known if path.endswith(f".{name}")]
            raise LoraError(
                f"{name} stands in no table.",
                {"Did you mean": " or ".join(near) or "none of the known keys"},
                "write the table before it, for example run.steps = 800.",
            )
