"""Random files of real shapes, for the demo and the benchmarks; equal seeds give equal files."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..lora_core.files.write import SafetensorsWriter, write_safetensors
from ..lora_core.models.architectures import checkpoint_shapes, diffusers_unet_shapes

WEIGHT_STD = 0.03
_BLOCK = 4_000_037  # prime, so that the rows of a tiled tensor never line up
_TEXT_ENCODER = "cond_stage_model.transformer."


def write_random_checkpoint(path: Path, base: str = "sd15", seed: int = 0) -> None:
    """Write UNet and text encoders of a base in fp16, N(0, 0.03^2); SD1.5 has 1.97 GB.

    One random block is tiled: drawing a billion numbers would take most of a minute.
    """
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(_BLOCK, generator=generator).mul_(WEIGHT_STD).half()
    shapes = checkpoint_shapes(base)
    layout = {key: (torch.float16, shape) for key, shape in shapes.items()}
    with SafetensorsWriter(path, layout, {"format": "pt"}) as writer:
        position = 0
        for key, shape in shapes.items():
            done, count = 0, math.prod(shape)
            while done < count:
                first = position % _BLOCK
                piece = block[first : first + count - done]
                writer.write(key, piece, done * block.element_size())
                done, position = done + len(piece), position + len(piece)


def write_random_lora(path: Path, naming: str, rank: int, alpha: float, seed: int) -> None:
    """Write an SD1.5 LoRA as one of the three families of writers names it.

    Args:
        path: The file to make.
        naming: ``"kohya"`` (alpha as tensors, all transformer weights and CLIP-L), ``"diffusers"``
            (no alpha, attention) or ``"peft"`` (alpha in the header, attention).
        rank: Of every module.
        alpha: In the unit of rank; not written for ``"diffusers"``.
        seed: Of the factors.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in _modules(attention_only=naming != "kohya"):
        down_key, up_key = _keys(name, naming)
        kernel = (1,) * (len(shape) - 2)
        down = torch.randn((rank, *shape[1:]), generator=generator) / math.sqrt(
            math.prod(shape[1:])
        )
        up = torch.randn((shape[0], rank, *kernel), generator=generator) * 0.02
        tensors |= {down_key: down.half(), up_key: up.half()}
        if naming == "kohya":
            tensors[f"{_kohya(name)}.alpha"] = torch.tensor(alpha)
    write_safetensors(path, tensors, _header(naming, rank, alpha))


def _modules(attention_only: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the trained modules' diffusers names and shapes."""
    named: Mapping[str, tuple[int, ...]] = {
        **{f"unet.{key}": shape for key, shape in diffusers_unet_shapes("sd15").items()},
        **{
            f"text_encoder.{key.removeprefix(_TEXT_ENCODER)}": shape
            for key, shape in checkpoint_shapes("sd15").items()
            if key.startswith(_TEXT_ENCODER)
        },
    }
    for key, shape in named.items():
        name = key.removesuffix(".weight")
        is_attention = any(part in name for part in (".to_", ".self_attn."))
        is_trained = ".attentions." in name or ".encoder.layers." in name
        if name != key and len(shape) >= 2 and (is_attention if attention_only else is_trained):
            yield name, shape


def _keys(name: str, naming: str) -> tuple[str, str]:
    if naming == "kohya":
        return f"{_kohya(name)}.lora_down.weight", f"{_kohya(name)}.lora_up.weight"
    if naming == "peft":
        return f"{name}.lora_A.weight", f"{name}.lora_B.weight"
    middle = "lora" if name.startswith("unet.") else "lora_linear_layer"
    return f"{name}.{middle}.down.weight", f"{name}.{middle}.up.weight"


def _kohya(name: str) -> str:
    component, _, path = name.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component]
    return prefix + path.replace(".", "_")


def _header(naming: str, rank: int, alpha: float) -> dict[str, str]:
    if naming == "peft":
        config = {
            f"{component}.{name}": value
            for component in ("unet", "text_encoder")
            for name, value in (("r", rank), ("lora_alpha", alpha))
        }
        return {"lora_adapter_metadata": json.dumps(config)}
    if naming == "kohya":
        tags = {"10_lighthouse": {"lighthouse": 40, "sea": 31, "sunset": 12}}
        return {
            "ss_output_name": "lighthouse",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(alpha),
            "ss_tag_frequency": json.dumps(tags),
        }
    return {}
