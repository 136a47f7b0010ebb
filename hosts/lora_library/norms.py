"""How much a LoRA changes each block of the base it was made for, as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...lora_core.binding import bind
from ...lora_core.errors import LoraError
from ...lora_core.factors import ROTATIONS
from ...lora_core.models import ModelTable
from ...lora_core.norms import block_norms
from ...lora_core.stack import StackItem
from .facts import KnownLora, label_of

LARGEST = 2 << 30  # bytes of a file: every factor is read


def norms_json(known: KnownLora, tables: Mapping[str, ModelTable]) -> dict[str, Any]:
    """The norm of each block's change at strength 1; see ``block_norms``.

    Raises:
        LoraError: no known base explains the file, or its factors cannot be read.
    """
    if known.problem is not None:
        fix = "use a file of a kind that is supported."
        raise LoraError(f"This file cannot be applied: {known.problem}.", fix=fix)
    if not known.matches:
        raise LoraError(
            "The blocks of this file's base are not known.",
            {"Known bases": ", ".join(label_of(base) for base in tables)},
            "connect Inspect LoRA to a model of its base; it draws the same chart.",
        )
    base = known.matches[0].base
    if all(module.kind in ROTATIONS for module in known.lora.modules.values()):
        raise LoraError(
            "How much an OFT changes depends on the weights of its base.",
            {"Modules": len(known.lora.modules)},
            "judge it by a picture; a chart is of kinds that add to a weight.",
        )
    norms = block_norms(StackItem(known.lora), bind(known.lora, tables[base]))
    return {
        "base": label_of(base),
        "norms": [{"block": block, "norm": norm} for block, norm in norms.items()],
    }


def check_size(path: Path) -> None:
    """Refuse a file whose factors take too long to read.

    Raises:
        LoraError: it is larger than ``LARGEST``.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise LoraError(
            "This file is too large for a chart on the canvas.",
            {"Bytes": size, "Most": LARGEST},
            "use the node Inspect LoRA, which draws the same chart.",
        )
