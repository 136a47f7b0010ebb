"""Merge Into Model on ComfyUI's own weights: an undo record stands where a backup would be."""

import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ...lora_core.errors import LoraError, UnusableModelError
from ...lora_core.patching.fused import FusedUpdate
from ...lora_core.patching.products import cpu_threads, exact_products
from ...lora_core.patching.rungs import Rungs
from ...lora_core.patching.undo import Undo
from .adapter import FusedLoraAdapter
from .model_kinds import model_kind
from .repatch import DifferentialRepatch, differential, has_plain_numbers

_NAMESPACE = uuid.UUID("b0c5a1b4-2a0c-5c0e-8f4c-0f6f0a2c9d31")


@dataclass(frozen=True)
class Merge:
    """One use of Merge Into Model on one patcher.

    Attributes:
        undo: The rung that was asked for.
        rungs: Makes the undo records.
        before: ``patches_uuid`` of the patcher it was merged into.
        after: That of the clone which carries it.
    """

    undo: str
    rungs: Rungs
    before: uuid.UUID
    after: uuid.UUID


class MergedLoraAdapter(FusedLoraAdapter):
    """What Merge Into Model puts on a weight; Apply's adapters stay when a model is un-merged.

    ``merge`` is missing on the copies that dynamic patchers make to compute with.
    """

    name = "lora_workbench_merged"
    merge: Merge

    @classmethod
    def marked(cls, adapter: FusedLoraAdapter, merge: Merge) -> "MergedLoraAdapter":
        """The same change, marked as part of ``merge``."""
        marked = cls(adapter.loaded_keys, adapter.weights)
        marked.items, marked.merge = adapter.items, merge
        return marked

    @property
    def signature(self) -> tuple[Any, ...]:
        """See ``FusedLoraAdapter.signature``; the rung takes part, for its bits may differ."""
        return (self.merge.undo, *super().signature)


class MergedWeight:
    """Stands in ``patcher.backup`` for a weight that was merged into: its base, kept as an undo.

    ComfyUI reads ``weight`` and ``inplace_update`` of a backup (0.3.64 to 0.30).

    Attributes:
        record: What the differential re-patch keeps in one backup of a model.
    """

    inplace_update = False
    record: Any = None

    def __init__(self, key: str, undo: Undo, adapter: FusedLoraAdapter, model: Any) -> None:
        self._key, self._undo, self._adapter = key, undo, adapter
        self._model = weakref.ref(model)

    @property
    def rung(self) -> str:
        """How the base is kept."""
        return self._undo.rung

    def nbytes(self) -> int:
        """Memory of the record in bytes, beside the merged weight and the LoRA's factors."""
        return self._undo.nbytes()

    @property
    def weight(self) -> Tensor:
        """The base weight, bit for bit, in memory of its own on the merged weight's device.

        Raises:
            UnusableModelError: nothing proves that these are the base's bits.
        """
        base = self._undo.weight.clone()
        undo = self._undo.copied_onto(base)
        try:
            with torch.inference_mode(), exact_products():
                checksum = undo.write((), _fuser(base))
        except LoraError as error:  # the checkpoint is gone or changed
            raise self._unusable(error.headline) from error
        if int(checksum) != int(self._undo.checksum):
            raise self._unusable("the restored bits do not have the base's checksum")
        return base

    def _unusable(self, cause: str) -> UnusableModelError:
        model = self._model()
        if model is not None:
            # Other weights may be restored already: no clone may take the model for loaded.
            model.current_weight_patches_uuid = uuid.uuid4()
        return UnusableModelError(
            "This model's base could not be restored; it must not be used.",
            {"Weight": self._key, "Cause": cause},
            "load the model again from its file; when that is not possible, restart ComfyUI.",
        )


def _fuser(weight: Tensor) -> Callable[[Any], FusedUpdate]:
    """The terms of our records are one adapter each."""

    @cache
    def fuse(terms: tuple[FusedLoraAdapter]) -> FusedUpdate:
        return terms[0].update(weight, 1.0)

    return fuse


