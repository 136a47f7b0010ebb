"""KSampler of the embedded host: laws and errors. tests/comfy compares it with ComfyUI."""

import sys
from types import SimpleNamespace

import pytest
import torch

from lora_workbench.hosts.embedded.parts import DiffusionPart
from lora_workbench.hosts.embedded.sampling import SAMPLERS, sample, starting_noise
from lora_workbench.hosts.embedded.sampling.denoiser import Denoiser, Prompt, x0_of
from lora_workbench.hosts.embedded.sampling.ksampler import noised
from lora_workbench.hosts.embedded.sampling.schedule import scaled_linear_schedule
from lora_workbench.lora_core.errors import LoraError, ShapeMismatchError, UnknownChoiceError

EVERY_SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS)
SHAPE = (2, 4, 3, 5)
WIDTH = 6


class Fake(torch.nn.Module):
    """Answers with its input, moved by the prompt and the timestep."""

    def __init__(self, channels=4):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.config = SimpleNamespace(in_channels=channels, cross_attention_dim=WIDTH)
        self.batches = []

    def forward(self, x, timestep, encoder_hidden_states, added_cond_kwargs, return_dict):
        self.batches.append(len(x))
        told = encoder_hidden_states.mean(dim=(1, 2)) + timestep / 1000
        return ((x[:, :4] * self.gain + told[:, None, None, None]).sin(),)


def a_part(channels=4, family="sd15"):
    return DiffusionPart(Fake(channels), family, "epsilon", 0.18215, {})


def conditioning(value, tokens=3, width=WIDTH):
    return SimpleNamespace(states=torch.full((1, tokens, width), value), pooled=None)


def sampled(part=None, *, latent=None, seed=3, sampler="euler", scheduler="normal", **options):
    latent = torch.zeros(SHAPE) if latent is None else latent
    options = {"positive": conditioning(0.3), "negative": conditioning(-0.2), **options}
    settings = {"seed": seed, "steps": 4, "cfg": 3.0, "sampler": sampler, "scheduler": scheduler}
    return sample(part or a_part(), latent=latent, **{**settings, **options})


@EVERY_SAMPLER
def test_the_same_seed_gives_the_same_bits_and_leaves_torchs_generator_alone(sampler):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    once = sampled(sampler=sampler)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    assert torch.equal(sampled(sampler=sampler), once)
    assert not torch.equal(sampled(sampler=sampler, seed=4), once)


@EVERY_SAMPLER
def test_the_largest_seed_works(sampler):
    assert sampled(sampler=sampler, seed=2**64 - 1).isfinite().all()


