"""The embedded host's sampling against ComfyUI's own, on a small UNet that both call."""

from types import SimpleNamespace

import pytest
import torch

from lora_workbench.hosts.embedded.parts import DiffusionPart
from lora_workbench.hosts.embedded.sampling import (
    SAMPLERS,
    SCHEDULERS,
    sample,
    sigmas_for,
    starting_noise,
)
from lora_workbench.hosts.embedded.sampling.schedule import scaled_linear_schedule

pytestmark = pytest.mark.comfyui("0.30", "the embedded host does what 0.30 does")

SEED = 2**63 + 11  # ComfyUI's seeds have 64 bits
WIDTH, POOLED = 6, 5
SIZE = (2, 4, 8, 11)  # batch, channels, height, width
STEPS = 20
EPSILON, VELOCITY = "epsilon", "v_prediction"


class TinyUNet(torch.nn.Module):
    """Depends on everything a UNet is told; ``forward`` is called as ComfyUI calls its own."""

    dtype = torch.float32

    def __init__(self, channels=4, extra=0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weight(*shape, size=1.0):
            fan_in = torch.Size(shape[1:]).numel()
            values = torch.randn(shape, generator=generator) * size / fan_in**0.5
            return torch.nn.Parameter(values, requires_grad=False)

        self.first = weight(16, channels, 3, 3)
        self.context = weight(16, WIDTH)
        self.time = weight(16, 8)
        self.extra = weight(16, extra) if extra else None
        self.last = weight(4, 16, 3, 3)

    def forward(self, x, timesteps, context, y=None, **options):
        angles = timesteps[:, None] * 10.0 ** -torch.arange(8)
        told = angles.sin() @ self.time.T + context.mean(dim=1) @ self.context.T
        if self.extra is not None:
            told = told + y @ self.extra.T
        hidden = torch.nn.functional.conv2d(x, self.first, padding=1) + told[:, :, None, None]
        return torch.nn.functional.conv2d(hidden.tanh(), self.last, padding=1)


class AsDiffusers(torch.nn.Module):
    """The same UNet, called as diffusers' are: SDXL's sizes come as numbers."""

    def __init__(self, unet, channels, embed_sizes):
        super().__init__()
        self.unet, self.embed_sizes = unet, embed_sizes
        self.config = SimpleNamespace(in_channels=channels, cross_attention_dim=WIDTH)

    def forward(self, x, timestep, encoder_hidden_states, added_cond_kwargs, return_dict):
        assert not return_dict
        y = None
        if added_cond_kwargs is not None:
            sizes = added_cond_kwargs["time_ids"]
            embedded = self.embed_sizes(sizes.flatten()).reshape(len(sizes), -1)
            y = torch.cat([added_cond_kwargs["text_embeds"], embedded], dim=1)
        return (self.unet(x, timestep, encoder_hidden_states, y),)


class Pair:
    """A model in ComfyUI and in the embedded host, and what both sample with."""

    def __init__(self, family="sd15", prediction=EPSILON, channels=4):
        from comfy import model_base, supported_models
        from comfy.model_patcher import ModelPatcher

        kinds = {
            "sd15": (supported_models.SD15, model_base.BaseModel, 0),
            "sdxl": (supported_models.SDXL, model_base.SDXL, POOLED + 6 * 256),
            "sdxl-refiner": (
                supported_models.SDXLRefiner,
                model_base.SDXLRefiner,
                POOLED + 5 * 256,
            ),
        }
        config_class, model_class, extra = kinds[family]
        types = {EPSILON: model_base.ModelType.EPS, VELOCITY: model_base.ModelType.V_PREDICTION}
        unet = TinyUNet(channels, extra)
        config = config_class({"disable_unet_model_creation": True, "in_channels": channels})
        model = model_class(config, model_type=types[prediction])
        model.diffusion_model = unet
        if channels == 9:
            model.set_inpaint()
        cpu = torch.device("cpu")
        self.comfy = ModelPatcher(model, load_device=cpu, offload_device=cpu)
        embed = getattr(model, "embedder", None)
        scale = config.latent_format.scale_factor
        ours = AsDiffusers(unet, channels, embed)
        self.part = DiffusionPart(ours, family, prediction, scale, {})
        self.family = family

    def both(self, sampler, scheduler, latent=None, cfg=4.0, steps=STEPS, tokens=(3, 3), **options):
        """Latents by ComfyUI's KSampler and by ours."""
        import comfy.sample

        latent = torch.zeros(SIZE) if latent is None else latent
        positive, negative = (self.conditioning(n, count) for n, count in enumerate(tokens))
        indices = options.pop("batch_index", None)
        theirs = comfy.sample.sample(
            self.comfy,
            comfy.sample.prepare_noise(latent, SEED, indices),
            steps,
            cfg,
            sampler,
            scheduler,
            [[positive.states, {"pooled_output": positive.pooled}]],
            [[negative.states, {"pooled_output": negative.pooled}]],
            latent.clone(),
            seed=SEED,
            disable_pbar=True,
            **options,
        )
        ours = sample(
            self.part,
            positive,
            negative,
            latent,
            SEED,
            steps,
            cfg,
            sampler,
            scheduler,
            batch_index=indices,
            **options,
        )
        return theirs, ours

    def conditioning(self, seed, tokens):
        generator = torch.Generator().manual_seed(seed)
        states = torch.randn(1, tokens, WIDTH, generator=generator)
        pooled = torch.randn(1, POOLED, generator=generator)
        return SimpleNamespace(states=states, pooled=None if self.family == "sd15" else pooled)


def assert_same(theirs, ours, relative=1e-5):
    assert theirs.shape == ours.shape
    assert theirs.isfinite().all()
    assert (theirs - ours).norm() <= relative * theirs.norm()


@pytest.fixture(autouse=True)
def one_thread(threads):
    """On tensors this small threads only wait for each other."""
    threads(1)


@pytest.fixture(scope="module")
def model_sampling(comfy):
    from comfy import model_base, supported_models

    return model_base.model_sampling(supported_models.SD15({}), model_base.ModelType.EPS)


@pytest.fixture(scope="module")
def epsilon(comfy):
    return Pair()


@pytest.fixture(scope="module")
def velocity(comfy):
    return Pair(prediction=VELOCITY)


def a_picture():
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(5)) * 4


