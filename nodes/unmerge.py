"""Unmerge From Model: the base back from a merged model."""

from typing import Any

from .base import Node
from .report import receipt


class LoraWorkbenchUnmerge(Node):
    """Takes off what Merge Into Model put on."""

    DISPLAY_NAME = "Unmerge From Model"
    DESCRIPTION = (
        "Takes all LoRAs of Merge Into Model (on_device) off again: the base comes back bit for "
        "bit. LoRAs of Apply LoRAs and of other nodes stay."
    )
    SEARCH_ALIASES = ("remove lora", "undo merge", "unpatch")
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "receipt")
    OUTPUT_TOOLTIPS = (
        "The model without the merged LoRAs.",
        "The text encoders without the merged LoRAs, or nothing when none was connected.",
        "How many weights were un-merged, and which LoRAs they carried.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        return {
            "required": {"model": ("MODEL", {"tooltip": "A model of Merge Into Model."})},
            "optional": {"clip": ("CLIP", {"tooltip": "The text encoders of Merge Into Model."})},
        }

    def execute(self, model: Any, clip: Any = None) -> dict[str, Any]:
        """Un-merge clones; the receipt is also shown on the node."""
        merged = self.host.unmerge(model, clip)
        told = receipt(f"un-merged · {merged.path}", merged)
        return {"ui": told.to_ui(), "result": (merged.model, merged.clip, told.to_text())}