class OnDeviceMerge(DifferentialRepatch):
    """Mixed into ModelPatcher: weights that Merge Into Model changes keep no full backup."""

    def patch_weight_to_device(
        self, key: str, device_to: Any = None, inplace_update: bool = False, **options: Any
    ) -> Any:
        """Patch as ComfyUI does; for a merge with an undo record in the backup's place.

        The merged weight is a tensor of its own: other patchers may hold the base weight that it
        replaces, which is freed when none does.
        """
        is_plain = not (inplace_update or self.weight_inplace_update or any(options.values()))
        if not is_plain or key in self.backup or self.why_ordinary(key) is not None:
            return super().patch_weight_to_device(key, device_to, inplace_update, **options)
        weight = comfy.utils.get_attr(self.model, key)
        merged = weight.detach().to(device_to or weight.device, copy=True)
        adapter = _one_adapter(self.patches[key])
        undo = _merged_in_place(key, merged, adapter, _merge_of(self.patches[key]).rungs)
        self.backup[key] = MergedWeight(key, undo, adapter, self.model)
        comfy.utils.set_attr_param(self.model, key, merged)
        return None

    def _is_own(self, key: str) -> bool:
        return super()._is_own(key) or self.why_ordinary(key) is None

    def _patch_key(self, key: str, device_to: Any) -> None:
        # The weight holds its base; the record that led back to it is for what lay on it before.
        self.backup.pop(key, None)
        super()._patch_key(key, device_to)

    def why_ordinary(self, key: str) -> str | None:
        """Why a weight is patched as ComfyUI does, with a full backup; None for an undo record."""
        patches = self.patches.get(key, ())
        if not any(isinstance(patch[1], MergedLoraAdapter) for patch in patches):
            return "nothing is merged into it"
        if not all(isinstance(patch[1], FusedLoraAdapter) and patch[2] == 1 for patch in patches):
            return "other patches lie on it"
        if any(offset is not None or function is not None for *_, offset, function in patches):
            return "it holds several weights in one"
        return None if has_plain_numbers(self.model, key) else "its layer converts it"


def _merge_of(patches: Sequence[tuple[Any, ...]]) -> Merge:
    """The last merge among the patches of a weight."""
    return [patch[1].merge for patch in patches if isinstance(patch[1], MergedLoraAdapter)][-1]


def _one_adapter(patches: Sequence[tuple[Any, ...]]) -> FusedLoraAdapter:
    """Our adapters on one weight as one, at strength 1."""
    keys = {key for patch in patches for key in patch[1].loaded_keys}
    shares = [
        (kind, coefficient * strength, *rest)
        for strength, adapter, *_ in patches
        for kind, coefficient, *rest in adapter.weights[1:]
    ]
    return FusedLoraAdapter(keys, (False, *shares))


def _merged_in_place(key: str, weight: Tensor, adapter: FusedLoraAdapter, rungs: Rungs) -> Undo:
    """Merge into a weight that nobody else sees; the record leads back.

    Raises:
        LoraError: the rung that was asked for cannot be proved.
    """
    fuse, terms = _fuser(weight), (adapter,)
    one_thread = cpu_threads(1) if weight.is_cpu else nullcontext()
    with torch.inference_mode(), exact_products(), one_thread:
        rungs.look_again()
        undo = rungs.new_record(key, weight, lambda: fuse(terms))
        undo.write(terms, fuse)
    undo.terms, undo.whole = terms, True
    return undo


def pristine_weight(patcher: Any, key: str) -> Tensor:
    """The base of a weight, whatever lies on it now.

    Raises:
        UnusableModelError: an undo record does not lead back to it.
    """
    backup = patcher.backup.get(key)
    return comfy.utils.get_attr(patcher.model, key) if backup is None else backup.weight


def mark_merged(parent: Any, clone: Any, undo: str, rungs: Rungs) -> Counter[str]:
    """Turn what was just patched onto a fresh clone into a merge.

    Args:
        parent: The patcher that was cloned.
        clone: Carries the parent's patches, and the new ones after them.
        undo: The rung that was asked for.
        rungs: Makes the undo records.

    Returns:
        The number of new weights by the reason why they are patched as ComfyUI does; ``""`` counts
        those with an undo record.
    """
    after = uuid.uuid5(_NAMESPACE, f"{clone.patches_uuid}:on_device:{undo}")
    merge = Merge(undo, rungs, parent.patches_uuid, after)
    changed = []
    for key, patches in clone.patches.items():
        known = len(parent.patches.get(key, ()))
        patches[known:] = [
            (strength, MergedLoraAdapter.marked(adapter, merge), *rest)
            for strength, adapter, *rest in patches[known:]
        ]
        changed += [key] if len(patches) > known else []
    clone.patches_uuid = after
    if model_kind(clone).may_reclass:
        differential(clone, OnDeviceMerge)
    if not isinstance(clone, OnDeviceMerge):
        return Counter({f"the model is a {model_kind(clone).name}": len(changed)})
    return Counter(clone.why_ordinary(key) or "" for key in changed)
