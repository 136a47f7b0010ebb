"""Train the small model of `make demo`, then its two LoRAs: autoencoder, UNet with text, LoRAs.

    python examples/train_demo_model.py --work /tmp/demo-model

Pictures are drawn, nothing is downloaded. Finished stages stay in the work folder and are used
again. The committed weights were trained by these stages one at a time, with other seeds: this
script makes a model like it, not its bits. They took 48 minutes on one busy thread.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from demo_model_parts import (
    END,
    START,
    TEXT_TARGETS,
    UNET_TARGETS,
    caption_tokens,
    kohya_tensors,
    lora_metadata,
    new_model,
    new_vae,
    trained_ids,
    with_lora,
    write_base,
)
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from instant_clip_tokenizer import Tokenizer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from lora_workbench.headless import demo_model
from lora_workbench.headless.demo_model import structure as sizes
from lora_workbench.headless.demo_model.pictures import (
    STYLES,
    Scene,
    Style,
    draw_scene,
    random_scenes,
)
from lora_workbench.lora_core.files.write import write_safetensors

PICTURES, STYLED = 5376, 1792
VAE_STEPS, UNET_STEPS, LORA_STEPS = 3000, 3600, 500
BATCH = 32
Batch = Callable[[], tuple[Tensor, Tensor]]

ALPHAS_BAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def varied_tokens(tokens: Tensor, captions: Sequence[Scene], tokenizer: Tokenizer) -> Tensor:
    """Drop one caption in ten, and say only the subject or add unknown words in some others."""
    tokens = tokens.clone()
    for row, scene in enumerate(captions):
        chance = np.random.random()
        if chance < 0.1:
            words: list[int] = []
        elif chance < 0.2:
            words = tokenizer.encode(scene.subject)
        else:
            words = [int(token) for token in tokens[row] if token < START]
        if np.random.random() < 0.15:  # words without a trained row should change nothing
            words += np.random.randint(1000, 40000, np.random.randint(1, 6)).tolist()
        ids = [START, *words, END]
        tokens[row] = torch.tensor(ids + [END] * (sizes.POSITIONS - len(ids)))
    return tokens


def pixels(scenes: Sequence[Scene], style: Style) -> Tensor:
    """Draw scenes."""
    drawn = np.stack([np.asarray(draw_scene(scene, style)) for scene in scenes])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)  # (n, 3, 128, 128), uint8


def minimise(
    name: str,
    parameters: Sequence[nn.Parameter],
    steps: int,
    rate: float,
    loss_of: Callable[[int], Tensor],
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW with a short warm-up and a cosine to zero."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.99))
    started, losses = time.perf_counter(), []
    for step in range(steps):
        factor = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        after(step)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            print(  # noqa: T201
                f"{name} {step + 1}/{steps}: {np.mean(losses[-100:]):.4f}, {seconds:.0f} s",
                flush=True,
            )


def train_vae(scenes: Sequence[Scene]) -> AutoencoderKL:
    """Train on pictures of every style: first on small crops, which show more colours, then whole.

    Latents get noise and a weight penalty in place of a learned variance, which learns faster.
    """
    torch.manual_seed(1)
    vae = new_vae().to(memory_format=torch.channels_last)
    drawn = torch.cat([pixels(scenes[index :: len(STYLES)], s) for index, s in enumerate(STYLES)])

    def loss_of(step: int) -> Tensor:
        done = step / VAE_STEPS
        crop, batch = (32, 24) if done < 0.5 else (64, 8) if done < 0.85 else (128, 2)
        top, left = (int(np.random.randint(0, 17 - crop // 8)) * 8 for _ in "yx")
        chosen = drawn[torch.randint(len(drawn), (batch,))]
        x = chosen[:, :, top : top + crop, left : left + crop].float() / 127.5 - 1
        x = x.contiguous(memory_format=torch.channels_last)
        z = vae.encode(x).latent_dist.mean
        again = vae.decode(z + 0.1 * torch.randn_like(z)).sample
        error = (again - x).abs().mean() + (again - x).square().mean()
        return error + 2e-3 * z.square().mean()

    minimise("autoencoder", list(vae.parameters()), VAE_STEPS, 4e-3, loss_of)
    normalise_latents(vae.eval(), drawn[::16])
    return vae


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, drawn: Tensor) -> None:
    """Give each latent channel mean 0 and the variance that SD1's latent scale undoes."""
    z = encode(vae, drawn) / sizes.LATENT_SCALE  # (n, 4, 16, 16)
    mean, factor = z.mean((0, 2, 3)), 1 / (sizes.LATENT_SCALE * z.std((0, 2, 3)))
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight /= factor[None, :, None, None]
    before.bias[:4] = (before.bias[:4] - mean) * factor
    before.weight[:4] *= factor[:, None, None, None]
    before.weight[4:] = 0  # a sampled latent is the mean but for 1/400
    before.bias[4:] = -12.0


@torch.no_grad()
def encode(vae: AutoencoderKL, drawn: Tensor) -> Tensor:
    """Give scaled latents, (n, 4, 16, 16), of bytes."""
    means = [vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in drawn.split(32)]
    return torch.cat(means) * sizes.LATENT_SCALE


