"""Save Merged Model: a checkpoint with the LoRAs in its weights."""

from typing import Any

from .base import Node
from .report import receipt

_DTYPES = ["as_loaded", "fp32", "fp16", "bf16"]


class LoraWorkbenchSaveModel(Node):
    """Writes a checkpoint file."""

    DISPLAY_NAME = "Save Merged Model"
    DESCRIPTION = (
        "Writes a checkpoint with all LoRAs and other patches in its weights, and in its header "
        "which LoRAs these are. Never overwrites a file."
    )
    SEARCH_ALIASES = ("save checkpoint", "export model", "save merged checkpoint")
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("path", "receipt")
    OUTPUT_TOOLTIPS = (
        "Where the file lies.",
        "What the file holds, and what rounding to quantised layers changed.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """Inputs in frozen order."""
        filename = {
            "default": "checkpoints/merged",
            "tooltip": "Name below the output folder; a number and .safetensors are added.",
        }
        dtype = {
            "default": "as_loaded",
            "tooltip": (
                "Number format of the weights in the file. as_loaded: as they are in memory, "
                "quantised layers included. The others halve or double the file."
            ),
        }
        return {
            "required": {"model": ("MODEL", {"tooltip": "The diffusion model."})},
            "optional": {
                "clip": ("CLIP", {"tooltip": "Text encoders to write into the same file."}),
                "vae": ("VAE", {"tooltip": "The VAE to write into the same file."}),
                "filename": ("STRING", filename),
                "dtype": (_DTYPES, dtype),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def execute(
        self,
        model: Any,
        clip: Any = None,
        vae: Any = None,
        filename: str = "checkpoints/merged",
        dtype: str = "as_loaded",
        prompt: object = None,
        extra_pnginfo: dict[str, object] | None = None,
    ) -> dict[str, Any]:
        """Write the file; path and facts are shown on the node."""
        workflow = {"prompt": prompt, **(extra_pnginfo or {})} if prompt is not None else {}
        saved = self.host.save_model(model, clip, vae, filename, dtype, workflow)
        told = receipt(str(saved.path), saved)
        return {"ui": told.to_ui(), "result": (str(saved.path), told.to_text())}
