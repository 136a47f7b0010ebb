"""What the families fix beside shapes, and models that only ComfyUI runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from ....lora_core.errors import UnsupportedFormatError
from ..parts import EncoderName

COMFYUI_FIX = "run the graph in ComfyUI: lora-workbench run GRAPH --comfyui URL_OR_FOLDER."


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        encoders: Its text encoders, in the order in which their states are joined.
        latent_scale: The UNet's latents are the VAE's times this.
    """

    encoders: tuple[EncoderName, ...]
    latent_scale: float


FAMILIES: Mapping[str, Family] = {
    "sd15": Family(("l",), 0.18215),
    "sd2": Family(("h",), 0.18215),
    "sdxl": Family(("l", "g"), 0.13025),
    "sdxl-refiner": Family(("g",), 0.13025),
}

# Part of a tensor's name -> the model that has such a tensor.
_OTHER_MODELS = {
    "double_blocks.": "Flux",
    "single_transformer_blocks.": "Flux",
    "joint_blocks.": "Stable Diffusion 3",
    ".attn.add_q_proj.": "Stable Diffusion 3",
    "clip_txt_mapper.": "Stable Cascade",
    "clip_mapper.": "Stable Cascade",
    "effnet_mapper.": "Stable Cascade",
    ".time_stack.": "Stable Video Diffusion",
    ".time_mix_blocks.": "Stable Video Diffusion",
    "double_layers.": "AuraFlow",
    "noise_refiner.": "Lumina 2",
    "adaln_single.": "PixArt",
    "mlp_t5.": "Hunyuan DiT",
}
_QUANTISED = (".comfy_quant", ".scale_weight", ".weight_scale", "scaled_fp8")
_OTHER_INPUTS = {
    5: "a depth model",
    7: "the 4x upscaler",
    8: "InstructPix2Pix",
}
_INPUTS = (4, 9)  # latents; with a mask and the masked latents


def refuse_other_models(name: str, keys: Mapping[str, object]) -> None:
    """Check that no tensor marks a model that this host does not run.

    Args:
        name: Of the file, for the message.
        keys: Tensor names.

    Raises:
        UnsupportedFormatError: one does.
    """
    for key in keys:
        for mark, model in _OTHER_MODELS.items():
            if mark in key:
                raise unsupported(name, f"this is a {model} model", {"Recognised by": key})
        if key.endswith(_QUANTISED):
            raise unsupported(name, "the weights are quantised", {"Recognised by": key})


def refuse_other_inputs(name: str, in_channels: int, out_channels: int) -> None:
    """Check the UNet's channels: 4 in, or 9 for inpainting, and 4 out.

    Raises:
        UnsupportedFormatError: it has others.
    """
    if in_channels not in _INPUTS or out_channels != 4:
        what = _OTHER_INPUTS.get(in_channels, "a UNet of an unknown kind")
        facts = {"Channels in": in_channels, "Channels out": out_channels, "Supported": "4 or 9; 4"}
        raise unsupported(name, f"this is {what}", facts)


def unsupported(name: str, what: str, facts: Mapping[str, object]) -> UnsupportedFormatError:
    """The error for a checkpoint that ComfyUI may run and this host does not."""
    return UnsupportedFormatError(
        f"{name}: {what}, which the embedded host does not run.",
        {**facts, "Runs here": ", ".join(FAMILIES)},
        COMFYUI_FIX,
    )
