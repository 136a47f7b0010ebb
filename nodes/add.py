"""Add LoRA to Stack: a LoRA that a node made or changed, back on its way to a model."""

from typing import Any

from ..hosts import LoraChoice
from ..lora_core.stack import StackItem
from .base import STACK_INPUT, Node, strength_input
from .lora_model import lora_of
from .lora_stack import MEMORY_PREFIX, StackEntry, read_stack


class LoraWorkbenchAdd(Node):
    """Appends a LORA_MODEL to a stack."""

    DISPLAY_NAME = "Add LoRA to Stack"
    DESCRIPTION = (
        "Takes a LORA_MODEL (trained, combined, resized or loaded, also by ComfyUI's own nodes) "
        "into a stack, so that it can be applied."
    )
    SEARCH_ALIASES = ("lora model to stack", "apply trained lora", "append lora")
    RETURN_TYPES = ("LORA_STACK",)
    RETURN_NAMES = ("lora_stack",)
    OUTPUT_TOOLTIPS = ("The incoming stack with this LoRA after it.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        name = {
            "default": "",
            "tooltip": (
                "Its name in the stack, shown as <memory>/NAME. Empty: the name it has; a LoRA "
                "that comes unchanged from a file keeps the file's, so that other packs find it."
            ),
        }
        return {
            "required": {
                "lora_model": ("LORA_MODEL", {"tooltip": "The LoRA, from the node that made it."}),
                "name": ("STRING", name),
                "strength_model": strength_input("How strongly the model changes; 1 as trained."),
                "strength_clip": strength_input("How strongly the text encoders change."),
            },
            "optional": {"lora_stack": STACK_INPUT},
        }

    def execute(
        self,
        lora_model: object,
        name: str,
        strength_model: float,
        strength_clip: float,
        lora_stack: object = None,
    ) -> tuple[list[StackEntry]]:
        """Parse the tensors; at strength 0 the stack stays as it is."""
        entries, _ = read_stack(lora_stack, lambda file: self.host.load_lora(LoraChoice(file)))
        if strength_model or strength_clip:
            wanted = name.strip()
            lora = lora_of(lora_model, wanted) if wanted else lora_of(lora_model)
            shown = f"{MEMORY_PREFIX}{wanted}" if wanted else lora.name
            entries.append(StackEntry(shown, StackItem(lora, strength_model, strength_clip)))
        return (entries,)