def comfy_sigmas(model_sampling, sampler, scheduler, steps, denoise):
    from comfy.samplers import KSampler

    holder = SimpleNamespace(get_model_object=lambda name: model_sampling)
    return KSampler(holder, steps, "cpu", sampler, scheduler, denoise).sigmas


def test_the_schedule_is_comfyuis_bit_for_bit(model_sampling):
    ours = scaled_linear_schedule()
    assert torch.equal(ours.sigmas, model_sampling.sigmas)
    assert torch.equal(ours.log_sigmas, model_sampling.log_sigmas)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", ["euler", "dpm_2"])
def test_sigmas_are_comfyuis_bit_for_bit(model_sampling, sampler, scheduler):
    schedule, drop = scaled_linear_schedule(), SAMPLERS[sampler].drop_penultimate
    for steps in (1, 2, 3, 7, 20, 33, 300):
        for denoise in (1.0, 0.99995, 0.9999, 0.75, 0.31, 0.0):
            wanted = comfy_sigmas(model_sampling, sampler, scheduler, steps, denoise)
            got = sigmas_for(schedule, scheduler, steps, denoise, drop)
            assert torch.equal(got, wanted), (steps, denoise)


def test_the_samplers_that_leave_a_level_out_are_comfyuis(comfy):
    from comfy.samplers import KSampler

    ours = {name for name, sampler in SAMPLERS.items() if sampler.drop_penultimate}
    assert ours == KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS & set(SAMPLERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_timesteps_are_comfyuis(model_sampling, scheduler):
    schedule = scaled_linear_schedule()
    for steps in range(1, 60):
        sigmas = sigmas_for(schedule, scheduler, steps)[:-1]
        wanted = [model_sampling.timestep(sigma * torch.ones(2)) for sigma in sigmas]
        got = [schedule.timestep(sigma) for sigma in sigmas]
        assert [int(t) for t in got] == [int(t[0]) for t in wanted]
        assert torch.equal(schedule.timestep(sigmas), torch.stack(got))


@pytest.mark.parametrize("indices", [None, [0, 1], [3, 1, 3, 0]])
def test_starting_noise_is_comfyuis_bit_for_bit(comfy, indices):
    from comfy.sample import prepare_noise

    latent = torch.zeros(len(indices) if indices else 3, 4, 5, 7)
    for seed in (0, 7, SEED, 2**64 - 1):
        wanted = prepare_noise(latent, seed, indices)
        assert torch.equal(starting_noise(latent.shape, seed, indices), wanted)


@pytest.mark.parametrize("prediction", [EPSILON, VELOCITY])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_are_comfyuis(request, sampler, scheduler, prediction):
    pair = request.getfixturevalue("epsilon" if prediction == EPSILON else "velocity")
    assert_same(*pair.both(sampler, scheduler))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_of_a_partial_run_are_comfyuis(epsilon, sampler, scheduler):
    assert_same(*epsilon.both(sampler, scheduler, a_picture(), steps=6, denoise=0.55))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_of_the_shortest_runs_are_comfyuis(epsilon, sampler, steps):
    assert_same(*epsilon.both(sampler, "normal", steps=steps))


def test_no_denoising_gives_the_latents_back(epsilon):
    theirs, ours = epsilon.both("euler", "normal", a_picture(), denoise=0.0)
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("cfg", [0.0, 1.0, 1.3, 30.0])
def test_guidance_is_comfyuis(velocity, cfg):
    assert_same(*velocity.both("dpmpp_2m", "karras", cfg=cfg))


@pytest.mark.parametrize("tokens", [(6, 3), (2, 3), (3, 15), (3, 14)])
def test_prompts_of_unlike_lengths_are_guided_as_in_comfyui(epsilon, tokens):
    """(3, 14) is too uneven for one batch."""
    assert_same(*epsilon.both("euler", "normal", tokens=tokens))


@pytest.mark.parametrize("family", ["sdxl", "sdxl-refiner"])
def test_sizes_and_pooled_texts_reach_the_unet_as_in_comfyui(comfy, family):
    assert_same(*Pair(family).both("dpmpp_2m", "karras", cfg=6.0))


@pytest.mark.parametrize("masked", [False, True])
def test_an_inpainting_unet_sees_what_it_does_in_comfyui(comfy, masked):
    options = {"noise_mask": half_mask()} if masked else {}
    assert_same(*Pair(channels=9).both("euler", "normal", a_picture(), denoise=0.8, **options))


def half_mask():
    """Soft, in pixels, with edges amid latents; one for the whole batch."""
    mask = torch.zeros(1, 8 * SIZE[2], 8 * SIZE[3])
    mask[:, :, 36:] = 1.0
    mask[:, :, 28:36] = 0.3
    return mask


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_keeps_what_it_does_in_comfyui(epsilon, sampler):
    theirs, ours = epsilon.both(sampler, "normal", a_picture(), steps=5, noise_mask=half_mask())
    assert_same(theirs, ours)


def test_latents_taken_out_of_a_batch_get_its_noise_as_in_comfyui(epsilon):
    assert_same(*epsilon.both("euler", "normal", batch_index=[2, 0]))


@pytest.mark.parametrize("sampler", ["heun", "lcm"])
def test_steps_are_reported_as_in_comfyui(epsilon, sampler):
    heard = []
    epsilon.both(sampler, "normal", steps=4, callback=lambda *event: heard.append(event))
    theirs, ours = heard[:4], heard[4:]
    assert [(step, total) for step, _, _, total in theirs] == [(n, 4) for n in range(4)]
    for (step, x0, x, total), (our_step, our_x0, our_x, our_total) in zip(
        theirs, ours, strict=True
    ):
        assert (our_step, our_total) == (step, total)
        assert_same(x0, our_x0)
        assert_same(x, our_x)
