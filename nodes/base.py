"""What all nodes share: their host, and the inputs that mean the same everywhere."""

from typing import Any, ClassVar

from ..hosts import Host
from ..lora_core.stack import STRENGTH_LIMIT

CATEGORY = "LoRA Workbench"


class Node:
    """A V1 node class. Ids (class names) and the order of inputs are frozen for ever."""

    host: ClassVar[Host]
    DISPLAY_NAME: ClassVar[str]
    CATEGORY = CATEGORY
    FUNCTION = "execute"

    @classmethod
    def bound_to(cls, host: object) -> "type[Node]":
        """The same node class, asking ``host``."""
        return type(cls.__name__, (cls,), {"host": host, "__module__": cls.__module__})


def strength_input(tooltip: str) -> tuple[str, dict[str, Any]]:
    """A strength: dimensionless, -100 to 100 in steps of 0.01, as in ComfyUI's LoraLoader."""
    options = {
        "default": 1.0,
        "min": -STRENGTH_LIMIT,
        "max": STRENGTH_LIMIT,
        "step": 0.01,
        "tooltip": tooltip,
    }
    return "FLOAT", options


ROWS_INPUT = (
    "STRING",
    {
        "multiline": True,
        "dynamicPrompts": False,
        "default": "[]",
        "tooltip": (
            "The LoRAs: one <lora:name:model:clip> per line, or JSON rows "
            '[{"name": "file.safetensors", "model": 1.0, "clip": 1.0, "weighting": ""}]. '
            "Strengths have no unit; 1 is what the LoRA was trained for."
        ),
    },
)
STACK_INPUT = (
    "LORA_STACK",
    {"tooltip": "LoRAs of another stack; they come before this node's own."},
)
