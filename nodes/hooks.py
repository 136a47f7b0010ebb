"""LoRA Schedule: a stack whose strengths follow the sampling."""

from typing import Any

from .base import Node
from .report_form import Report
from .resolve import entries_of, problem_of
from .rows import Rows
from .schedule import parse_schedule


class LoraWorkbenchHooks(Node):
    """Turns a stack into the host's hooks."""

    DISPLAY_NAME = "LoRA Schedule"
    DESCRIPTION = (
        "A stack as HOOKS, for ComfyUI's conditioning and CLIP hook nodes: its strengths are "
        "multiplied by factors that change during the sampling."
    )
    SEARCH_ALIASES = ("lora hook", "scheduled lora", "lora keyframes", "lora strength schedule")
    RETURN_TYPES = ("HOOKS",)
    RETURN_NAMES = ("hooks",)
    OUTPUT_TOOLTIPS = ("For 'Cond Set Props', 'Set CLIP Hooks' and the other hook nodes.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        schedule = {
            "default": "",
            "multiline": True,
            "dynamicPrompts": False,
            "tooltip": (
                "From which share of the sampling on (0 to 1, or percent) the strengths are "
                "multiplied by which factor: '0.3=0.5, 60%=0', or a ramp in steps "
                "'0.2-0.8=0..1 in 6'. Empty: 1 throughout."
            ),
        }
        return {
            "required": {
                "lora_stack": ("LORA_STACK", {"tooltip": "The LoRAs, from any pack."}),
                "schedule": ("STRING", schedule),
            },
            "optional": {},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, schedule: object = None) -> bool | str:  # noqa: N802  ComfyUI's name
        """Refuse an unreadable schedule when the graph is queued; linked text when it comes."""
        return problem_of(schedule, parse_schedule) or True

    def execute(self, lora_stack: object, schedule: str) -> dict[str, Any]:
        """Hooks of the whole stack; the keyframes are also shown on the node."""
        keyframes = parse_schedule(schedule)
        entries, notes = entries_of(self.host, lora_stack, Rows(()))
        hooks = self.host.hooks([entry.item for entry in entries], keyframes)
        facts = tuple((f"from {start:.1%}", f"{factor:g}") for start, factor in keyframes)
        report = Report("" if facts else "1 throughout", facts, notes=tuple(notes))
        return {"ui": report.to_ui(), "result": (hooks,)}
