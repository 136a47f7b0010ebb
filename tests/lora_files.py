"""LoRA files of every naming, made from module names and shapes."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_workbench.lora_core.files.write import write_safetensors
from lora_workbench.lora_core.models.architectures import (
    checkpoint_shapes,
    comfy_shapes,
    diffusers_unet_shapes,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Module:
    """A module of a base that a LoRA can change.

    ``component`` is "unet", "te1" or "te2"; ``path`` is its dotted name inside it (ldm or diffusers
    for a UNet, Hugging Face for a text encoder); ``shape`` is its weight's.
    """

    component: str
    path: str
    shape: Shape


def modules_of_shapes(
    component: str, shapes: Mapping[str, Shape], prefix: str = ""
) -> list[Module]:
    """The matrices and kernels below ``prefix`` of a state dict, embeddings left out."""
    return [
        Module(component, key.removeprefix(prefix).removesuffix(".weight"), tuple(shape))
        for key, shape in shapes.items()
        if key.startswith(prefix)
        and key.endswith(".weight")
        and len(shape) >= 2
        and not key.endswith("_embedding.weight")
    ]


def unet_modules(base: str, naming: str = "diffusers") -> list[Module]:
    """Every matrix and kernel of a base's UNet, in ``"ldm"`` or ``"diffusers"`` naming."""
    if naming == "diffusers":
        return modules_of_shapes("unet", diffusers_unet_shapes(base))
    return modules_of_shapes("unet", comfy_shapes(base), "diffusion_model.")


def text_encoder_modules(base: str) -> list[Module]:
    """Every projection of a base's text encoders, ``text_projection`` left out."""
    shapes = {key: s for key, s in comfy_shapes(base).items() if "text_projection" not in key}
    encoders = [name for name in ("clip_l", "clip_h", "clip_g") if _has(shapes, name)]
    return [
        module
        for number, name in enumerate(encoders, start=1)
        for module in modules_of_shapes(f"te{number}", shapes, f"{name}.transformer.")
    ]


def _has(shapes: Mapping[str, Shape], encoder: str) -> bool:
    return any(key.startswith(f"{encoder}.") for key in shapes)


def is_linear_target(module: Module) -> bool:
    """Whether kohya's default preset trains the module: transformer blocks and projections."""
    return (
        module.component != "unet"
        or "transformer_blocks" in module.path
        or (".proj_" in module.path)
    )


def is_attention(module: Module) -> bool:
    """Whether it is one of the q, k, v, out projections, which every naming can express."""
    return ".to_" in module.path or ".self_attn." in module.path


def kohya_name(module: Module, te1: str = "lora_te1_") -> str:
    prefix = {"unet": "lora_unet_", "te1": te1, "te2": "lora_te2_"}[module.component]
    return prefix + module.path.replace(".", "_")


