"""A run between two steps, as one file: enough to go on with the same bits."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lora_core.errors import DamagedFileError, LoraError
from ..lora_core.files.safetensors_file import open_safetensors
from ..lora_core.files.write import write_safetensors

_STATE, _MARK = "state-*.safetensors", "lora_workbench_training_state"
_VERSION = "1"
_HEADER_BYTES = 64 << 20  # optimisers describe each group in it


@dataclass(frozen=True, eq=False)
class RunState:
    """What a step needs of the steps before it.

    Attributes:
        step: Optimiser steps done.
        key: Of everything that the run was told; only an equal run goes on from here.
        threads: Of the CPU; another count rounds differently.
        tensors: By name: factors, their average, the optimiser's, the losses.
        facts: The rest, as JSON.
    """

    step: int
    key: str
    threads: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def save_state(folder: Path, state: RunState, keep: int) -> Path:
    """Write a state beside the others, whole or not at all; the oldest beyond ``keep`` go.

    Raises:
        OSError: the disk is full or cannot be written; the states before are still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{state.step:08}.safetensors"
    header = {
        _MARK: _VERSION,
        "step": str(state.step),
        "key": state.key,
        "threads": str(state.threads),
        "facts": json.dumps(state.facts),
    }
    write_safetensors(path, dict(state.tensors), header, overwrite=True)
    for old in state_files(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def latest_state(folder: Path, key: str, noted: Callable[[str], None]) -> RunState | None:
    """The last whole state of a run that was told the same; None where there is none.

    Args:
        folder: Of the run.
        key: What it was told.
        noted: Is told of each damaged file that is passed over.

    Raises:
        LoraError: all states are damaged, or one is of a run that was told something else.
    """
    paths = state_files(folder)
    for path in reversed(paths):
        try:
            return _read(path, key)
        except DamagedFileError as error:
            noted(f"{path.name} is damaged ({error.headline}); the state before it is looked for.")
    if not paths:
        return None
    raise LoraError(
        "Every state of this run is damaged.",
        {"Folder": folder, "States": ", ".join(path.name for path in paths)},
        "delete the folder to begin again, and look at the disk.",
    )


def _read(path: Path, key: str) -> RunState:
    file = open_safetensors(path, _HEADER_BYTES)
    header = file.metadata
    if header.get(_MARK) != _VERSION or header.get("key") != key:
        raise LoraError(
            "The folder holds a run with other settings, pictures or base.",
            {"Folder": path.parent, "State": path.name},
            "name another folder, or delete this one to begin again.",
        )
    return RunState(
        int(header["step"]),
        key,
        int(header["threads"]),
        {name: file.read(name) for name in file.tensors},
        json.loads(header["facts"]),
    )


def pack_optimizer(saved: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's ``state_dict`` as tensors by name, and the rest as JSON data."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, {"numbers": numbers, "groups": saved["param_groups"]}


def unpack_optimizer(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The ``state_dict`` that ``pack_optimizer`` took apart."""
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in facts["numbers"].items()}
    for name, tensor in tensors.items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = tensor
    return {"state": state, "param_groups": facts["groups"]}


def threads() -> int:
    """Of the CPU in this process."""
    return torch.get_num_threads()


def state_files(folder: Path) -> list[Path]:
    """Of a run, by step."""
    return sorted(folder.glob(_STATE))
