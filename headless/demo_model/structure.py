"""The numbers of the demo's model: Stable Diffusion 1.5's structure, narrow."""

import json
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

VOCABULARY, POSITIONS = 49408, 77
TEXT_WIDTH, TEXT_HEADS, TEXT_LAYERS = 64, 4, 3
UNET_WIDTHS, UNET_GROUPS, UNET_HEADS = (32, 32, 32, 32), 8, 2
VAE_WIDTHS, VAE_LAYERS, VAE_GROUPS = (16, 16, 24, 32), 1, 4
LATENT_SCALE = 0.18215
"""Stable Diffusion 1's: the autoencoder's latents times this have unit variance."""

TOKEN_TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
TOKEN_IDS, TOKEN_ROWS = "token_ids", "token_rows"
"""In the committed file: the tokens that were trained, int64, and their rows of the table."""

CHECKPOINT_METADATA: Mapping[str, str] = MappingProxyType(
    {
        "lora_workbench.unet": json.dumps(
            {"norm_num_groups": UNET_GROUPS, "num_heads": UNET_HEADS}
        ),
        "lora_workbench.text_encoder": json.dumps({"num_heads": TEXT_HEADS}),
        "lora_workbench.vae": json.dumps({"norm_num_groups": VAE_GROUPS}),
        "modelspec.title": "LoRA Workbench demo",
    }
)
"""What a loader cannot see in the shapes."""

_SEED = 20230527
_STEPS, _STEP = 64, 1 / 1024


def token_table() -> Tensor:
    """Make the rows of all tokens, before those that were trained replace theirs.

    Small whole multiples of 1/1024, uniform in -1/16 to 1/16: an unknown word says little, the
    values are exact in fp16, and integers of a seed are the same on every machine.

    Returns:
        ``(49408, 64)``, float16.
    """
    generator = torch.Generator().manual_seed(_SEED)
    whole = torch.randint(-_STEPS, _STEPS + 1, (VOCABULARY, TEXT_WIDTH), generator=generator)
    return (whole * _STEP).half()
