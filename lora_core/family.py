"""Which base a LoRA was made for: the one whose weights its names and shapes fit best."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .binding import USED, bind
from .lora import Lora
from .models import BASES, ModelTable, table_for_base
from .modules import LoraModule

_LATER_MARKS = {
    "flux": ("double_blocks", "single_blocks", "single_transformer_blocks"),
    "sd3": ("joint_blocks", "add_q_proj"),
}


@dataclass(frozen=True, slots=True)
class BaseMatch:
    """How much of a LoRA one base explains.

    Attributes:
        base: A name of ``BASES``.
        tensors: Tensors of the file that this base uses.
        modules: Modules whose shapes fit, those of kinds that cannot be applied yet included.
        named: Modules that are known by name and whose shapes tell nothing.
    """

    base: str
    tensors: int
    modules: int
    named: int


def known_tables() -> dict[str, ModelTable]:
    """Build the table of every known base; about 0.1 s for all."""
    return {base: table_for_base(base) for base in BASES}


def match_bases(lora: Lora, tables: Mapping[str, ModelTable]) -> tuple[BaseMatch, ...]:
    """Hold a LoRA against each base, best match first. Reads no factor and no metadata.

    Bases that explain nothing are left out; equal ones stay in the order of ``tables``.
    """
    matches = (_match(lora, base, table) for base, table in tables.items())
    found = [match for match in matches if match.modules or match.named]
    return tuple(sorted(found, key=lambda match: (-match.modules, -match.named)))


def detect_lora_family(lora: Lora, matches: tuple[BaseMatch, ...]) -> str | None:
    """Name the family: the best match, else a later family that its names show, else None."""
    if matches:
        return matches[0].base
    for family, marks in _LATER_MARKS.items():
        if any(mark in key for key in lora.file.tensors for mark in marks):
            return family
    return None


def _match(lora: Lora, base: str, table: ModelTable) -> BaseMatch:
    binding = bind(lora, table)
    fitting = {bound.module.lora_key for bound in binding.parts if bound.verdict == USED}
    unsupported = [_fit(lora, module, table) for module in lora.modules.values() if module.problem]
    return BaseMatch(
        base,
        binding.totals().get(USED, 0),
        len(fitting) + unsupported.count(True),
        unsupported.count(None),
    )


def _fit(lora: Lora, module: LoraModule, table: ModelTable) -> bool | None:
    """Whether a module that cannot be applied has the size of its weight; None when unclear."""
    weights = [found.weight for found in table.find(module.lora_key) if found.weight]
    if not weights:
        return False
    size = _size(lora, module)
    if size is None:
        return None
    return any(size == (w.shape[0], math.prod(w.shape[1:])) for w in weights)


def _size(lora: Lora, module: LoraModule) -> tuple[int, int] | None:
    """Rows and columns of a module's delta, as far as its factors show them."""
    if not {"up", "down"} <= set(module.keys):
        return None
    up, down = (lora.shape(module.keys[role]) for role in ("up", "down"))
    return (up[0], math.prod(down[1:])) if len(up) > 1 and len(down) > 1 else None
