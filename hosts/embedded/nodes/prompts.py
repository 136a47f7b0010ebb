"""From text to conditioning."""

from dataclasses import replace
from typing import Any

from ..handles import Clip
from .base import CoreNode
from .loaders import require


class CLIPTextEncode(CoreNode):
    """Encodes a prompt with weights such as ``(word:1.2)``, in chunks of 77 tokens."""

    DISPLAY_NAME = "CLIP Text Encode (Prompt)"
    CATEGORY = "model/conditioning"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        text = {"multiline": True, "dynamicPrompts": True}
        return {"required": {"text": ("STRING", text), "clip": ("CLIP", {})}}

    def execute(self, text: str, clip: Clip | None) -> tuple[Any]:
        """Encode with the LoRAs that this CLIP carries."""
        from ..text import encode

        clip = require(clip, "text encoder")
        return (encode(clip.loaded(), text, clip.skip),)


class CLIPSetLastLayer(CoreNode):
    """Stops the text encoders at an earlier layer (clip skip)."""

    DISPLAY_NAME = "CLIP Set Last Layer"
    CATEGORY = "model/conditioning"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Core's inputs."""
        layer = {"default": -1, "min": -24, "max": -1, "step": 1}
        return {"required": {"clip": ("CLIP", {}), "stop_at_clip_layer": ("INT", layer)}}

    def execute(self, clip: Clip | None, stop_at_clip_layer: int) -> tuple[Clip]:
        """The same encoders with another last layer."""
        return (replace(require(clip, "text encoder"), skip=stop_at_clip_layer),)
