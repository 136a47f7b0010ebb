"""Load LoRA: one file, as a stack entry and as core's LORA_MODEL."""

from typing import Any

from ..hosts import LoraChoice
from ..lora_core.stack import StackItem
from ..lora_core.weighting import Weighting
from .base import STACK_INPUT, Node, strength_input
from .lora_model import LoraModel
from .lora_stack import StackEntry, read_stack
from .resolve import words_of


class LoraWorkbenchLoad(Node):
    """Loads one LoRA file."""

    DISPLAY_NAME = "Load LoRA"
    DESCRIPTION = "Loads one LoRA, with strengths and an optional weighting by block and part."
    SEARCH_ALIASES = ("lora loader", "lora block weight")
    RETURN_TYPES = ("LORA_STACK", "LORA_MODEL", "STRING")
    RETURN_NAMES = ("lora_stack", "lora_model", "trigger_words")
    OUTPUT_TOOLTIPS = (
        "The incoming stack with this LoRA after it.",
        "The LoRA's tensors, for nodes that change or save a LoRA.",
        "Words the LoRA was trained with, separated by commas.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        weighting = {
            "default": "",
            "multiline": True,
            "dynamicPrompts": False,
            "tooltip": (
                "Factors of the strength by block or part, for example "
                "'IN04-08=0.5, attn2=0, *.ff.net.0*=0.2'. Empty: 1 everywhere."
            ),
        }
        sha256 = {
            "default": "",
            "tooltip": "Hash that the file must have; finds the file when it was moved or renamed.",
        }
        return {
            "required": {
                "lora_name": (
                    cls.host.lora_names(),
                    {"tooltip": "A file in the LoRA folders."},
                ),
                "strength_model": strength_input("How strongly the model changes; 1 as trained."),
                "strength_clip": strength_input("How strongly the text encoders change."),
            },
            "optional": {
                "lora_stack": STACK_INPUT,
                "weighting": ("STRING", weighting),
                "sha256": ("STRING", sha256),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: str) -> bool:  # noqa: N802  ComfyUI's name
        """Accept every name: a file that was moved is found, or named, when the node runs."""
        return True

    @classmethod
    def IS_CHANGED(  # noqa: N802  ComfyUI's name
        cls, lora_name: str = "", sha256: str = "", **_: object
    ) -> str:
        """Changes when the file changes on disk."""
        return cls.host.fingerprint(LoraChoice(lora_name or "", sha256.strip() or None))

    def execute(
        self,
        lora_name: str,
        strength_model: float,
        strength_clip: float,
        lora_stack: object = None,
        weighting: str = "",
        sha256: str = "",
    ) -> tuple[list[StackEntry], LoraModel, str]:
        """Parse the file; its factors are read where they are used."""
        choice = LoraChoice(lora_name, sha256.strip().lower() or None)
        entries, _ = read_stack(lora_stack, lambda name: self.host.load_lora(LoraChoice(name)))
        lora = self.host.load_lora(choice)
        item = StackItem(lora, strength_model, strength_clip, Weighting.parse(weighting))
        entry = StackEntry(self.host.resolve(choice), item)
        if strength_model or strength_clip:
            entries.append(entry)
        return entries, LoraModel(lora), words_of([entry])
