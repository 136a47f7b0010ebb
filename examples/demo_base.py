"""The demo's UNet and text encoder, moved by the trainer's own loop: whole weights, no factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_model_parts import TokenRows, new_text_encoder, new_unet, token_owner, write_base
from diffusers import AutoencoderKL
from torch import nn

from lora_workbench.headless.train_run import Prepared
from lora_workbench.training.dropout import Draws
from lora_workbench.training.loop import Trainer
from lora_workbench.training.picture_feed import PictureFeed
from lora_workbench.training.randomness import seed_of
from lora_workbench.training.run import planned_steps
from lora_workbench.training.watcher import Watcher


@dataclass(frozen=True, eq=False)
class Weights:
    """All parameters of one part of a model; see ``training.moved.Moved``."""

    component: str
    parameters: Mapping[str, nn.Parameter]
    rate: float | None = None


def write_start(path: Path, ids: Sequence[int], vae: AutoencoderKL, seed: int) -> None:
    """Write the weights of an untrained model and a trained autoencoder.

    Args:
        path: As ``weights.safetensors`` of the package.
        ids: Tokens whose rows will be trained.
        vae: The autoencoder.
        seed: Of the start.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "base"))
        unet, encoder = new_unet(), new_text_encoder(ids)
    write_base(path, unet, encoder, vae)


def train_base(
    prepared: Prepared, ids: Sequence[int], vae: AutoencoderKL, watcher: Watcher, output: Path
) -> None:
    """Train all weights of UNet and text encoder, and write them; a run that stopped goes on.

    Args:
        prepared: Model, pictures and settings; its adapter is not used.
        ids: Tokens whose rows are trained.
        vae: The model's autoencoder, to write.
        watcher: Is told of each step.
        output: The weights.
    """
    model, config = prepared.model, prepared.config.training
    key = prepared.task.key
    with_rows = token_owner(model.parts["te1"])
    table = with_rows.token_embedding.weight.detach()
    with_rows.token_embedding = TokenRows(ids, table)
    seed, batch = config.run.seed, config.run.batch_size
    cache = prepared.folder / "cache"
    feed = PictureFeed(model, prepared.dataset, batch, seed, cache, encodes_captions=False)
    trainer = Trainer(
        model,
        [_weights(name, part) for name, part in model.parts.items()],
        feed,
        config,
        planned_steps(config, feed.batches_per_epoch),
        prepared.folder / f"base-{key[:16]}",
        key,
        watcher,
        Draws(seed),
        as_lora=None,
    )
    trainer.resume()
    trainer.run()
    with trainer.averaged():
        write_base(output, model.parts["unet"], model.parts["te1"], vae)


def _weights(component: str, part: nn.Module) -> Weights:
    part.requires_grad_(True)
    return Weights(component, dict(part.named_parameters()))
