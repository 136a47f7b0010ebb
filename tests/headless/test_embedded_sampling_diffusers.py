"""Sampling of the embedded host with small UNets of diffusers, against diffusers itself."""

from types import SimpleNamespace

import pytest
import torch

from lora_workbench.hosts.embedded.parts import DiffusionPart
from lora_workbench.hosts.embedded.sampling import sample, starting_noise
from lora_workbench.hosts.embedded.sampling.denoiser import unet_call

WIDTH, POOLED, SIZE_WIDTH = 6, 5, 4
SHAPE = (2, 4, 8, 12)
SEED, STEPS = 11, 20
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(autouse=True)
def one_thread(threads):
    """On tensors this small threads only wait for each other."""
    threads(1)


def small_unet(**more):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **more,
    )
    return unet.eval().requires_grad_(False)


def sdxl_unet(sizes):
    return small_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=POOLED + sizes * SIZE_WIDTH,
    )


def conditioning(generator, tokens=3):
    states = torch.randn(1, tokens, WIDTH, generator=generator)
    return SimpleNamespace(states=states, pooled=torch.randn(1, POOLED, generator=generator))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_is_diffusers_ddim(prediction, generator):
    """diffusers keeps latents at unit variance: x / sqrt(1 + sigma^2)."""
    from diffusers import DDIMScheduler

    unet, text, negative = small_unet(), conditioning(generator), conditioning(generator)
    part = DiffusionPart(unet, "sd15", prediction, 0.18215, {})
    ours = sample(
        part, text, negative, torch.zeros(SHAPE), SEED, STEPS, 4.0, "ddim", "ddim_uniform"
    )

    scheduler = DDIMScheduler(
        **BETAS, clip_sample=False, steps_offset=1, prediction_type=prediction
    )
    scheduler.set_timesteps(STEPS)
    kept = scheduler.alphas_cumprod[scheduler.timesteps[0]]
    x = starting_noise(SHAPE, SEED) * (1 - kept).sqrt()
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            towards, away = (
                unet(x, timestep, prompt.states.expand(2, -1, -1)).sample
                for prompt in (text, negative)
            )
            x = scheduler.step(away + 4.0 * (towards - away), timestep, x).prev_sample
    torch.testing.assert_close(ours, x / 0.18215, rtol=1e-3, atol=1e-4 * float(ours.abs().max()))


@pytest.mark.parametrize(
    ("family", "scores"), [("sdxl", None), ("sdxl-refiner", (6.0, 2.5))], ids=["base", "refiner"]
)
def test_sdxls_unet_is_told_pooled_texts_and_sizes_in_its_order(family, scores, generator):
    """One Euler step from the end of the table to 0 gives the estimate of x0 itself."""
    unet = sdxl_unet(6 if scores is None else 5)
    text, negative = conditioning(generator), conditioning(generator)
    part = DiffusionPart(unet, family, "epsilon", 0.13025, {})
    ours = sample(part, text, negative, torch.zeros(SHAPE), SEED, 1, 3.0, "euler", "normal")

    height, width = 8 * SHAPE[2], 8 * SHAPE[3]
    sigma = torch.tensor(14.614641)
    x = starting_noise(SHAPE, SEED) * (1 + sigma**2).sqrt()
    estimates = []
    for prompt, score in zip((text, negative), scores or (None, None), strict=True):
        tail = [height, width] if score is None else [score]
        extra = {
            "text_embeds": prompt.pooled.expand(2, -1),
            "time_ids": torch.tensor([[height, width, 0, 0, *tail]] * 2, dtype=torch.float32),
        }
        scaled, context = x / (1 + sigma**2).sqrt(), prompt.states.expand(2, -1, -1)
        with torch.no_grad():
            noise = unet(scaled, 999, context, added_cond_kwargs=extra).sample
        estimates.append(x - sigma * noise)
    towards, away = estimates
    wanted = (away + 3.0 * (towards - away)) / 0.13025
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_one_batch_of_two_prompts_is_the_same_as_one_after_the_other(generator):
    """Three chunks against one: the shorter prompt is repeated, which attention does not see."""
    part = DiffusionPart(small_unet(), "sd15", "epsilon", 1.0, {})
    positive, negative = conditioning(generator, 9), conditioning(generator, 3)

    def estimate(prompt, other, cfg):
        start = torch.zeros(SHAPE)
        return sample(part, prompt, other, start, SEED, 1, cfg, "euler", "normal")

    guided = estimate(positive, negative, 2.0)
    towards, away = estimate(positive, positive, 1.0), estimate(negative, negative, 1.0)
    difference = (guided - (away + 2.0 * (towards - away))).norm() / guided.norm()
    assert difference < 1e-6


def test_a_unet_in_half_precision_is_called_in_it_and_answers_in_float32(generator):
    unet = small_unet().to(torch.bfloat16)
    part = DiffusionPart(unet, "sd15", "epsilon", 1.0, {})
    x, context = torch.randn(SHAPE, generator=generator), conditioning(generator).states
    answer = unet_call(part)(x, torch.full((2,), 7.0), context.expand(2, -1, -1), None)
    wanted = unet(x.bfloat16(), 7, context.bfloat16().expand(2, -1, -1)).sample
    assert answer.dtype == torch.float32
    assert torch.equal(answer, wanted.float())
