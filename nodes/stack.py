"""LoRA Stack: rows that become a LORA_STACK."""

from typing import Any

from .base import ROWS_INPUT, STACK_INPUT, RowsNode
from .lora_stack import StackEntry
from .resolve import entries_of, words_of
from .rows import parse_rows


class LoraWorkbenchStack(RowsNode):
    """Appends its rows to a stack."""

    DISPLAY_NAME = "LoRA Stack"
    DESCRIPTION = "A list of LoRAs for Apply LoRAs and for other packs that read LORA_STACK."
    SEARCH_ALIASES = ("lora stacker", "multi lora")
    RETURN_TYPES = ("LORA_STACK", "STRING", "STRING")
    RETURN_NAMES = ("lora_stack", "trigger_words", "text")
    OUTPUT_TOOLTIPS = (
        "The incoming stack with the rows after it.",
        "Words the LoRAs were trained with, separated by commas.",
        "The stack as <lora:name:model:clip> lines; weightings are left out.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        return {"required": {"rows": ROWS_INPUT}, "optional": {"lora_stack": STACK_INPUT}}

    def execute(self, rows: str, lora_stack: object = None) -> tuple[list[StackEntry], str, str]:
        """Load the rows."""
        entries, _ = entries_of(self.host, lora_stack, parse_rows(rows))
        lines = (f"<lora:{name}:{model:g}:{clip:g}>" for name, model, clip in entries)
        return entries, words_of(entries), "\n".join(lines)
