"""Inspect LoRA: what a file is, and what it does to a model."""

from typing import Any

from ..hosts import LoraChoice
from ..lora_core.stack import StackItem
from .base import Node
from .lora_model import lora_of
from .lora_stack import StackEntry, read_stack
from .report import inspection_report


class LoraWorkbenchInspect(Node):
    """Reports on LoRAs without applying them."""

    DISPLAY_NAME = "Inspect LoRA"
    DESCRIPTION = (
        "Says what each LoRA is: kinds, ranks, alphas, base, metadata; and with a model connected "
        "how many tensors change a weight of it, and why the others do not."
    )
    SEARCH_ALIASES = ("lora info", "lora metadata", "lora keys")
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_TOOLTIPS = ("The report as text.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        return {
            "required": {},
            "optional": {
                "lora_model": ("LORA_MODEL", {"tooltip": "One LoRA."}),
                "lora_stack": ("LORA_STACK", {"tooltip": "Several LoRAs."}),
                "model": ("MODEL", {"tooltip": "The model to compare with."}),
                "clip": ("CLIP", {"tooltip": "The text encoders to compare with."}),
            },
        }

    def execute(
        self,
        lora_model: object = None,
        lora_stack: object = None,
        model: Any = None,
        clip: Any = None,
    ) -> dict[str, Any]:
        """Bind and describe; nothing is changed."""
        entries, _ = read_stack(lora_stack, lambda name: self.host.load_lora(LoraChoice(name)))
        if lora_model is not None:
            lora = lora_of(lora_model)
            entries.insert(0, StackEntry(lora.name, StackItem(lora)))
        bindings = self.host.bindings(model, clip, [entry.item for entry in entries])
        report = inspection_report(entries, bindings)
        return {"ui": {"text": [report]}, "result": (report,)}
