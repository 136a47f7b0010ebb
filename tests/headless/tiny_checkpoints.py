"""Small random checkpoints of every family, from diffusers' and transformers' own classes."""

from functools import lru_cache

import torch

from lora_workbench.hosts.embedded.checkpoints import ldm_tensors
from lora_workbench.hosts.embedded.parts import Checkpoint, DiffusionPart, TextPart, VaePart
from lora_workbench.lora_core.files.write import write_safetensors

FAMILIES = ("sd15", "sd2", "sdxl", "sdxl-refiner")
VOCABULARY, TEXT_WIDTH = 50, 64
SCALES = {"sd15": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "sdxl-refiner": 0.13025}
ENCODERS = {"sd15": "l", "sd2": "h", "sdxl": "lg", "sdxl-refiner": "g"}
CONTEXT = {"sd15": TEXT_WIDTH, "sd2": TEXT_WIDTH, "sdxl": 2 * TEXT_WIDTH}
LABEL_WIDTH = {"sdxl": 2816, "sdxl-refiner": 2560}
# SD1 has 8 heads at every width; the others one for 64 channels.
WIDTHS = {"sd15": (32, 64), "sd2": (64, 128), "sdxl": (64, 64), "sdxl-refiner": (64, 64, 64)}
DOWN = {
    "sd15": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "sd2": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "sdxl": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "sdxl-refiner": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
}


def randomized(module, seed):
    """No two weights alike, none at its start value; small, so that activations stay finite."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.1 if parameter.ndim == 1 else 0.02)
    return module.eval().requires_grad_(False)


def unet_arguments(family, in_channels=4):
    """``UNet2DConditionModel``'s, written down by hand."""
    down, widths = DOWN[family], WIDTHS[family]
    arguments = {
        "in_channels": in_channels,
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(down)),
        "layers_per_block": 1,
        "cross_attention_dim": CONTEXT.get(family, TEXT_WIDTH),
        "attention_head_dim": 8 if family == "sd15" else tuple(width // 64 for width in widths),
        "use_linear_projection": family != "sd15",
    }
    if family in LABEL_WIDTH:
        arguments |= {
            "transformer_layers_per_block": 2,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": LABEL_WIDTH[family],
        }
    return arguments


def text_encoder(encoder, seed, layers=2):
    """A CLIP of 64 channels; H and G are projected."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=1,
        projection_dim=TEXT_WIDTH,
        hidden_act="quick_gelu" if encoder == "l" else "gelu",
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
    )
    torch.manual_seed(seed)
    kind = CLIPTextModel if encoder == "l" else CLIPTextModelWithProjection
    return randomized(kind(config), seed)


def kl_vae(scale, seed=5):
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        scaling_factor=scale,
    )
    return randomized(vae, seed)


def tiny_vae(scaling_factor, seed=6):
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 1, 1),
        scaling_factor=scaling_factor,
    )
    return randomized(vae, seed)


@lru_cache(maxsize=8)  # shared: copy before changing it
def tiny_checkpoint(family, prediction="epsilon", in_channels=4, vae=None):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    unet = randomized(UNet2DConditionModel(**unet_arguments(family, in_channels)), 1)
    scale = SCALES[family]
    encoders = {name: text_encoder(name, 2 + at) for at, name in enumerate(ENCODERS[family])}
    return Checkpoint(
        DiffusionPart(unet, family, prediction, scale, {}),
        TextPart(encoders, family, {}),
        VaePart(vae or kl_vae(scale), scale),
    )


def write_tiny(path, family, metadata=None, edit=None, dtype=None, **options):
    """Write a tiny checkpoint in ldm names; returns what was written as parts and as tensors."""
    checkpoint = tiny_checkpoint(family, **options)
    tensors = ldm_tensors(checkpoint)
    if dtype is not None:
        tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    if edit is not None:
        edit(tensors)
    write_safetensors(path, tensors, metadata or {})
    return checkpoint, tensors
