"""The demo model's modules, its tokens, and the files that hold its weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from instant_clip_tokenizer import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lora_workbench.headless.demo_model import structure as sizes
from lora_workbench.headless.demo_model.pictures import Scene
from lora_workbench.hosts.embedded.checkpoints import ldm_tensors
from lora_workbench.hosts.embedded.parts import Checkpoint, DiffusionPart, TextPart, VaePart
from lora_workbench.lora_core.files.write import write_safetensors

START, END = 49406, 49407


class TokenRows(nn.Module):
    """The token table: the rows of the captions' tokens are trained, the others stay."""

    def __init__(self, ids: Sequence[int], table: Tensor) -> None:
        super().__init__()
        place = torch.full((sizes.VOCABULARY,), -1)
        place[torch.tensor(ids)] = torch.arange(len(ids))
        self.register_buffer("table", table)
        self.register_buffer("ids", torch.tensor(ids))
        self.register_buffer("place", place)
        self.rows = nn.Parameter(table[self.ids])

    def forward(self, tokens: Tensor) -> Tensor:
        """Look tokens up, (..., 64)."""
        place = self.place[tokens]
        trained = self.rows[place.clamp(min=0)]
        return torch.where((place >= 0).unsqueeze(-1), trained, self.table[tokens])

    def whole(self) -> Tensor:
        """Give the table with the trained rows in their places."""
        return self.table.index_copy(0, self.ids, self.rows.detach())


def trained_ids(tokenizer: Tokenizer, scenes: Sequence[Scene]) -> list[int]:
    """Give the ids of all words in the captions, and the two marks."""
    return sorted({START, END}.union(*(tokenizer.encode(scene.caption) for scene in scenes)))


def new_vae() -> AutoencoderKL:
    """Make an untrained autoencoder."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=sizes.VAE_WIDTHS,
        layers_per_block=sizes.VAE_LAYERS,
        norm_num_groups=sizes.VAE_GROUPS,
        scaling_factor=sizes.LATENT_SCALE,
    )


def new_unet() -> UNet2DConditionModel:
    """Make an untrained UNet."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=sizes.UNET_WIDTHS,
        norm_num_groups=sizes.UNET_GROUPS,
        attention_head_dim=sizes.UNET_HEADS,  # diffusers' name for the number of heads
        cross_attention_dim=sizes.TEXT_WIDTH,
    )


def new_text_encoder(ids: Sequence[int]) -> CLIPTextModel:
    """Make an untrained text encoder; the rows of ``ids`` can be trained."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=sizes.TEXT_WIDTH,
            intermediate_size=4 * sizes.TEXT_WIDTH,
            num_hidden_layers=sizes.TEXT_LAYERS,
            num_attention_heads=sizes.TEXT_HEADS,
            projection_dim=sizes.TEXT_WIDTH,
        )
    )
    embeddings = token_owner(encoder)
    table = sizes.token_table().float()
    table[torch.tensor(ids)] = torch.randn(len(ids), sizes.TEXT_WIDTH) * 0.5
    embeddings.token_embedding = TokenRows(ids, table)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
    return encoder


def token_owner(encoder: CLIPTextModel) -> nn.Module:
    """Find the module that holds the token table."""
    return next(module for module in encoder.modules() if hasattr(module, "token_embedding"))


def write_base(
    path: Path, unet: UNet2DConditionModel, encoder: CLIPTextModel, vae: AutoencoderKL
) -> None:
    """Write the weights under their checkpoint names; of the token table, the trained rows."""
    embeddings = token_owner(encoder)
    trained = embeddings.token_embedding
    embeddings.token_embedding = nn.Embedding.from_pretrained(trained.whole())
    scale = sizes.LATENT_SCALE
    parts = Checkpoint(
        DiffusionPart(unet, "sd15", "epsilon", scale, {}),
        TextPart({"l": encoder}, "sd15", {}),
        VaePart(vae, scale),
    )
    tensors = {key: tensor.half() for key, tensor in ldm_tensors(parts).items()}
    del tensors[sizes.TOKEN_TABLE]
    tensors |= {sizes.TOKEN_IDS: trained.ids, sizes.TOKEN_ROWS: trained.rows.detach().half()}
    write_safetensors(path, tensors, sizes.CHECKPOINT_METADATA, overwrite=True)
    embeddings.token_embedding = trained
