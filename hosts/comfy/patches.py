"""A plan as patches on clones of ComfyUI's patchers."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ...lora_core.errors import LoraError
from ...lora_core.stack import Plan, StackItem, Terms
from ...version import VERSION
from .adapter import FusedLoraAdapter
from .model_kinds import model_kind
from .names import ComfyNames, PatchKey
from .repatch import differential
from .runtime import run_unmerged

_NAMESPACE = uuid.UUID("6f1d2a54-8d0e-5c7b-9a43-2f0f6d1b7c11")


def patched(
    model: Any,
    clip: Any,
    plan: Plan,
    stack: Sequence[StackItem],
    names: ComfyNames,
    modes: tuple[str, str] = ("merge", "merge"),
) -> tuple[Any, Any]:
    """Clones of ``model`` and ``clip`` that carry ``plan``; one that it does not touch is returned.

    Args:
        model: MODEL, or None.
        clip: CLIP, or None.
        plan: Made from ``stack`` for this model.
        stack: In order.
        names: The name table of this model.
        modes: For model and clip, ``"merge"`` or ``"runtime"`` (unmerged as far as it goes).

    Raises:
        LoraError: a factor cannot be read, or ComfyUI does not take a patch.
    """
    patches = fused_patches(plan, names)
    for adapter in patches.values():
        adapter.items = tuple(stack)
    ours = {key: key if isinstance(key, str) else key[0] for key in patches}
    unet = {key: patches[key] for key, name in ours.items() if name.startswith("diffusion_model.")}
    encoders = {key: adapter for key, adapter in patches.items() if key not in unet}
    digest = _digest(stack)
    if unet:
        model = model.clone()
        _apply(model, unet, digest, modes[0])
    if encoders:
        clip = clip.clone()
        _apply(clip.patcher, encoders, digest, modes[1])
    return model, clip


def fused_patches(plan: Plan, names: ComfyNames) -> dict[PatchKey, FusedLoraAdapter]:
    """One adapter per key of ``add_patches``."""
    grouped: dict[PatchKey, Terms] = {}
    for terms in plan.terms.values():
        for term in terms:
            key = names.patch_key(term.target)
            grouped[key] = (*grouped.get(key, ()), term)
    return {
        key: FusedLoraAdapter.of(terms, has_function=len(key) > 2 and not isinstance(key, str))
        for key, terms in grouped.items()
    }


def _apply(
    patcher: Any, patches: Mapping[PatchKey, FusedLoraAdapter], digest: str, mode: str
) -> None:
    """Put patches on a fresh clone in one of the modes."""
    if mode == "runtime":
        patches = run_unmerged(patcher, patches)
        digest = f"runtime:{digest}"
    if patches:
        _add(patcher, patches, digest)


def _add(patcher: Any, patches: Mapping[PatchKey, FusedLoraAdapter], digest: str) -> None:
    """Queue the patches on a fresh clone, which still has its parent's uuid."""
    may_reclass = model_kind(patcher).may_reclass
    if may_reclass:
        differential(patcher)
    parent = patcher.patches_uuid
    taken = patcher.add_patches(dict(patches), 1.0)
    if len(taken) != len(patches):
        missing = next(key for key in patches if key not in taken)
        raise LoraError(
            "ComfyUI did not take a patch.",
            {"Weight": missing, "Patcher": type(patcher).__name__},
            "report this with the model's name; use ComfyUI's own LoraLoader meanwhile.",
        )
    # ComfyUI: add_patches draws a random uuid, and a new uuid reloads and re-patches the whole
    # model (0.3.64 to 0.30). An equal stack on an equal parent gets an equal uuid, but for classes
    # that keep offloaded weights and are not ours: where a clone dies, its parent unloads the model
    # in part and drops our patches, and a new clone of an equal uuid would count as loaded.
    if may_reclass or getattr(patcher, "is_dynamic", bool)():
        patcher.patches_uuid = uuid.uuid5(_NAMESPACE, f"{parent}:{digest}")


def _digest(stack: Sequence[StackItem]) -> str:
    items = [
        [
            repr(item.lora.file_key),
            item.strength_model,
            item.strength_clip,
            item.weighting.to_text(),
        ]
        for item in stack
        if item.strength_model or item.strength_clip
    ]
    return json.dumps([VERSION, items])
