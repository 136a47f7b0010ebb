"""What all nodes share: their host, and the inputs that mean the same everywhere."""

from typing import Any, ClassVar

from ..hosts import Host
from ..lora_core.stack import STRENGTH_LIMIT
from .resolve import fingerprint_of, rows_problem

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


class RowsNode(Node):
    """A node with a ``rows`` input."""

    @classmethod
    def VALIDATE_INPUTS(cls, rows: object = None) -> bool | str:  # noqa: N802  ComfyUI's name
        """Refuse unreadable rows when the graph is queued; linked rows are read when they come."""
        return rows_problem(rows) or True

    @classmethod
    def IS_CHANGED(cls, rows: object = None, **_: object) -> str:  # noqa: N802  ComfyUI's name
        """Changes when a LoRA file changes on disk."""
        return fingerprint_of(cls.host, rows) if isinstance(rows, str) else ""


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
            "The LoRAs: one <lora:name:model:clip> per line, or JSON rows with name, model, clip "
            "and weighting. Strengths have no unit; 1 is what the LoRA was trained for."
        ),
    },
)
STACK_INPUT = (
    "LORA_STACK",
    {"tooltip": "LoRAs of another stack; they come before this node's own."},
)
LIVE_INPUT = {"lora_workbench_live": "UNIQUE_ID"}
"""A hidden input: the canvas gives the node a live panel, and ``execute`` the id for it."""
