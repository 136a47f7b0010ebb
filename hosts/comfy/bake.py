"""A model of its own with all patches in its weights, and no patches."""

import copy
import uuid
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from .base_checkpoint import loaded_from
from .lineage import BAKED, Baked, lineage
from .repatch import has_plain_numbers

_NAMESPACE = uuid.UUID("0b5f7a53-95a4-5e0e-9d0b-6b6a1c3d7a60")


def baked(patcher: Any) -> Any:
    """A patcher on an inner model of its own whose weights are base plus patches, rounded once.

    The model that ``patcher`` shares with its clones is unloaded meanwhile, and is as before. Takes
    the memory of one more model.
    """
    new = _independent(patcher)
    for key in patcher.patches:
        _bake_key(new, key)
    new.patches = {}
    new.patches_uuid = uuid.uuid5(_NAMESPACE, f"{patcher.patches_uuid}:bake")
    # ComfyUI: reloads the checkpoint from this (0.30), which would lose what was baked.
    new.cached_patcher_init = None
    new.set_attachments(BAKED, Baked(lineage(patcher), loaded_from(patcher)))
    return new


def baked_clip(clip: Any) -> Any:
    """A CLIP on a baked patcher; see ``baked``."""
    new = clip.clone()
    new.patcher = baked(clip.patcher)
    new.cond_stage_model = new.patcher.model
    return new


def _independent(patcher: Any) -> Any:
    """A clone whose inner model, with the base in its weights, is shared with nobody."""
    # ComfyUI: a dynamic patcher's weights lie in mapped files and cannot be copied (0.30).
    if getattr(patcher, "is_dynamic", bool)():
        return patcher.clone(force_deepcopy=True)
    _unload(patcher)
    new = patcher.clone()
    # ComfyUI: the inner model names the patcher that samples with it; its config cannot be copied
    # and is never changed (0.30).
    user, config = (getattr(patcher.model, n, None) for n in ("current_patcher", "model_config"))
    new.model = copy.deepcopy(patcher.model, {id(user): None, id(config): config})
    new.backup, new.object_patches_backup, new.hook_backup = {}, {}, {}
    new.backup_buffers, new.pinned = {}, set()  # ComfyUI: since 0.8
    new.parent, new.clone_base_uuid = None, uuid.uuid4()
    return new


def _unload(patcher: Any) -> None:
    """Unload every clone of a patcher, so that the inner model is as right after loading."""
    others = [
        loaded
        for loaded in comfy.model_management.current_loaded_models
        if loaded.model is None or not patcher.is_clone(loaded.model)
    ]
    comfy.model_management.free_memory(1e30, patcher.load_device, others)
    patcher.detach()


def _bake_key(patcher: Any, key: str) -> None:
    if not has_plain_numbers(patcher.model, key):
        # ComfyUI's own way, which quantises again.
        comfy.model_patcher.ModelPatcher.patch_weight_to_device(patcher, key)
        patcher.backup.clear()
        return
    weight = comfy.utils.get_attr(patcher.model, key)
    values = weight.to(patcher.load_device, torch.float32, copy=True)
    values = comfy.lora.calculate_weight(patcher.patches[key], values, key)
    comfy.utils.set_attr_param(patcher.model, key, values.to(weight.device, weight.dtype))
