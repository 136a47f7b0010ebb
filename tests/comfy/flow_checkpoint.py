"""Small random flow models that ComfyUI recognises: an SD3 checkpoint, and a Flux beside it."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from .checkpoints import NOISE_COUNT, random_weights, save_atomically

TEXT_WIDTH, POOLED_WIDTH = 4096, 2048  # of SD3's text, CLIP-L alone included
SD3 = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "depth": 2,  # ComfyUI: a width of 64 for each block
    "adm_in_channels": POOLED_WIDTH,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": TEXT_WIDTH, "out_features": 128},
    },
    "num_patches": 1024,
    "pos_embed_max_size": 32,
    "pos_embed_scaling_factor": None,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": POOLED_WIDTH,
    "context_in_dim": TEXT_WIDTH,
    "hidden_size": 128,  # ComfyUI: a head has 128
    "num_heads": 1,
    "mlp_ratio": 4.0,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


def write_sd3(path: Path, slim: Path) -> None:
    """Write an SD3 checkpoint of two blocks with the slim one's CLIP-L (130 MB)."""
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.taesd.taesd import TAESD

    own, theirs = "cond_stage_model.transformer.", "text_encoders.clip_l.transformer."
    text = {
        theirs + key.removeprefix(own): tensor
        for key, tensor in load_file(slim).items()
        if key.startswith(own)
    }
    unet = _weights(OpenAISignatureMMDITWrapper, SD3, "model.diffusion_model.")
    noise = torch.randn(NOISE_COUNT, generator=torch.Generator().manual_seed(16))
    vae = random_weights(TAESD(latent_channels=16), "first_stage_model.", torch.float16, noise)
    save_atomically({**unet, **vae, **text}, path)


def flux_model(in_channels: int = 16):
    """A MODEL of two blocks of each kind, through ComfyUI's own loader; it reads SD3's text."""
    from comfy import sd
    from comfy.ldm.flux.model import Flux

    tensors = _weights(Flux, {**FLUX, "in_channels": in_channels}, "")
    with torch.inference_mode():
        return sd.load_diffusion_model_state_dict(tensors)


def _weights(cls: type[nn.Module], config: dict, prefix: str) -> dict[str, torch.Tensor]:
    import comfy.ops

    module = cls(**config, device="meta", operations=comfy.ops.disable_weight_init)
    noise = torch.randn(NOISE_COUNT, generator=torch.Generator().manual_seed(3))
    return random_weights(module, prefix, torch.float16, noise)
