"""Write a random SD2 or SDXL checkpoint that ComfyUI recognises, and a LoRA for it.

    python family_checkpoint.py sd2|sdxl CHECKPOINT LORA

In a process of its own: ComfyUI's cannot import diffusers here. SD2 has one level; SDXL has the
depths of Segmind Vega (arXiv:2401.02677), the smallest of three levels that ComfyUI 0.30 knows.
"""

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lora_workbench.hosts.embedded.checkpoints import ldm_tensors
from lora_workbench.hosts.embedded.parts import Checkpoint, DiffusionPart, TextPart, VaePart
from lora_workbench.lora_core.files.write import write_safetensors

UNETS = {
    "sd2": {
        "block_out_channels": (320,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "layers_per_block": 1,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5,),
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
# Width, layers, heads, inner width, activation.
ENCODERS = {
    "l": (768, 12, 12, 3072, "quick_gelu"),
    "h": (1024, 24, 16, 4096, "gelu"),
    "g": (1280, 32, 20, 5120, "gelu"),
}
FAMILIES = {"sd2": ("h", 0.18215), "sdxl": ("lg", 0.13025)}


def text_encoder(name: str) -> nn.Module:
    width, layers, heads, inner, activation = ENCODERS[name]
    config = CLIPTextConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_act=activation,
        projection_dim=width,
    )
    return (CLIPTextModel if name == "l" else CLIPTextModelWithProjection)(config)


def checkpoint_of(family: str) -> Checkpoint:
    encoders, scale = FAMILIES[family]
    levels = 4
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        scaling_factor=scale,
    )
    unet = UNet2DConditionModel(use_linear_projection=True, **UNETS[family])
    return Checkpoint(
        DiffusionPart(unet, family, "epsilon", scale, {}),
        TextPart({name: text_encoder(name) for name in encoders}, family, {}),
        VaePart(vae, scale),
    )


def lora_tensors(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    """Rank 4 on every attention projection, in kohya's names."""
    tensors = {}
    for path, inner in module.named_modules():
        if isinstance(inner, nn.Linear) and ("attn" in path):
            name = prefix + path.replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, inner.in_features) * 0.02
            tensors[f"{name}.lora_up.weight"] = torch.randn(inner.out_features, 4) * 0.1
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return tensors


def main() -> None:
    family, checkpoint, lora = sys.argv[1:]
    torch.manual_seed(5)
    parts = checkpoint_of(family)
    tensors = {key: value.half() for key, value in ldm_tensors(parts).items()}
    write_safetensors(Path(checkpoint), tensors, {})
    factors = lora_tensors("lora_unet_", parts.diffusion.unet)
    encoders = parts.text.encoders
    for number, encoder in enumerate(encoders.values(), 1):
        prefix = f"lora_te{number}_" if len(encoders) > 1 else "lora_te_"
        factors |= lora_tensors(prefix, encoder)
    write_safetensors(Path(lora), factors, {})


if __name__ == "__main__":
    main()
