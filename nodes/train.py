"""Train LoRA: from pictures to a LoRA that the same graph can use."""

import time
from typing import Any

from .base import LIVE_INPUT, Node


class LoraWorkbenchTrain(Node):
    """Trains; equal inputs never train twice."""

    DISPLAY_NAME = "Train LoRA"
    DESCRIPTION = (
        "Trains a LoRA on a dataset and writes it. Equal inputs give the finished file at once; an "
        "interrupted run goes on where it stopped."
    )
    CATEGORY = "LoRA Workbench/training"
    SEARCH_ALIASES = ("lora trainer", "dreambooth", "fine-tune", "kohya")
    RETURN_TYPES = ("LORA_MODEL", "LOSS_MAP", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("lora_model", "loss_map", "loss_plot", "samples", "path")
    OUTPUT_TOOLTIPS = (
        "The LoRA, for Add LoRA to Stack or for core's nodes.",
        "The losses, for core's Loss Graph.",
        "The losses as a picture.",
        "The last preview of each prompt; black without previews.",
        "Where the file lies.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        seed = {
            "default": 0,
            "min": 0,
            "max": 0xFFFFFFFF,
            "control_after_generate": False,
            "tooltip": "Of everything random; the same seed gives the same bits on one machine.",
        }
        retrain = {
            "default": False,
            "tooltip": "Train again although the same run is done, or begin an interrupted one "
            "anew. Off, a run that was stopped goes on.",
        }
        name = {"default": "lora", "tooltip": "Of the file, below loras in the output folder."}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The base, without LoRAs."}),
                "clip": ("CLIP", {"tooltip": "Its text encoders."}),
                "vae": ("VAE", {"tooltip": "Its autoencoder."}),
                "dataset": ("LW_DATASET", {"tooltip": "From Training Dataset."}),
                "settings": ("LW_TRAIN_SETTINGS", {"tooltip": "From Training Settings."}),
                "seed": ("INT", seed),
                "retrain": ("BOOLEAN", retrain),
            },
            "optional": {"name": ("STRING", name)},
            "hidden": LIVE_INPUT,
        }

    @classmethod
    def IS_CHANGED(  # noqa: N802
        cls, name: str | None = "lora", seed: int | None = 0, **_: object
    ) -> str:
        """A run that was stopped goes on when it is queued again; None is a linked input."""
        goes_on = any(
            name in (None, own_name) and seed in (None, own_seed)
            for own_name, own_seed, _ in cls.host.stopped_runs
        )
        return str(time.time_ns()) if goes_on else ""

    def execute(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        settings: Any,
        seed: int,
        retrain: bool,
        name: str = "lora",
        lora_workbench_live: str = "",
    ) -> dict[str, Any]:
        """Train, go on, or give what is there."""
        from .training_run import run_node

        done = run_node(
            self.host, model, clip, vae, dataset, settings, seed, retrain, name, lora_workbench_live
        )
        result = (done.lora_model, done.loss_map, done.loss_plot, done.samples, str(done.path))
        return {"ui": done.report.to_ui(), "result": result}
