"""Differential re-patch: a changed stack rewrites only the weights whose patches changed."""

import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ...lora_core.patching.crew import Crew
from .adapter import FusedLoraAdapter

_RECORD = "_lora_workbench_applied"
_MODEL_FIELDS = ("current_weight_patches_uuid", "model_loaded_weight_memory", "model_lowvram")
_PATCHER_FIELDS = (
    "backup",
    "forced_hooks",
    "hook_backup",
    "hook_patches",
    "injections",
    "object_patches",
    "object_patches_backup",
    "patches",
    "weight_wrapper_patches",
)

_PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Signature = tuple[Any, ...]
"""What the patches of one weight are: equal signatures give equal bits."""


def differential(patcher: Any, mixin: "type[DifferentialRepatch] | None" = None) -> Any:
    """Give a fresh clone of ours the class that re-patches only what changed, and return it.

    Args:
        patcher: A clone whose ``model_kind`` allows another class.
        mixin: What to mix into ComfyUI's class, by default ``DifferentialRepatch``. A clone that
            has it, or a class derived from it, keeps its class; so does one that lacks a field.
    """
    mixin = mixin or DifferentialRepatch
    if not isinstance(patcher, mixin) and missing_field(patcher) is None:
        patcher.__class__ = _class_over(comfy.model_patcher.ModelPatcher, mixin)
    return patcher


def missing_field(patcher: Any) -> str | None:
    """What this ComfyUI's ModelPatcher lacks of all that is used here, or None."""
    lacks = [field for field in _PATCHER_FIELDS if not hasattr(patcher, field)]
    lacks += [f"model.{field}" for field in _MODEL_FIELDS if not hasattr(patcher.model, field)]
    return lacks[0] if lacks else None


def repatch_text(patcher: Any, may_reclass: bool) -> str:
    """What a change of strength touches, for the report.

    Args:
        patcher: MODEL, or the patcher of a CLIP.
        may_reclass: What ``model_kind`` says of it.
    """
    lacks = missing_field(patcher)
    if may_reclass and lacks is None:
        return "a change rewrites only the weights it touches"
    cause = f" (this version has no {lacks})" if lacks else ""
    return f"a change patches the whole model again, ComfyUI's own path{cause}"


def passed_over(patcher: Any) -> list[str]:
    """The patched weights that ComfyUI's own load leaves as they are.

    ComfyUI: a load patches no parameter of a module that has parameters in modules below it, such
    as Wan's ``blocks.0.modulation``, though ``add_patches`` takes them (0.3.64 to 0.30).
    """
    names = (key.rpartition(".")[0] for key in patcher.patches)
    modules = {name: patcher.model.get_submodule(name) for name in dict.fromkeys(names)}
    skipped = {name for name, module in modules.items() if _is_passed_over(module)}
    return [key for key in patcher.patches if key.rpartition(".")[0] in skipped]


def passed_over_notes(patcher: Any) -> list[str]:
    """What a report must say of patched weights that a class of others leaves at their base."""
    names = [] if isinstance(patcher, DifferentialRepatch) else passed_over(patcher)
    if not names:
        return []
    weights = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [
        f"{len(names)} of the weights above stay as they were: ComfyUI's load patches no parameter "
        f"of a module with modules below it ({weights}); Merge Into Model with mode 'bake' does."
    ]


def _is_passed_over(module: Any) -> bool:
    own = module._parameters.keys()
    return any(name not in own for name, _ in module.named_parameters())


@cache
def _class_over(base: type, mixin: type) -> type:
    """One class per process, so that clones of clones are of equal class."""
    return type(mixin.__name__, (mixin, base), {"__module__": mixin.__module__})


def has_plain_numbers(model: Any, key: str) -> bool:
    """Whether a weight's stored numbers are its values, in a dtype that sums round to well."""
    weight, set_weight, convert_weight = comfy.model_patcher.get_key_weight(model, key)
    return not (set_weight or convert_weight) and weight.dtype in _PLAIN_DTYPES and weight.ndim > 0


