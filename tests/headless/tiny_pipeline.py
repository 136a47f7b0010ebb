"""Small random diffusers and transformers modules of SD1.5's structure, and LoRAs for them."""

from types import SimpleNamespace

import torch

from lora_workbench.lora_core.lora import lora_from_tensors

WIDTH = 16


def tiny_unet(seed=0):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        sample_size=8,
    )
    return unet.eval().requires_grad_(False)


def tiny_text_encoder(seed=1):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def tiny_pipeline():
    """What ``applied`` needs of a diffusers pipeline."""
    return SimpleNamespace(unet=tiny_unet(), text_encoder=tiny_text_encoder(), text_encoder_2=None)


def lora_for(weights, name, generator, std=0.1):
    """A LoRA of rank 2 in diffusers' names for some attention weights of a pipeline."""
    tensors = {}
    for key, weight in weights.items():
        if not key.endswith(("to_q.weight", "to_v.weight", "q_proj.weight")):
            continue
        module = key.removesuffix(".weight")
        out, inside = weight.shape
        tensors[f"{module}.lora_A.weight"] = torch.randn(2, inside, generator=generator) * std
        tensors[f"{module}.lora_B.weight"] = torch.randn(out, 2, generator=generator) * std
    return lora_from_tensors(name, tensors)


def bits_of(module):
    """Every parameter's and buffer's bits."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_bits(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
