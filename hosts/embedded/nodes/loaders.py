"""Loaders: checkpoints, and core's own LoRA loaders."""

from typing import Any, ClassVar

from ....lora_core.errors import LoraError
from ....lora_core.stack import STRENGTH_LIMIT, StackItem
from ...protocol import LoraChoice
from ..handles import Clip, Model, Vae
from .base import CoreNode

_STRENGTH = ("FLOAT", {"default": 1.0, "min": -STRENGTH_LIMIT, "max": STRENGTH_LIMIT, "step": 0.01})


class CheckpointLoaderSimple(CoreNode):
    """Loads a checkpoint file, or a folder in diffusers' form, from ``checkpoints``."""

    DISPLAY_NAME = "Load Checkpoint"
    CATEGORY = "model/loaders"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        return {"required": {"ckpt_name": (cls.host.folders.checkpoints(), {})}}

    def execute(self, ckpt_name: str) -> tuple[Model, Clip | None, Vae | None]:
        """Load it; a file that is loaded already is shared."""
        return self.host.load_checkpoint(ckpt_name)


class LoraLoader(CoreNode):
    """Core's loader for model and text encoders; keys that core drops are applied too."""

    DISPLAY_NAME = "Load LoRA (Model and CLIP)"
    CATEGORY = "model/loaders"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        return {
            "required": {
                "model": ("MODEL", {}),
                "clip": ("CLIP", {}),
                "lora_name": (cls.host.lora_names(), {}),
                "strength_model": _STRENGTH,
                "strength_clip": _STRENGTH,
            }
        }

    def execute(
        self, model: Model, clip: Clip, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Any, ...]:
        """Put the LoRA on both; strength 0 on both loads nothing."""
        return self._applied(model, clip, lora_name, strength_model, strength_clip)

    def _applied(
        self,
        model: Model,
        clip: Clip | None,
        lora_name: str,
        strength_model: float,
        strength_clip: float,
    ) -> tuple[Any, Any]:
        if not strength_model and not strength_clip:
            return model, clip
        lora = self.host.load_lora(LoraChoice(lora_name))
        item = StackItem(lora, strength_model, strength_clip)
        done = self.host.apply(model, clip, [item], "report")
        return done.model, done.clip


class LoraLoaderModelOnly(LoraLoader):
    """Core's loader for the model alone."""

    DISPLAY_NAME = "Load LoRA"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        return {
            "required": {
                "model": ("MODEL", {}),
                "lora_name": (cls.host.lora_names(), {}),
                "strength_model": _STRENGTH,
            }
        }

    def execute(  # type: ignore[override]  # core's node has fewer inputs than its parent
        self, model: Model, lora_name: str, strength_model: float
    ) -> tuple[Any, ...]:
        """Put the LoRA on the model."""
        return self._applied(model, None, lora_name, strength_model, 0.0)[:1]


def require(part: Any, what: str) -> Any:
    """The output of a checkpoint, or a LoraError when the file had none of it."""
    if part is None:
        raise LoraError(
            f"This checkpoint has no {what}.",
            {"Got": "nothing from Load Checkpoint"},
            f"use a checkpoint with a {what}.",
        )
    return part