@dataclass(eq=False)
class _Backup:
    """What ComfyUI reads of a backup (0.3.64 to 0.30).

    Attributes:
        weight: The pristine weight; never written to.
        inplace_update: Whether it is restored by copying.
        record: In one backup of a model; so it ends when anybody restores the model.
    """

    weight: Tensor
    inplace_update: bool
    record: "_Applied | None" = None


@dataclass(frozen=True, eq=False)
class _Applied:
    """What lies on a loaded model's weights; the inner model, which clones share, refers to it.

    Attributes:
        uuid: ``patches_uuid`` of the patcher that was loaded.
        signatures: Per weight.
        settings: What else a load leaves in the modules.
        kept: The patches, so that no id is given twice and files that stay need no new reading.
    """

    uuid: uuid.UUID
    signatures: Mapping[str, Signature]
    settings: tuple[Any, ...]
    kept: tuple[Any, ...]


class DifferentialRepatch:
    """Mixed into ModelPatcher: no constructor, and no state that ``clone()`` does not carry.

    ``_patched_ahead`` names the weights that are patched while a load is under way.
    """

    _patched_ahead: frozenset[str] = frozenset()

    def partially_load(
        self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> Any:
        """Load as ComfyUI does, after changing only the weights whose patches changed.

        After a failure or an interrupt the base is back: ComfyUI forgets a model whose load failed.
        """
        try:
            if self._lost_patches():
                self._spoil()
            if self.why_stock(device_to, force_patch_weights) is None:
                self._repatch(device_to)
            loaded = super().partially_load(device_to, extra_memory, force_patch_weights)
            self._remember()
            return loaded
        except BaseException:
            # ComfyUI: an interrupt is one (0.30), which its own load lets through.
            self._fail()
            self.detach()
            raise

    def load(
        self,
        device_to: Any = None,
        lowvram_model_memory: float = 0,
        force_patch_weights: bool = False,
        full_load: bool = False,
    ) -> Any:
        """Load as ComfyUI does, with the patches of weights that its load passes over.

        On a CPU every patch comes first, several weights at a time.
        """
        self.unpatch_hooks()  # as ComfyUI's load begins: hooks lie on top of patches
        is_all = full_load and _is_cpu(device_to)
        keys = [k for k in (self.patches if is_all else passed_over(self)) if k not in self.backup]
        self._patch_all(keys, device_to)
        self._patched_ahead = frozenset(keys)
        try:
            return super().load(device_to, lowvram_model_memory, force_patch_weights, full_load)
        finally:
            del self._patched_ahead

    def partially_unload(self, *args: Any, **options: Any) -> Any:
        """Unload as ComfyUI does; after a failure the next load restores everything."""
        try:
            return super().partially_unload(*args, **options)
        except BaseException:
            self._fail()
            raise

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        """Restore as ComfyUI does; after a failure the next load restores everything."""
        try:
            if unpatch_weights:
                self._spoil()
            return super().unpatch_model(device_to, unpatch_weights)
        except BaseException:
            self._fail()
            raise

    def patch_weight_to_device(
        self, key: str, device_to: Any = None, inplace_update: bool = False, **options: Any
    ) -> Any:
        """Patch as ComfyUI does; where one adapter of ours is all, in one pass over the weight."""
        if key in self._patched_ahead:
            return None
        in_place = inplace_update or self.weight_inplace_update
        adapter = self._sole_adapter(key)
        if adapter is None or in_place or any(options.values()):
            return super().patch_weight_to_device(key, device_to, inplace_update, **options)
        return self._merge_in_one_pass(key, adapter, device_to)

    def _merge_in_one_pass(self, key: str, adapter: FusedLoraAdapter, device_to: Any) -> None:
        """What ComfyUI does with a weight in three passes."""
        weight = comfy.utils.get_attr(self.model, key)
        if key not in self.backup:
            self.backup[key] = _Backup(weight.to(self.offload_device), False)
        device = weight.device if device_to is None else device_to
        base_weight = comfy.model_management.cast_to_device(weight, device, weight.dtype)
        comfy.utils.set_attr_param(self.model, key, adapter.merged(base_weight))

    def _sole_adapter(self, key: str) -> FusedLoraAdapter | None:
        """Our adapter when nothing else changes a weight, which holds plain numbers."""
        patches = self.patches.get(key, ())
        if len(patches) != 1 or not has_plain_numbers(self.model, key):
            return None
        ((strength, adapter, strength_model, offset, function),) = patches
        is_whole = strength == strength_model == 1.0 and offset is None and function is None
        return adapter if is_whole and _is_ours(adapter) else None

    def why_stock(self, device_to: Any, force_patch_weights: bool = False) -> str | None:
        """Why a load takes ComfyUI's own path, or None when only changed weights are touched."""
        model, record = self.model, self._record()
        applied = model.current_weight_patches_uuid
        if applied is None or applied == self.patches_uuid:
            return "nothing to change"
        if record is None or record.uuid != applied:
            return "another patcher was loaded in between"
        doubts = {
            "forced patching": force_patch_weights,
            "partly loaded": model.model_lowvram or not model.model_loaded_weight_memory,
            "another device": model.device != device_to,
            "hooks": self.hook_backup or self.hook_patches or self.forced_hooks,
            "callbacks at load": self.get_all_callbacks(CallbacksMP.ON_LOAD),
            "other wrappers, injections or casts": record.settings != self._settings(),
        }
        found = next((reason for reason, doubt in doubts.items() if doubt), None)
        return found or next(self._doubts_of_keys(record), None)

    def _restore_key(self, key: str) -> None:
        """Give a patched weight its pristine bits again, on any device; its backup stays."""
        entry = self.backup[key]
        if entry.inplace_update:
            comfy.utils.copy_to_param(self.model, key, entry.weight)
        else:
            comfy.utils.set_attr_param(self.model, key, entry.weight)

    def _release_key(self, key: str, device_to: Any) -> None:
        """A pristine weight that nothing patches any more goes to its device."""
        weight = comfy.utils.get_attr(self.model, key)
        comfy.utils.set_attr_param(self.model, key, weight.to(device_to))
        del self.backup[key]

    def _patch_key(self, key: str, device_to: Any) -> None:
        """Patch a pristine weight; its backup is made if there is none."""
        self.patch_weight_to_device(key, device_to=device_to)

    def _patch_all(self, keys: Iterable[str], device_to: Any) -> None:
        """Patch pristine weights; on a CPU, those that are our work alone one thread each."""
        jobs = {key: partial(self._patch_key, key, device_to) for key in keys}
        if _is_cpu(device_to):
            sizes = {
                k: comfy.utils.get_attr(self.model, k).numel() for k in filter(self._is_own, jobs)
            }
            order = sorted(sizes, key=sizes.__getitem__, reverse=True)
            Crew().run([jobs.pop(key) for key in order])
        for job in jobs.values():
            job()

    def _is_own(self, key: str) -> bool:
        """Whether patching a weight runs no code of ComfyUI, which knows no other thread."""
        return self._sole_adapter(key) is not None

    def _repatch(self, device_to: Any) -> None:
        """Turn what the record says into this clone's patches; other weights stay untouched."""
        record = self._record()
        changed = self._changed(record)
        self._spoil()
        # Object patches and injections go first and come back with ComfyUI's own load.
        self.unpatch_model(self.offload_device, unpatch_weights=False)
        for key in changed:
            if key in record.signatures:
                self._restore_key(key)
            if key not in self.patches:
                self._release_key(key, device_to)
        self._patch_all([key for key in changed if key in self.patches], device_to)
        self.model.current_weight_patches_uuid = self.patches_uuid

    def _changed(self, record: _Applied) -> list[str]:
        wanted = self._signatures()
        return [
            key
            for key in {**record.signatures, **wanted}
            if record.signatures.get(key) != wanted.get(key)
        ]

    def _doubts_of_keys(self, record: _Applied) -> Iterator[str]:
        replaced = (*self.object_patches, *self.object_patches_backup)
        pinned = getattr(self, "pinned", ())  # ComfyUI: since 0.8
        for key in self._changed(record):
            module, name = self._place(key)
            # ComfyUI: set on each module that a load has patched and moved (0.3.64 to 0.30).
            is_loaded = getattr(module, "comfy_patched_weights", False) or _is_passed_over(module)
            if not is_loaded:
                yield f"{key} is not fully loaded"
            if name not in module._parameters:
                yield f"{key} is not a parameter"
            if key in record.signatures and key not in self.backup:
                yield f"{key} has no backup"
            if key in pinned:
                yield f"{key} is pinned"
            if any(f"{key}.".startswith(f"{other}.") for other in replaced):
                yield f"{key} is part of an object patch"

    def _lost_patches(self) -> bool:
        """Whether an offloaded weight has lost the patches that its uuid speaks of.

        ComfyUI: when a clone died, its parent unloads for it, and that has none of them (0.30).
        """
        model = self.model
        if not model.model_lowvram or model.current_weight_patches_uuid != self.patches_uuid:
            return False
        return any(key not in self.backup and self._is_bare(key) for key in self.patches)

    def _is_bare(self, key: str) -> bool:
        """Whether a weight belongs to an offloaded module which adds no patch to it."""
        module, name = self._place(key)
        functions = getattr(module, f"{name}_function", ())
        is_patched = any(isinstance(f, comfy.model_patcher.LowVramPatch) for f in functions)
        return hasattr(module, "prev_comfy_cast_weights") and not is_patched

    def _place(self, key: str) -> tuple[Any, str]:
        """The module that holds a weight, and the weight's name in it."""
        module_name, _, name = key.rpartition(".")
        return self.model.get_submodule(module_name), name

    def _signatures(self) -> dict[str, Signature]:
        return {
            key: tuple(
                (strength, _identity(patch), strength_model, offset, function)
                for strength, patch, strength_model, offset, function in patches
            )
            for key, patches in self.patches.items()
        }

    def _settings(self) -> tuple[Any, ...]:
        wrappers = {name: tuple(found) for name, found in self.weight_wrapper_patches.items()}
        # ComfyUI: force_cast_weights came after 0.3.64.
        return (wrappers, getattr(self, "force_cast_weights", False), tuple(self.injections))

    def _record(self) -> _Applied | None:
        reference = vars(self.model).get(_RECORD)
        return reference() if reference is not None else None

    def _remember(self) -> None:
        record, applied = self._record(), self.model.current_weight_patches_uuid
        is_known = record is not None and record.uuid == applied
        if applied != self.patches_uuid or is_known or not self.backup:
            return
        kept = tuple(patch[1] for patches in self.patches.values() for patch in patches)
        record = _Applied(applied, self._signatures(), self._settings(), kept)
        key, entry = next(iter(self.backup.items()))
        if isinstance(entry, tuple):  # ComfyUI's own takes no record
            entry = self.backup[key] = _Backup(entry.weight, entry.inplace_update)
        entry.record = record
        setattr(self.model, _RECORD, weakref.ref(record))

    def _spoil(self) -> None:
        """Make the next load of any clone restore every backup: the uuid matches nobody.

        Never None, which ComfyUI takes for a model without patches.
        """
        self.model.current_weight_patches_uuid = uuid.uuid4()
        for entry in self.backup.values():
            if not isinstance(entry, tuple):
                entry.record = None

    def _fail(self) -> None:
        """After a failure in the middle of anything."""
        self._spoil()
        # ComfyUI: set at the end of a load, but only it lets a restore reset the modules (0.30).
        self.model.model_lowvram = True


def _is_cpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _identity(patch: Any) -> Any:
    return patch.signature if _is_ours(patch) else id(patch)


def _is_ours(patch: Any) -> bool:
    return isinstance(patch, FusedLoraAdapter)
