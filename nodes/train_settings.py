"""Training Settings: a preset, and what is changed of it."""

from typing import Any

from .base import Node

_PRESETS = ["style", "character", "quick look"]


class LoraWorkbenchTrainSettings(Node):
    """Chooses and explains settings."""

    DISPLAY_NAME = "Training Settings"
    DESCRIPTION = (
        "How a LoRA is trained: a preset whose choices are explained, and your own changes. With a "
        "model connected it compares what each preset costs."
    )
    CATEGORY = "LoRA Workbench/training"
    SEARCH_ALIASES = ("lora training config", "learning rate", "lora rank", "optimizer")
    RETURN_TYPES = ("LW_TRAIN_SETTINGS", "STRING")
    RETURN_NAMES = ("settings", "explanation")
    OUTPUT_TOOLTIPS = ("For Train LoRA.", "What is set, and why.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        overrides = {
            "multiline": True,
            "dynamicPrompts": False,
            "default": "",
            "tooltip": (
                "Lines of TOML, for example: run.steps = 800. All keys are those of "
                "`lora-workbench train --keys`."
            ),
        }
        preset = {"default": "style", "tooltip": "What you train; each says why it is so."}
        return {
            "required": {"preset": (_PRESETS, preset), "overrides": ("STRING", overrides)},
            "optional": {
                "model": ("MODEL", {"tooltip": "To compare what the presets cost on it."}),
                "clip": ("CLIP", {"tooltip": "Its text encoders."}),
            },
        }

    def execute(
        self, preset: str, overrides: str, model: Any = None, clip: Any = None
    ) -> dict[str, Any]:
        """Read, check and explain."""
        from ..training.settings_text import compared, explained, settings_of
        from .training_report import settings_report

        config = settings_of(preset, overrides)
        costs: tuple[tuple[str, str], ...] = ()
        if model is not None:
            costs = compared(config, self.host.weights(model, clip), _PRESETS)
        told = settings_report(explained(preset, config), costs)
        return {"ui": told.to_ui(), "result": (config, told.to_text())}
