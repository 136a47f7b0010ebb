"""What kind of patcher a MODEL or CLIP is: what may be done with it, and what the report says."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import torch

from ...lora_core.errors import LoraError

_PACKAGE = __name__.rpartition(".")[0]
_FP8 = tuple(
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
)
_COMPILE_KEY = "torch.compile"  # of core's wrapper, and of packs that call core's helper
_NUNCHAKU_MODULE = "SVDQW4A4Linear"  # what Nunchaku puts into core's own Z-Image
_NUNCHAKU_NODES = {
    "ComfyFluxWrapper": "'Nunchaku FLUX LoRA Loader'",
    "NunchakuQwenImageTransformer2DModel": "'Nunchaku Qwen Image LoRA Loader'",
    "ComfyQwenImageWrapper": "'Nunchaku Qwen Image LoRA Loader'",
}


@dataclass(frozen=True)
class ModelKind:
    """What is known of a patcher.

    Attributes:
        name: Its class; for a class of ours that of ComfyUI it is made from.
        may_reclass: Whether a clone may get a class of ours (differential re-patch, ledger).
        is_quantised: Some weights are stored in fp8 or less: a merge rounds the LoRA away.
        is_compiled: Its forward runs through ``torch.compile``.
        note: What the report says of it, or None.
    """

    name: str
    may_reclass: bool
    is_quantised: bool
    is_compiled: bool
    note: str | None


def model_kind(patcher: Any) -> ModelKind:
    """The kind of a MODEL, or of a CLIP's ``patcher``. Changes nothing; a few ms."""
    stock = next(cls for cls in type(patcher).__mro__ if not _is_ours(cls))
    may_reclass = stock is comfy.model_patcher.ModelPatcher
    is_compiled = any(True for _ in _compile_marks(patcher))
    notes = [_class_note(stock)] if not may_reclass else []
    if is_compiled:
        notes.append(
            "torch.compile: a strength change recompiles nothing; the first run in runtime mode "
            "does, once (torch 2.5 or newer)."
        )
    return ModelKind(
        name=stock.__name__,
        may_reclass=may_reclass,
        is_quantised=any(is_quantised(weight) for weight in patcher.model.parameters()),
        is_compiled=is_compiled,
        note=" ".join(notes) or None,
    )


def refuse_unsupported(patcher: Any) -> None:
    """Refuse a MODEL that no LoRA can be patched into.

    Raises:
        LoraError: it is a Nunchaku model; names the node that can.
    """
    diffusion_model = getattr(patcher.model, "diffusion_model", None)
    if diffusion_model is None:
        return
    name = type(diffusion_model).__name__
    inside = any(type(module).__name__ == _NUNCHAKU_MODULE for module in diffusion_model.modules())
    if not (inside or name in _NUNCHAKU_NODES or name.startswith("Nunchaku")):
        return
    node = _NUNCHAKU_NODES.get(name)
    raise LoraError(
        "Nunchaku models keep their weights in a packed form that LoRAs cannot be added to.",
        {"Model": name},
        f"use the node {node} for this model."
        if node
        else "use the LoRA node of the pack that loaded it, or load the model without Nunchaku.",
    )


def _is_ours(cls: type) -> bool:
    return cls.__module__.rpartition(".")[0] == _PACKAGE


def _class_note(stock: type) -> str:
    if "GGUF" in stock.__name__:
        return f"{stock.__name__}: patches are added to the dequantised weights as they are used."
    return f"{stock.__name__}: plain ComfyUI patches; a strength change re-patches every weight."


def is_quantised(weight: torch.Tensor) -> bool:
    """Whether stored numbers are not a weight's values, or are of 8 bits."""
    # ComfyUI: comfy_kitchen's class, which 0.3.64 does not have; a name needs no import.
    return weight.dtype in _FP8 or type(weight).__name__ == "QuantizedTensor"


def is_packed(weight: torch.Tensor) -> bool:
    """Whether stored numbers are not a weight's values, so that no plain layer computes with it."""
    return type(weight).__name__ == "QuantizedTensor" or not weight.dtype.is_floating_point


def _compile_marks(patcher: Any) -> Iterator[object]:
    """What says that a patcher is compiled, by core's node (old and new) and by other packs."""
    for wrappers in patcher.wrappers.values():
        if _COMPILE_KEY in wrappers:
            yield wrappers[_COMPILE_KEY]
    yield from (obj for obj in patcher.object_patches.values() if hasattr(obj, "_orig_mod"))
    for module in patcher.model.modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            yield module
