"""Names of a loaded ComfyUI model: ComfyUI's own key map first, ours for what it lacks."""

import weakref
from collections.abc import Mapping
from typing import Any

import comfy.lora

from ...lora_core.errors import LoraError
from ...lora_core.models.table import ModelTable, table_from_shapes
from ...lora_core.models.target import ModuleTargets, Target

PatchKey = str | tuple[Any, ...]
"""A key of ``ModelPatcher.add_patches``: name, or (name, (dim, start, length)[, function])."""

_UNET_PREFIX = "diffusion_model."


class ComfyNames:
    """What LoRA files call the modules of one MODEL and CLIP.

    Attributes:
        components: Those of ``"unet"``, ``"te1"``, ``"te2"`` that are connected.
        shapes: Shape of every weight, by its name in ComfyUI's memory.
        patch_keys: Target name to the key that ``add_patches`` takes.
    """

    def __init__(self, model: Any, clip: Any) -> None:
        self._clip = weakref.ref(clip.cond_stage_model) if clip is not None else None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.patch_keys: dict[str, PatchKey] = {}
        self._unet_keys: Mapping[str, PatchKey] = {}
        self._clip_keys: Mapping[str, PatchKey] = {}
        self._parameters: set[str] = set()
        if model is not None:
            self._add_shapes(model.model)
            self._unet_keys = comfy.lora.model_lora_keys_unet(model.model, {})
        if clip is not None:
            self._add_shapes(clip.cond_stage_model)
            self._clip_keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
        self._own = self._own_table()
        self._known = {t.target_key: t for t in self._own.targets} if self._own else {}
        encoders = {"te1"} if clip is not None else set()
        self.components = frozenset(encoders | ({"unet"} if model is not None else set()))

    def is_of(self, clip: Any) -> bool:
        """Whether this table was made with this text encoder, or without one."""
        if self._clip is None or clip is None:
            return self._clip is None and clip is None
        return self._clip() is clip.cond_stage_model

    def find(self, lora_key: str) -> tuple[ModuleTargets, ...]:
        """The modules that a name in a LoRA file addresses; see ``ModelTable.find``."""
        found = [
            self._module(keys[lora_key])
            for keys in (self._unet_keys, self._clip_keys)
            if lora_key in keys
        ]
        present = tuple(targets for targets in found if targets is not None)
        if present:
            return present
        return self._own.find(lora_key) if self._own is not None else ()

    def patch_key(self, target: Target) -> PatchKey:
        """The key under which ``add_patches`` takes a change of ``target``."""
        known = self.patch_keys.get(target.target_key)
        if known is not None:
            return known
        if target.rows is None:
            return target.target_key
        start, stop = target.rows
        return (target.target_key, (0, start, stop - start))

    def _add_shapes(self, inner: Any) -> None:
        self.shapes.update({key: tuple(value.shape) for key, value in inner.state_dict().items()})
        # ComfyUI: the state dict holds packed data of quantised weights, of another shape (0.30).
        self.shapes.update({key: tuple(value.shape) for key, value in inner.named_parameters()})

    def _own_table(self) -> ModelTable | None:
        """Our table of the same model, or None for an architecture that only ComfyUI knows."""
        try:
            return table_from_shapes(self.shapes)
        except LoraError:
            return None

    def _module(self, patch_key: PatchKey) -> ModuleTargets | None:
        name = patch_key if isinstance(patch_key, str) else patch_key[0]
        if name not in self.shapes:
            return None
        weight = self._target(patch_key, name)
        bias_name = name.removesuffix(".weight") + ".bias"
        has_bias = isinstance(patch_key, str) and name != bias_name and bias_name in self.shapes
        return ModuleTargets(weight, self._target(bias_name, bias_name) if has_bias else None)

    def _target(self, patch_key: PatchKey, name: str) -> Target:
        known = self._known.get(name)
        if isinstance(patch_key, str) and known is not None:
            return known
        component = "unet" if name.startswith(_UNET_PREFIX) else "te1"
        canonical = known.canonical if known is not None else name.removeprefix(_UNET_PREFIX)
        if isinstance(patch_key, str):
            return Target(name, self.shapes[name], component, canonical)
        label = f"{name}[{patch_key[1]}]" + ("()" if len(patch_key) > 2 else "")
        self.patch_keys[label] = patch_key
        return Target(label, _narrowed(self.shapes[name], patch_key[1]), component, canonical)


def _narrowed(shape: tuple[int, ...], offset: tuple[int, int, int] | None) -> tuple[int, ...]:
    if offset is None:
        return shape
    dim, _, length = offset
    return (*shape[:dim], length, *shape[dim + 1 :])
