"""Merge Into Model: a stack that becomes part of the weights."""

from typing import Any

from ..hosts import LoraChoice
from .base import Node
from .lora_stack import read_stack
from .report import counted, receipt

_MODES = ["on_device", "bake"]
_UNDO = ["auto", "residual", "file", "full"]


class LoraWorkbenchMerge(Node):
    """Merges a stack into the weights."""

    DISPLAY_NAME = "Merge Into Model"
    DESCRIPTION = (
        "Merges LoRAs into the weights, in place on the weights' device and without a full copy of "
        "them. Exact to undo: connect the MODEL from before, or Unmerge From Model."
    )
    SEARCH_ALIASES = ("merge lora", "bake lora", "fuse lora")
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "receipt")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRAs in its weights; the input stays as it was.",
        "The text encoders with the LoRAs, or nothing when none was connected.",
        "What was merged, into how many weights, and how it is undone.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        mode = {
            "default": "on_device",
            "tooltip": (
                "on_device: merged in place and undone exactly when another branch needs the base; "
                "bake: a model of its own, which takes the memory of one more model."
            ),
        }
        undo = {
            "default": "auto",
            "tooltip": (
                "What on_device keeps to undo the merge. file: nothing, the checkpoint is read "
                "again; full: a copy of each changed weight on its device; residual: about 5 to "
                "20 % of a copy, slower on a CPU; auto: file where it matches, else full where "
                "it fits, else residual."
            ),
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model."}),
                "lora_stack": ("LORA_STACK", {"tooltip": "The LoRAs to merge."}),
            },
            "optional": {
                "clip": ("CLIP", {"tooltip": "The text encoders; without them only the model."}),
                "mode": (_MODES, mode),
                "undo": (_UNDO, undo),
            },
        }

    def execute(
        self,
        model: Any,
        lora_stack: object,
        clip: Any = None,
        mode: str = "on_device",
        undo: str = "auto",
    ) -> dict[str, Any]:
        """Merge the stack into clones; the receipt is also shown on the node."""
        entries, notes = read_stack(lora_stack, lambda name: self.host.load_lora(LoraChoice(name)))
        merged = self.host.merge(model, clip, [entry.item for entry in entries], mode, undo)
        headline = f"{counted(len(merged.bindings), 'LoRA')} merged · {merged.path}"
        told = receipt(headline, merged, entries, notes)
        return {"ui": told.to_ui(), "result": (merged.model, merged.clip, told.to_text())}
