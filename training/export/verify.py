"""Whether a written file says what the live model does, by our own reader."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...lora_core.adapters import Adapter
from ...lora_core.binding import BoundPart, NameTable, bind
from ...lora_core.errors import LoraError, UnsupportedFormatError
from ...lora_core.lora import Lora, load_lora
from .tensors import DTYPES
from .trained import TrainedModule

BOUNDS: Mapping[str, float] = {
    "fp32": 1e-6,
    "fp16": torch.finfo(torch.float16).eps,  # both factors rounded: twice half an eps
    "bf16": torch.finfo(torch.bfloat16).eps,
}
"""Largest relative Frobenius error of a module's delta, by the dtype of the factors."""


def verified(
    path: Path, named: Mapping[str, TrainedModule], table: NameTable, dtype: str
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
    errors = {name: _error(lora, parts[name], module) for name, module in named.items()}
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= BOUNDS[dtype]:
        raise LoraError(
            "The file was not kept: read again, it is not what was trained.",
            {
                "Worst module": worst,
                "Relative error of its delta": f"{errors[worst]:.3g}",
                f"Largest allowed in {dtype}": f"{BOUNDS[dtype]:.3g}",
                "Modules beyond it": sum(not e <= BOUNDS[dtype] for e in errors.values()),
            },
            "export in fp32." if DTYPES[dtype] != torch.float32 else "report this as a bug.",
        )
    return lora, errors[worst]


def _parts_by_name(
    lora: Lora, named: Mapping[str, TrainedModule], table: NameTable
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


def _error(lora: Lora, bound: BoundPart, live: TrainedModule) -> float:
    adapter = lora.adapter(bound.module, bound.part)
    down, up, *others = adapter.tensors()
    error = _product_error(up, down, adapter.scale, live)
    if live.magnitude is None:
        return math.inf if others else error
    return max(error, _dora_error(adapter, live))


def _product_error(up: Tensor, down: Tensor, scale: float, live: TrainedModule) -> float:
    live_up, live_down = live.live
    difference = _norm(
        torch.cat([live.scale * live_up, -scale * up.flatten(1).double()], 1),
        torch.cat([live_down, down.flatten(1).double()]),
    )
    return _ratio(difference, _norm(live.scale * live_up, live_down))


def _norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of ``up @ down``, which is never made: their triangular factors have it."""
    left, right = torch.linalg.qr(up, mode="r").R, torch.linalg.qr(down.T, mode="r").R
    return float(torch.linalg.matrix_norm(left @ right.T))


def _ratio(difference: float, size: float) -> float:
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf


def _dora_error(adapter: Adapter, live: TrainedModule) -> float:
    """The error of the merged weight, on a made-up base weight with rows as long as trained."""
    if live.magnitude is None:
        raise ValueError(f"{live.target.target_key}: no magnitude")
    magnitude = live.magnitude.detach().cpu().double().unsqueeze(1)
    up, down = live.live
    noise = torch.randn(len(up), down.shape[1], generator=torch.Generator().manual_seed(0))
    base = (noise / noise.norm(dim=1, keepdim=True) * magnitude).float()
    changed = base.double() + live.scale * up @ down
    merged = magnitude * changed / changed.norm(dim=1, keepdim=True)
    read = base.double() + adapter.delta(base.reshape(live.target.shape)).flatten(1).double()
    return _ratio(float((read - merged).norm()), float(merged.norm()))
