"""Presets and changes of them, in words and compared."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..lora_core.errors import LoraError, UnknownChoiceError
from ..lora_core.models.target import Target
from .checks import check_settings
from .config import AdapterConfig, Output, TrainConfig
from .config_file import parse_toml, read_config
from .cost import Size, size_from
from .kinds import idle_fields, role_sizes
from .presets import PRESETS, merged
from .targets import chosen_weights

_MEGA = 1e6


def settings_of(preset: str, overrides: str) -> TrainConfig:
    """A preset with changes; what the chosen method does not read is left out of the preset.

    Args:
        preset: A key of ``PRESETS``.
        overrides: TOML, such as ``run.steps = 800``.

    Raises:
        LoraError: an unknown preset or key, a value of another kind or one that would do nothing,
            or a method whose library is missing.
    """
    if preset not in PRESETS:
        raise UnknownChoiceError("preset", preset, PRESETS)
    changes = parse_toml(overrides, "The changes")
    _refuse_bare(changes)
    if "seed" in changes.get("run", {}):
        raise LoraError(
            "run.seed would do nothing here.", {}, "set the seed on Train LoRA, and leave it out."
        )
    adapter = changes.get("adapter", {})
    idle = idle_fields(
        adapter.get("method", AdapterConfig.method), adapter.get("full_matrix", False)
    )
    told = {
        name: table if name != "adapter" else {k: v for k, v in table.items() if k not in idle}
        for name, table in PRESETS[preset].settings.items()
    }
    config = read_config(TrainConfig, merged(_rescaled(told, adapter), changes))
    check_settings(config)
    return config


def _rescaled(
    told: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Any]
) -> Mapping[str, Mapping[str, Any]]:
    """A preset whose alpha keeps its ratio to the rank where the rank alone is changed."""
    own, rank = told["adapter"], changes.get("rank")
    if not isinstance(rank, int) or "alpha" not in own or "alpha" in changes:
        return told
    return {**told, "adapter": {**own, "alpha": own["alpha"] / own["rank"] * rank}}


def explained(preset: str, config: TrainConfig) -> str:
    """What is set other than by default, and why."""
    chosen = PRESETS[preset]
    lines = [f"{preset}: {chosen.purpose}"]
    for path, value in changed_settings(config).items():
        reason = chosen.reasons.get(path) if _is_preset_s(chosen.settings, path, value) else None
        lines.append(f"  {path} = {_toml(value)}" + (f": {reason}" if reason else ""))
    known = {f"{name}.{key}" for name, table in chosen.settings.items() for key in table}
    known |= set(changed_settings(config))
    lines += [f"  {path}: {text}" for path, text in chosen.reasons.items() if path not in known]
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
    return tuple((name, _costs(each, weights)) for name, each in rows)


def _costs(config: TrainConfig, weights: Mapping[str, Mapping[str, Target]]) -> str:
    try:
        size = _size(config, weights)
    except LoraError as error:
        return f"not on this model: {error.headline}"
    return (
        f"{size.modules:,} modules, {size.parameters:,} numbers ({size.share:.2%}), "
        f"file {size.file_bytes / _MEGA:.1f} MB, memory {size.state_bytes / _MEGA:.1f} MB"
    )


def _size(config: TrainConfig, weights: Mapping[str, Mapping[str, Target]]) -> Size:
    chosen = chosen_weights(weights, config.adapter)
    sizes = [role_sizes(each.target.shape, each.rank, config.adapter) for each in chosen]
    components = {each.component for each in chosen}
    whole = sum(math.prod(t.shape) for name in components for t in weights[name].values())
    return size_from(sizes, whole, Output().dtype)


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
