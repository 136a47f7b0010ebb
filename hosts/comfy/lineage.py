"""Which LoRAs the weights of a patcher carry or will carry."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...lora_core.stack import StackItem
from .adapter import FusedLoraAdapter

BAKED = "lora_workbench_baked"
"""Name of the attachment ``Baked``."""


@dataclass(frozen=True)
class Baked:
    """What a baked patcher remembers.

    Attributes:
        items: The items that are part of its weights.
        loaded_from: ``cached_patcher_init`` of its base, or None.
    """

    items: tuple[StackItem, ...]
    loaded_from: Any


def lineage(patcher: Any) -> tuple[StackItem, ...]:
    """The items of all stacks on a patcher, baked ones first, each stack once."""
    stacks = {
        id(patch[1].items): patch[1].items
        for patches in patcher.patches.values()
        for patch in patches
        if isinstance(patch[1], FusedLoraAdapter)
    }
    baked = patcher.get_attachment(BAKED)
    earlier = baked.items if baked is not None else ()
    return (*earlier, *(item for items in stacks.values() for item in items))


def common_lineage(patchers: Iterable[Any]) -> tuple[StackItem, ...]:
    """The items of several patchers of one model, each once."""
    return tuple({id(item): item for p in patchers for item in lineage(p)}.values())
