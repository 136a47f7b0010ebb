"""Whether a written file says what the live model does, by our own reader."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ...lora_core.binding import BoundPart, NameTable, bind
from ...lora_core.errors import LoraError, UnsupportedFormatError
from ...lora_core.lora import Lora, load_lora
from .tensors import DTYPES
from .trained import Trained

BOUNDS: Mapping[str, float] = {
    "fp32": 1e-6,
    "fp16": torch.finfo(torch.float16).eps,  # both factors rounded: twice half an eps
    "bf16": torch.finfo(torch.bfloat16).eps,
}
"""Largest relative Frobenius error of a LoRA module's delta, by the dtype of the factors."""


def verified(
    path: Path, named: Mapping[str, Trained], table: NameTable, dtype: str
) -> tuple[Lora, float]:
    """Read a file again and hold each module's delta against the live factors.

    Args:
        path: The file, or a folder saved for PEFT.
        named: The live modules by the names that the file should have.
        table: The model that the file is for.
        dtype: Of the factors in the file: a key of ``BOUNDS``.

    Returns:
        The file as read, and the largest relative Frobenius error of a module.

    Raises:
        UnsupportedFormatError: our reader does not read DoRA files.
        LoraError: the file and the live model differ; the worst module is named.
    """
    lora = load_lora(path)
    parts = _parts_by_name(lora, named, table)
    errors = {
        name: module.error(lora.adapter(parts[name].module, parts[name].part))
        for name, module in named.items()
    }
    allowed = {name: _allowed(module, dtype) for name, module in named.items()}
    beyond = {name: not errors[name] <= allowed[name] for name in named}
    worst = max(errors, key=lambda name: (beyond[name], errors[name]))
    if beyond[worst]:
        raise LoraError(
            "The file was not kept: read again, it is not what was trained.",
            {
                "Worst module": worst,
                "Relative error of its delta": f"{errors[worst]:.3g}",
                f"Largest allowed in {dtype}": f"{allowed[worst]:.3g}",
                "Modules beyond it": sum(beyond.values()),
            },
            "export in fp32." if DTYPES[dtype] != torch.float32 else "report this as a bug.",
        )
    return lora, errors[worst]


def _allowed(module: Trained, dtype: str) -> float:
    """A LoRA's bound is for two rounded factors."""
    return BOUNDS[dtype] * (1 if dtype == "fp32" else max(1.0, module.roundings / 2))


def _parts_by_name(
    lora: Lora, named: Mapping[str, Trained], table: NameTable
) -> dict[str, BoundPart]:
    """What the reader applies, which is to be each live module once and nothing else."""
    _require_dora_is_read(lora)
    binding = bind(lora, table)
    used = {bound.module.lora_key: bound for bound in binding.used()}
    wrong = [
        name
        for name, module in named.items()
        if name not in used or used[name].target != module.target
    ]
    unused = [row for row in binding.rows() if row.verdict != "used"]
    if wrong or unused or len(used) > len(named):
        raise LoraError(
            "The file was not kept: read again, it does not change the weights that were trained.",
            {
                "Modules that miss their weight": ", ".join(wrong[:3]) or "none",
                "Tensors of no use": ", ".join(row.key for row in unused[:3]) or "none",
            },
            "report this as a bug.",
        )
    return used


def _require_dora_is_read(lora: Lora) -> None:
    refused = [m for m in lora.modules.values() if m.kind == "dora" and m.problem]
    if refused:
        raise UnsupportedFormatError(
            "The file was not kept: a DoRA file cannot be read again, so it cannot be checked.",
            {"DoRA modules": len(refused), "Reason": refused[0].problem},
            "train without DoRA.",
        )