def pipeline_name(module: Module) -> str:
    prefix = {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2."}
    return prefix[module.component] + module.path


def _attention_processor(module: Module) -> tuple[str, str]:
    """diffusers of 2023: ``attn1.processor.to_q_lora.down.weight``; transformers alongside."""
    if module.component != "unet":
        return f"{pipeline_name(module)}.lora_linear_layer.down.weight", ".down."
    owner, _, projection = module.path.removesuffix(".0").rpartition(".")
    return f"unet.{owner}.processor.{projection}_lora.down.weight", ".down."


def _suffixed(name: Callable[[Module], str], suffix: str, down: str) -> Callable:
    return lambda module: (f"{name(module)}.{suffix}", down)


def _diffusers(module: Module) -> tuple[str, str]:
    middle = "lora" if module.component == "unet" else "lora_linear_layer"
    return f"{pipeline_name(module)}.{middle}.down.weight", ".down."


def _raw_peft(module: Module) -> tuple[str, str]:
    prefix = pipeline_name(Module(module.component, "", ())).removesuffix(".")
    return f"{prefix}.base_model.model.{module.path}.lora_A.weight", "lora_A"


# naming -> (name of the down tensor, the part of it that becomes "up")
NAMINGS: dict[str, Callable[[Module], tuple[str, str]]] = {
    "kohya": _suffixed(kohya_name, "lora_down.weight", "lora_down"),
    "kohya-te": _suffixed(
        lambda module: kohya_name(module, "lora_te_"), "lora_down.weight", "lora_down"
    ),
    "diffusers-2023": _attention_processor,
    "diffusers": _diffusers,
    "peft": _suffixed(pipeline_name, "lora_A.weight", "lora_A"),
    "peft-default": _suffixed(pipeline_name, "lora_A.default.weight", "lora_A"),
    "peft-raw": _raw_peft,
}
_UP = {"lora_down": "lora_up", ".down.": ".up.", "lora_A": "lora_B"}


def factor_keys(module: Module, naming: str) -> tuple[str, str]:
    """The names of ``down`` and ``up`` in a naming."""
    down, part = NAMINGS[naming](module)
    head, _, tail = down.rpartition(part)
    return down, head + _UP[part] + tail


def lora_tensors(
    modules: Iterable[Module],
    naming: str = "kohya",
    rank: int = 4,
    alpha: float | None = None,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    std: float = 0.02,
    empty: bool = False,
) -> dict[str, Tensor]:
    """Random factors of plain LoRA / LoCon modules.

    Args:
        modules: What to change.
        naming: A key of ``NAMINGS``.
        rank: Of every module.
        alpha: Stored as ``<module>.alpha`` (kohya names only); None stores none.
        dtype: Of the factors.
        seed: Equal seeds give equal tensors.
        std: Standard deviation of a delta at alpha = rank.
        empty: Tensors of the right shapes that share one zero; for tests of names alone.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        down_key, up_key = factor_keys(module, naming)
        down, up = (
            (rank, *module.shape[1:]),
            (module.shape[0], rank, *(1 for _ in module.shape[2:])),
        )
        for key, shape in ((down_key, down), (up_key, up)):
            if empty:
                tensors[key] = torch.zeros((), dtype=dtype).expand(shape)
                continue
            size = std**0.5 / rank**0.25
            tensors[key] = (torch.randn(shape, generator=generator) * size).to(dtype)
        if alpha is not None:
            tensors[down_key.rsplit(".", 2)[0] + ".alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


def peft_header(rank: int, alpha: float, **fields: object) -> dict[str, str]:
    """The header that diffusers writes beside PEFT names, the same config for each component."""
    config = {"r": rank, "lora_alpha": alpha, **fields}
    names = ("unet", "text_encoder", "text_encoder_2")
    flat = {f"{name}.{field}": value for name in names for field, value in config.items()}
    return {"lora_adapter_metadata": json.dumps(flat)}


def write_lora(
    path: Path,
    modules: Iterable[Module],
    metadata: Mapping[str, str] | None = None,
    **options: object,
) -> Path:
    """Write ``lora_tensors(modules, **options)`` and return the path."""
    write_safetensors(path, lora_tensors(modules, **options), metadata)
    return path


# A whole SD1.5 is 2 GB. These blocks make a model that is still recognised as one: the family is
# read from the first convolution and a cross-attention. Block 4 has other shapes in SDXL.
_FIRST_BLOCKS = (
    "model.diffusion_model.time_embed.0",
    "model.diffusion_model.input_blocks.0.0",
    "model.diffusion_model.input_blocks.1.",
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.",
    "model.diffusion_model.out.",
    "cond_stage_model.transformer.text_model.encoder.layers.0.",
)


def small_sd15(dtype: torch.dtype = torch.float16, seed: int = 0) -> dict[str, Tensor]:
    """The first blocks of an SD1.5 checkpoint, N(0, 0.03^2); 25 MB in fp16."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (torch.randn(shape, generator=generator) * 0.03).to(dtype)
        for key, shape in checkpoint_shapes("sd15").items()
        if key.startswith(_FIRST_BLOCKS)
    }
