"""Errors for LoRAs of kinds that are recognised and cannot be applied, with a way that works."""

from collections import Counter
from collections.abc import Sequence

from .errors import UnsupportedFormatError
from .lora import CONTROL_LORA, NUMBERED, Lora
from .modules import LoraModule

_KINDS_OF_COMFYUI = ("glora", "set")
"""Read in ComfyUI 0.30 and not here."""
_WHOLE_FILES = {
    CONTROL_LORA: "put it into ComfyUI's folder controlnet and load it with its Load ControlNet "
    "Model node.",
    NUMBERED: "use a file in kohya's or diffusers' names; these numbers say which weight only to "
    "the lora_diffusion package and the model it was trained on.",
}
_WITH_COMFYUI = (
    "until LoRA Workbench supports it, load this file with ComfyUI's own LoraLoader node."
)


def file_not_supported(lora: Lora) -> UnsupportedFormatError:
    """For a file that is no LoRA of modules, whatever the model."""
    return UnsupportedFormatError(
        f"{lora.name} cannot be applied: {lora.problem}.",
        {"Tensors": len(lora.file.tensors)},
        _WHOLE_FILES[lora.problem or ""],
    )


def modules_not_supported(lora: Lora, modules: Sequence[LoraModule]) -> UnsupportedFormatError:
    """For a file of which these modules, and no others, could have changed the model."""
    kinds = Counter(module.kind for module in modules)
    return UnsupportedFormatError(
        f"{lora.name} cannot be applied: {modules[0].problem}.",
        {"Modules": ", ".join(f"{n} {kind}" for kind, n in kinds.items())},
        _WITH_COMFYUI
        if all(module.kind in _KINDS_OF_COMFYUI for module in modules)
        else "use a file of LoRA, LoCon, LoHa, LoKr, DoRA, OFT, diff or norm modules.",
    )


def part_not_supported(
    lora: Lora, module: LoraModule, reason: str | None
) -> UnsupportedFormatError:
    """For a module without which the others of the file make no sense; ComfyUI reads it."""
    return UnsupportedFormatError(
        f"{lora.name} cannot be applied: {reason}.", {"Module": module.lora_key}, _WITH_COMFYUI
    )
