"""Unmerge From Model: a clone without what Merge Into Model put on it."""

import uuid
from collections.abc import Iterable
from typing import Any

from ...lora_core.errors import LoraError
from ..protocol import Merged
from .lineage import BAKED
from .merge_on_device import Merge, MergedLoraAdapter

_NAMESPACE = uuid.UUID("d1a3f0b6-3c57-5d7b-8a0a-4a8f61c0e2b9")


def unmerged(model: Any, clip: Any) -> Merged:
    """See ``Host.unmerge``."""
    patchers = {"model": model, "clip": clip.patcher if clip is not None else None}
    clones = {name: _without_merges(p) for name, p in patchers.items() if p is not None}
    keys = sum(len(found) for _, found in clones.values())
    if not keys:
        raise _nothing_merged(p for p in patchers.values() if p is not None)
    adapters = [adapter for _, found in clones.values() for adapter in found]
    names = dict.fromkeys(item.lora.name for adapter in adapters for item in adapter.items)
    new_clip = clip
    if clip is not None and clones["clip"][1]:
        new_clip = clip.clone()
        new_clip.patcher = clones["clip"][0]
    facts = {"weights": f"{keys} un-merged", "LoRAs": ", ".join(names)}
    return Merged(clones["model"][0], new_clip, (), "the base comes back bit for bit", (), facts)


def _without_merges(patcher: Any) -> tuple[Any, list[MergedLoraAdapter]]:
    """A clone without our merges, and what was taken off; the patcher itself when that is none."""
    found = [
        patch[1]
        for patches in patcher.patches.values()
        for patch in patches
        if isinstance(patch[1], MergedLoraAdapter)
    ]
    if not found:
        return patcher, found
    clone = patcher.clone()
    kept = {
        key: [patch for patch in patches if not isinstance(patch[1], MergedLoraAdapter)]
        for key, patches in patcher.patches.items()
    }
    clone.patches = {key: patches for key, patches in kept.items() if patches}
    clone.patches_uuid = _uuid_before(patcher.patches_uuid, [a.merge for a in found])
    return clone, found


def _uuid_before(current: uuid.UUID, merges: Iterable[Merge]) -> uuid.UUID:
    """The uuid of the same content without the merges: their parent's where nothing came after."""
    before = {merge.after: merge.before for merge in merges}
    while before:
        if current not in before:
            return uuid.uuid5(_NAMESPACE, ":".join(map(str, (current, *sorted(before.values())))))
        current = before.pop(current)
    return current


def _nothing_merged(patchers: Iterable[Any]) -> LoraError:
    if any(patcher.get_attachment(BAKED) for patcher in patchers):
        return LoraError(
            "The LoRAs are baked into this model's weights and cannot be taken off.",
            {"Merged with": "mode 'bake'"},
            "use the MODEL that goes into Merge Into Model, or merge with mode 'on_device'.",
        )
    return LoraError(
        "Nothing is merged into this model.",
        {"Looked for": "what Merge Into Model (on_device) puts on a MODEL and CLIP"},
        "connect the outputs of Merge Into Model; LoRAs of Apply LoRAs are taken off by "
        "disconnecting them.",
    )
