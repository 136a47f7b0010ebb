"""Apply LoRAs: the one node most people need between a loader and a sampler."""

from typing import Any

from .base import ROWS_INPUT, STACK_INPUT, RowsNode
from .report import applied_report
from .resolve import entries_of, words_of
from .rows import parse_rows

_MODES = ["auto", "merge", "runtime"]


class LoraWorkbenchApply(RowsNode):
    """Applies an incoming stack, then its own rows."""

    DISPLAY_NAME = "Apply LoRAs"
    DESCRIPTION = (
        "Applies LoRAs to a model and its text encoders in one pass: the incoming stack first, "
        "then the rows. Says what every tensor of every file did."
    )
    SEARCH_ALIASES = ("lora loader", "power lora loader", "lora stack apply")
    RETURN_TYPES = ("MODEL", "CLIP", "STRING", "STRING")
    RETURN_NAMES = ("model", "clip", "report", "trigger_words")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRAs; the input stays as it was.",
        "The text encoders with the LoRAs, or nothing when none was connected.",
        "What each file matched, and what it did not.",
        "Words the LoRAs were trained with, separated by commas.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        mode = {
            "default": "auto",
            "tooltip": (
                "auto: runtime for quantised models (fp8, int8, nvfp4, ...), else merge; "
                "merge: change the weights, no cost per step; "
                "runtime: leave the weights and add the LoRAs in each step."
            ),
        }
        unmatched = {
            "default": "report",
            "tooltip": "What to do with a file some of whose tensors match nothing.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model."}),
                "rows": ROWS_INPUT,
            },
            "optional": {
                "clip": ("CLIP", {"tooltip": "The text encoders; without them only the model."}),
                "lora_stack": STACK_INPUT,
                "mode": (_MODES, mode),
                "unmatched": (["report", "error"], unmatched),
            },
        }

    def execute(
        self,
        model: Any,
        rows: str,
        clip: Any = None,
        lora_stack: object = None,
        mode: str = "auto",
        unmatched: str = "report",
    ) -> dict[str, Any]:
        """Apply the stack to clones; the report is also shown on the node."""
        entries, notes = entries_of(self.host, lora_stack, parse_rows(rows))
        stack = [entry.item for entry in entries]
        applied = self.host.apply(model, clip, stack, unmatched, mode)
        report = applied_report(applied, entries, notes)
        result = (applied.model, applied.clip, report.to_text(), words_of(entries))
        return {"ui": report.to_ui(), "result": result}