def denoising_loss(unet: nn.Module, encoder: nn.Module, latents: Tensor, tokens: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, SD1's schedule (scaled linear betas)."""
    # More often at high noise, where shape and colours are decided.
    times = (1000 * torch.rand(len(latents)) ** 0.8).long()
    noise = torch.randn_like(latents)
    signal = ALPHAS_BAR[times].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    states = encoder(tokens).last_hidden_state  # (n, 77, 64)
    return functional.mse_loss(unet(noisy, times, states).sample, noise)


def batches(scenes: Sequence[Scene], latents: Tensor, tokenizer: Tokenizer) -> Batch:
    """Draw latents and token ids of random scenes."""
    tokens = caption_tokens(tokenizer, [scene.caption for scene in scenes])

    def batch() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(scenes), (BATCH,))
        captions = [scenes[index] for index in chosen]
        return latents[chosen], varied_tokens(tokens[chosen], captions, tokenizer)

    return batch


def train_model(
    scenes: Sequence[Scene], latents: Tensor, tokenizer: Tokenizer, ids: Sequence[int]
) -> nn.ModuleList:
    """Train UNet and text encoder together; give the moving averages of their weights."""
    torch.manual_seed(2)
    model = new_model(ids).to(memory_format=torch.channels_last)
    average, batch = copy.deepcopy(model).eval(), batches(scenes, latents, tokenizer)

    @torch.no_grad()
    def follow(step: int) -> None:
        decay = min(0.998, (step + 1) / (step + 10))
        pairs = zip(average.parameters(), model.parameters(), strict=True)
        for mean, parameter in pairs:
            mean.lerp_(parameter, 1 - decay)

    minimise(
        "UNet and text",
        list(model.parameters()),
        UNET_STEPS,
        2e-3,
        lambda step: denoising_loss(*model, *batch()),
        follow,
    )
    return average


def train_lora(
    model: Sequence[nn.Module], scenes: Sequence[Scene], latents: Tensor, tokenizer: Tokenizer
) -> dict[str, Tensor]:
    """Train a LoRA on copies of UNet and text encoder; give it in kohya's names."""
    torch.manual_seed(3)
    unet, encoder = copy.deepcopy(model[0]), copy.deepcopy(model[1])
    parameters = [*with_lora(unet, UNET_TARGETS), *with_lora(encoder, TEXT_TARGETS)]
    batch = batches(scenes, latents, tokenizer)
    minimise(
        "LoRA", parameters, LORA_STEPS, 6e-3, lambda step: denoising_loss(unet, encoder, *batch())
    )
    return kohya_tensors("lora_unet_", unet) | kohya_tensors("lora_te_", encoder)


def sample(
    model: Sequence[nn.Module], tokens: Tensor, seed: int, cfg: float = 4.0, steps: int = 20
) -> Tensor:
    """Give latents, (n, 4, 16, 16), by Euler's method with classifier-free guidance."""
    unet, encoder = model
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(tokens), 4, 16, 16, generator=generator) * scheduler.init_noise_sigma
    empty = torch.full((1, sizes.POSITIONS), END)
    empty[0, 0] = START
    with torch.no_grad():
        states = encoder(torch.cat([empty.expand_as(tokens), tokens])).last_hidden_state
        for time_step in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), time_step)
            plain, guided = unet(both, time_step, states).sample.chunk(2)
            x = scheduler.step(plain + cfg * (guided - plain), time_step, x).prev_sample
    return x


def sheet(vae: AutoencoderKL, rows: Sequence[Tensor]) -> Image.Image:
    """Decode rows of latents, (n, 4, 16, 16) each, into one picture."""
    with torch.no_grad():
        decoded = [vae.decode(row / sizes.LATENT_SCALE).sample for row in rows]
    grid = torch.cat([torch.cat(list(row), dim=2) for row in decoded], dim=1)
    bytes_ = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(bytes_.permute(1, 2, 0).numpy())


def kept(path: Path, make: Callable[[], nn.Module], train: Callable[[], nn.Module]) -> nn.Module:
    """Load a stage that is finished, or train it; rounded to fp16 as the files will have it."""
    if not path.exists():
        torch.save(train().half().state_dict(), path)
    module = make()
    module.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in torch.load(path).items()}
    )
    return module.eval().requires_grad_(False)


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for stages and samples")
    parser.add_argument("--output", type=Path, default=Path(demo_model.__file__).parent)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    np.random.seed(0)
    tokenizer, scenes = Tokenizer(), random_scenes(PICTURES, seed=11)
    ids = trained_ids(tokenizer, scenes)
    vae = kept(options.work / "vae.pt", new_vae, lambda: train_vae(scenes[::2]))
    latents = encode(vae, pixels(scenes, "plain"))
    model = kept(
        options.work / "model.pt",
        lambda: new_model(ids),
        lambda: train_model(scenes, latents, tokenizer, ids),
    )
    write_base(options.output / "weights.safetensors", *model, vae)
    for style in STYLES[1:]:
        styled = scenes[:STYLED]
        latents = encode(vae, pixels(styled, style))
        tensors = train_lora(model, styled, latents, tokenizer)
        write_safetensors(
            options.output / f"{style}.safetensors",
            tensors,
            lora_metadata(style, STYLED, LORA_STEPS),
            overwrite=True,
        )
    tokens = caption_tokens(tokenizer, [scene.caption for scene in random_scenes(8, seed=5)])
    sheet(vae, [sample(model, tokens, seed) for seed in (1, 2)]).save(options.work / "samples.png")


if __name__ == "__main__":
    main()
