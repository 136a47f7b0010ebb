"""A stack as one of ComfyUI's hooks: strengths that follow a schedule of the sampling."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import comfy.hooks

from ...lora_core.errors import LoraError
from ...lora_core.stack import StackItem, make_plan
from .model_kinds import model_kind, refuse_unsupported
from .names import ComfyNames
from .patches import fused_patches


class StackHook(comfy.hooks.WeightHook):
    """Applies a whole stack wherever ComfyUI applies a LoRA hook.

    Strengths and weightings are inside the patches, so that the hook at factor 1 gives the bits of
    Apply LoRAs; ComfyUI multiplies by the keyframe's factor.

    ComfyUI: hooks are cloned as ``type(hook)()``, then attribute by attribute (0.3.64 to 0.30).
    """

    def __init__(self, stack: Sequence[StackItem] = ()) -> None:
        super().__init__()
        self.stack = tuple(stack)

    def clone(self) -> "StackHook":
        """The same hook to ComfyUI: equal reference, shared stack."""
        copy = super().clone()
        copy.stack = self.stack
        return copy

    def add_hook_patches(
        self,
        model: Any,
        model_options: dict[str, Any],
        target_dict: dict[str, Any],
        registered: Any,
    ) -> bool:
        """Register the stack's patches on a patcher, and the hook in ``registered``.

        Raises:
            LoraError: a LoRA cannot be applied to this model, or a factor cannot be read.
        """
        if not self.should_register(model, model_options, target_dict, registered):
            return False
        is_clip = target_dict.get("target") is comfy.hooks.EnumWeightTarget.Clip
        _refuse_unsupported(model)
        names = _names(model, is_clip)
        plan = make_plan(self.stack, names)
        before = model.patches_uuid
        model.add_hook_patches(self, fused_patches(plan, names))
        if not is_clip:
            # ComfyUI: add_hook_patches draws a new uuid, and each sampling run would reload and
            # re-patch the whole model. Hooks leave the model's own patches as they are, and are
            # taken off after each run (0.3.64 to 0.30).
            model.patches_uuid = before
        registered.add(self)
        return True


def _refuse_unsupported(patcher: Any) -> None:
    refuse_unsupported(patcher)
    name = model_kind(patcher).name
    if "GGUF" in name:
        # ComfyUI: hooks cast the stored weight, which is packed here (0.3.64 to 0.30).
        raise LoraError(
            "ComfyUI's hooks cannot change GGUF weights.",
            {"Model": name},
            "use Apply LoRAs for this model; its strength is the same throughout.",
        )


def _names(patcher: Any, is_clip: bool) -> ComfyNames:
    if is_clip:
        return ComfyNames(None, SimpleNamespace(cond_stage_model=patcher.model))
    return ComfyNames(patcher, None)


def hook_group(
    stack: Sequence[StackItem], schedule: Sequence[tuple[float, float]]
) -> comfy.hooks.HookGroup:
    """See ``Host.hooks``.

    ComfyUI: a keyframe holds for at least one step unless told otherwise; a ramp with more
    keyframes than steps would lag behind its schedule (0.3.64 to 0.30).
    """
    keyframes = comfy.hooks.HookKeyframeGroup()
    for start, factor in schedule:
        keyframes.add(comfy.hooks.HookKeyframe(factor, start, guarantee_steps=0))
    group = comfy.hooks.HookGroup()
    group.add(StackHook(stack))
    group.set_keyframes_on_hooks(keyframes)
    return group
