"""Samplers and schedulers of the embedded host: laws, worked examples and exact solutions."""

import pytest
import torch

from lora_workbench.hosts.embedded.sampling import SAMPLERS, SCHEDULERS, sigmas_for
from lora_workbench.hosts.embedded.sampling.schedule import scaled_linear_schedule

SHAPE = (2, 4, 3, 5)


def walked(sampler, denoise, x, sigmas, seed=0):
    chosen = SAMPLERS[sampler]
    return chosen.walk(denoise, x, sigmas, chosen.noise(x, sigmas, seed), lambda *event: None)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_denoiser_that_knows_the_picture_is_followed_to_it(sampler, generator):
    picture = torch.randn(SHAPE, generator=generator)
    sigmas = sigmas_for(scaled_linear_schedule(), "karras", 9)
    start = picture + sigmas[0] * torch.randn(SHAPE, generator=generator)
    end = walked(sampler, lambda x, sigma: picture, start, sigmas)
    torch.testing.assert_close(end, picture, atol=1e-5, rtol=0)


def test_euler_worked_example():
    """x0 is always 3: the slope is (7 - 3) / 2 = 2, so x falls from 7 to 5 to 3."""
    seen = []

    def denoise(x, sigma):
        seen.append(float(x))
        return torch.full_like(x, 3.0)

    end = walked("euler", denoise, torch.tensor([7.0]), torch.tensor([2.0, 1.0, 0.0]))
    assert [*seen, float(end)] == [7.0, 5.0, 3.0]


def test_heun_worked_example():
    """x0 = x / 2 from 8 at sigma 2 to 1: slopes 2 and then (6 - 3) / 1 = 3; 8 - 2.5 = 5.5."""
    end = walked("heun", lambda x, sigma: x / 2, torch.tensor([8.0]), torch.tensor([2.0, 1.0]))
    assert float(end) == 5.5


def test_dpm_2_worked_example():
    """x0 = x / 2 from 8 at sigma 4 to 1: slope 1 to the middle 2 gives 6; slope 1.5 * 3 off 8."""
    end = walked("dpm_2", lambda x, sigma: x / 2, torch.tensor([8.0]), torch.tensor([4.0, 1.0]))
    assert float(end) == pytest.approx(3.5)


def test_dpmpp_2m_worked_example():
    """Halving sigma: 8 -> (8 + 2) / 2 = 5, then x0 = 1 extrapolated to 0.5: (5 + 0.5) / 2."""
    answers = iter([2.0, 1.0])
    end = walked(
        "dpmpp_2m",
        lambda x, sigma: torch.tensor([next(answers)]),
        torch.tensor([8.0]),
        torch.tensor([4.0, 2.0, 1.0]),
    )
    assert float(end) == pytest.approx(2.75)


def exact_error(sampler, steps):
    """For data ~ N(0, 1), x0 = x / (1 + sigma^2), and x(sigma) goes as sqrt(1 + sigma^2)."""
    sigmas = torch.logspace(1, -1, steps + 1, dtype=torch.float64)
    x = torch.ones(1, dtype=torch.float64)
    end = walked(sampler, lambda x, sigma: x / (1 + sigma**2), x, sigmas)
    return float((end / ((1 + sigmas[-1] ** 2) / (1 + sigmas[0] ** 2)).sqrt() - 1).abs())


@pytest.mark.parametrize(
    ("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm_2", 2), ("dpmpp_2m", 2)]
)
def test_the_error_falls_with_the_samplers_order(sampler, order):
    coarse, fine = exact_error(sampler, 80), exact_error(sampler, 160)
    assert fine < 0.02
    assert coarse / fine == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde"])
def test_random_samplers_keep_the_distribution(sampler, generator):
    """Data of variance 1 under noise of 3 has variance 10; under 0.5 it has 1.25."""
    sigmas = torch.logspace(0.4771213, -0.30103, 120)
    x = torch.randn(20_000, generator=generator) * 10**0.5
    end = walked(sampler, lambda x, sigma: x / (1 + sigma**2), x, sigmas)
    assert float(end.var()) == pytest.approx(1.25, rel=0.04)


def test_lcm_keeps_the_distribution(generator):
    """Its denoiser gives a sample of the data, not the mean."""
    sigmas = torch.tensor([3.0, 1.5, 0.5])
    x = torch.randn(20_000, generator=generator) * 10**0.5
    end = walked("lcm", lambda x, sigma: x / (1 + sigma**2).sqrt(), x, sigmas)
    assert float(end.var()) == pytest.approx(1.25, rel=0.04)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_sigmas_fall_from_the_table_to_zero(scheduler):
    schedule = scaled_linear_schedule()
    for steps in (1, 5, 20):
        sigmas = sigmas_for(schedule, scheduler, steps)
        assert len(sigmas) == steps + 1
        assert (sigmas.diff() < 0).all()
        assert sigmas[0] <= schedule.sigma_max * (1 + 1e-6)
        assert sigmas[-1] == 0


@pytest.mark.parametrize(
    ("scheduler", "steps", "timesteps"),
    [
        ("normal", 4, [999, 666, 333, 0]),
        ("sgm_uniform", 3, [999, 666, 333]),
        ("simple", 4, [999, 749, 499, 249]),
        ("simple", 3, [999, 666, 333]),
        ("ddim_uniform", 4, [751, 501, 251, 1]),
        ("ddim_uniform", 3, [667, 334, 1]),
    ],
)
def test_the_timesteps_of_a_run(scheduler, steps, timesteps):
    """1000 / 3 steps of ddim_uniform: 1, 334, 667, and 1000 is outside the table."""
    schedule = scaled_linear_schedule()
    sigmas = sigmas_for(schedule, scheduler, steps)[:-1]
    assert schedule.timestep(sigmas).tolist() == timesteps


@pytest.mark.parametrize(
    ("scheduler", "scale"), [("karras", lambda s: s ** (1 / 7)), ("exponential", torch.log)]
)
def test_the_even_spacing_of_a_run_from_end_to_end_of_the_table(scheduler, scale):
    schedule = scaled_linear_schedule()
    sigmas = sigmas_for(schedule, scheduler, 7)[:-1]
    ends = torch.tensor([schedule.sigma_max, schedule.sigma_min])
    torch.testing.assert_close(sigmas[[0, -1]], ends)
    strides = scale(sigmas.double()).diff()
    torch.testing.assert_close(strides, strides.mean().expand(6), rtol=1e-5, atol=0)


def test_a_sampler_may_leave_out_the_lowest_level():
    schedule = scaled_linear_schedule()
    more = sigmas_for(schedule, "karras", 6)
    wanted = torch.cat([more[:5], more[6:]])
    assert torch.equal(sigmas_for(schedule, "karras", 5, drop_penultimate=True), wanted)


def test_a_partial_run_is_the_end_of_a_longer_one():
    schedule = scaled_linear_schedule()
    longer = sigmas_for(schedule, "karras", 40)
    assert torch.equal(sigmas_for(schedule, "karras", 10, denoise=0.25), longer[-11:])


def test_timestep_and_sigma_are_inverse_on_the_table():
    schedule = scaled_linear_schedule()
    timesteps = torch.arange(1000)
    assert torch.equal(schedule.timestep(schedule.sigma(timesteps)), timesteps)


def test_the_ends_of_the_schedule():
    """Published values of Stable Diffusion: 0.0292 and 14.6146."""
    schedule = scaled_linear_schedule()
    assert schedule.sigma_min == pytest.approx(0.0292, abs=5e-5)
    assert schedule.sigma_max == pytest.approx(14.6146, abs=5e-5)