def test_a_full_run_starts_from_a_little_more_noise():
    """At sigma 14.6 the variance of unit noise becomes sigma^2 + 1; elsewhere sigma^2."""
    schedule, one, zero = scaled_linear_schedule(), torch.ones(1), torch.zeros(1)
    top = schedule.sigmas[-1]
    assert float(noised(schedule, zero, one, top)) == pytest.approx(float(top**2 + 1) ** 0.5)
    assert float(noised(schedule, 2 * one, one, schedule.sigmas[500])) == float(
        2 + schedule.sigmas[500]
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_right_answer_gives_the_clean_latents(prediction, generator):
    """v = alpha * noise - sigma_vp * x0, with alpha^2 + sigma_vp^2 = 1 and sigma = their ratio."""
    x0, noise = torch.randn(2, 3, generator=generator), torch.randn(2, 3, generator=generator)
    sigma = torch.tensor(2.5)
    alpha = 1 / (sigma**2 + 1).sqrt()
    velocity = alpha * noise - sigma * alpha * x0
    answer = noise if prediction == "epsilon" else velocity
    torch.testing.assert_close(x0_of(prediction, x0 + sigma * noise, answer, sigma), x0)


def a_denoiser(unet, positive, negative, cfg):
    prompts = (Prompt(positive), Prompt(negative))
    return Denoiser(unet, scaled_linear_schedule(), "epsilon", *prompts, cfg)


@pytest.mark.parametrize("tokens", [(3, 3), (3, 6), (4, 6)])
def test_one_batch_of_two_prompts_is_the_same_as_one_after_the_other(tokens, generator):
    positive, negative = (torch.randn(1, n, WIDTH, generator=generator) for n in tokens)
    x, sigma = torch.randn(SHAPE, generator=generator), torch.tensor(3.0)
    batches = []

    def unet(x, timestep, context, extra):
        batches.append(len(x))
        weights = (context @ torch.arange(float(WIDTH))).softmax(dim=1)  # attention
        return x + (weights[..., None] * context).sum(dim=(1, 2))[:, None, None, None]

    guided = a_denoiser(unet, positive, negative, 5.0)(x, sigma)
    towards, away = (a_denoiser(unet, p, p, 1.0)(x, sigma) for p in (positive, negative))
    assert batches == [4, 2, 2]
    torch.testing.assert_close(guided, away + 5.0 * (towards - away), atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize(("cfg", "asked"), [(1.0, [2]), (1.5, [4])])
def test_without_guidance_the_negative_prompt_is_not_asked(cfg, asked):
    part = a_part()
    sampled(part, steps=1, cfg=cfg)
    assert part.unet.batches == asked


def test_prompts_of_very_unlike_lengths_are_asked_one_after_the_other():
    part = a_part()
    sampled(part, steps=1, positive=conditioning(0.3, tokens=5 * 7), negative=conditioning(0.1, 7))
    assert part.unet.batches == [2, 2]


def test_an_error_in_the_callback_ends_the_run():
    class Interrupted(Exception):  # noqa: N818  as ComfyUI's
        pass

    def stop(step, x0, x, total):
        assert total == 4
        if step == 2:
            raise Interrupted

    part = a_part()
    with pytest.raises(Interrupted):
        sampled(part, callback=stop)
    assert len(part.unet.batches) == 3


def test_nothing_is_denoised_at_denoise_zero(generator):
    latent, part = torch.randn(SHAPE, generator=generator), a_part()
    assert torch.equal(sampled(part, latent=latent, denoise=0.0), latent)
    assert not part.unet.batches


def test_inputs_are_not_changed(generator):
    latent = torch.randn(SHAPE, generator=generator)
    kept = latent.clone()
    sampled(latent=latent, denoise=0.5)
    assert torch.equal(latent, kept)


def test_latents_of_a_batch_index_get_the_noise_of_that_place():
    """One latent at a time is drawn; 16 numbers and more are drawn in one go otherwise."""
    whole = starting_noise((3, 4, 5, 7), 9, [0, 1, 2])
    assert torch.equal(starting_noise((2, 4, 5, 7), 9, [2, 0]), whole[[2, 0]])


def test_outside_a_mask_nothing_changes(generator):
    latent = torch.randn(SHAPE, generator=generator)
    mask = torch.zeros(SHAPE[-2:])
    mask[:, 3:] = 1.0
    end = sampled(latent=latent, noise_mask=mask)
    torch.testing.assert_close(end[..., :3], latent[..., :3])
    assert (end[..., 3:] - latent[..., 3:]).abs().min() > 1e-3


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"sampler": "dpmpp_2n"}, r"Unknown sampler 'dpmpp_2n'.*(?s:.)*use 'dpmpp_2m'"),
        ({"scheduler": "karas"}, r"Unknown scheduler 'karas'.*(?s:.)*use 'karras'"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(choice, message):
    with pytest.raises(UnknownChoiceError, match=message):
        sampled(**choice)


def test_no_steps_are_an_error():
    with pytest.raises(LoraError, match="at least one step"):
        sampled(steps=0)


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 16, 8, 8)])
def test_other_tensors_than_latents_are_an_error(shape):
    with pytest.raises(ShapeMismatchError, match="not latents"):
        sampled(latent=torch.zeros(shape))


def test_a_conditioning_of_another_family_is_an_error():
    with pytest.raises(LoraError, match=r"another family(?s:.)*Expected: 6 (?s:.)*Got: 8"):
        sampled(positive=conditioning(0.3, width=8))
    with pytest.raises(LoraError, match=r"another family(?s:.)*pooled"):
        sampled(a_part(family="sdxl"))


def test_a_unet_with_unknown_input_channels_is_an_error():
    with pytest.raises(LoraError, match=r"unknown kind(?s:.)*Got: 8"):
        sampled(a_part(channels=8))


def test_without_torchsde_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", None)
    with pytest.raises(LoraError, match=r"needs torchsde(?s:.)*headless"):
        sampled(sampler="dpmpp_2m_sde")
    assert sampled(sampler="dpmpp_2m").isfinite().all()
