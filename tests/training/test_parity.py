"""The loop against a plain one of PEFT and diffusers: the same losses, the same gradients."""

import pytest
import torch

from lora_workbench.training.config import AdapterConfig, ObjectiveConfig, OptimizerConfig

from ..headless.tiny_pipeline import tiny_unet
from .plain_loop import plain_losses
from .runs import ListFeed, run, short_run, tiny_trainable, values_of

STEPS = 50
TARGETS = ("attn",)
METHODS = {
    "lora": (AdapterConfig(rank=4, alpha=8, targets=("attn",)), {}),
    "rslora": (
        AdapterConfig(rank=4, alpha=8, rslora=True, targets=("attn",)),
        {"use_rslora": True},
    ),
    "dora": (AdapterConfig(rank=4, method="dora", targets=("attn",)), {"use_dora": True}),
}


def peft_unet(start, config, options):
    """The tiny UNet with PEFT's factors as they start, and those of its parameters that move."""
    from peft import LoraConfig, inject_adapter_in_model

    unet, targets = tiny_unet(), tiny_trainable().weights["unet"]
    settings = LoraConfig(
        r=config.adapter.rank,
        lora_alpha=config.adapter.alpha or config.adapter.rank,
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        **options,
    )
    inject_adapter_in_model(settings, unet)
    with torch.no_grad():
        for name, module in unet.named_modules():
            if hasattr(module, "lora_A"):
                module.lora_A["default"].weight.copy_(start[f"{targets[name].canonical}.down"])
    return unet, [parameter for parameter in unet.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_of_a_plain_loop(method, tmp_path):
    adapter, options = METHODS[method]
    config = short_run(adapter, OptimizerConfig(rate=2e-3), steps=STEPS)
    start, _ = run(short_run(adapter, steps=1), tmp_path / "start", watcher=StopAtOnce())
    _, losses = run(config, tmp_path / "run")
    wanted = plain_losses(*peft_unet(start, config, options), config, ListFeed(), STEPS)
    assert losses == pytest.approx(wanted, abs=1e-5)
    assert losses != pytest.approx([losses[0]] * STEPS, abs=1e-3)


class StopAtOnce:
    """Ends a run before its first step."""

    def wish(self):
        return "keep"

    def noted(self, text):
        pytest.fail(text)


def test_gradients_are_the_closed_forms():
    """dL/dA = s B^T G x^T and dL/dB = s G (A x)^T, in float64."""
    from lora_workbench.training.dropout import Draws
    from lora_workbench.training.injection import injected
    from lora_workbench.training.targets import choose_targets

    model = tiny_trainable()
    adapter = AdapterConfig(rank=3, alpha=6, targets=("attn2 & q",))
    targets = choose_targets(model.parts, model.weights, adapter)
    with injected(model.parts, targets, adapter, 0, Draws(0)) as factors:
        for each in factors:
            torch.nn.init.normal_(each.up, generator=torch.Generator().manual_seed(1))
        layer = factors[0].layer.double()
        x = torch.randn(5, layer.in_features, dtype=torch.float64)
        g = torch.randn(5, layer.out_features, dtype=torch.float64)
        (layer(x) * g).sum().backward()
        down, up, scale = factors[0].down, factors[0].up, 6 / 3
        torch.testing.assert_close(down.grad, scale * up.T @ g.T @ x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(up.grad, scale * g.T @ (x @ down.T), rtol=1e-12, atol=1e-12)
    assert values_of(factors)  # the factors outlive the injection


def test_the_objective_is_that_of_diffusers_schedule():
    """Noisy latents and velocity against DDPMScheduler; SNR against compute_snr."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    levels = tiny_trainable(prediction="v_prediction").levels
    times = torch.tensor([0, 1, 500, 999])
    latents, noise = torch.randn(2, 4, 4, 8, 8).unbind()
    torch.testing.assert_close(
        levels.mixed(latents, noise, times), schedule.add_noise(latents, noise, times)
    )
    torch.testing.assert_close(
        levels.wanted(latents, noise, times), schedule.get_velocity(latents, noise, times)
    )
    torch.testing.assert_close(
        levels.snr[times].float(), compute_snr(schedule, times), rtol=1e-4, atol=1e-6
    )
    assert ObjectiveConfig().min_snr_gamma == 0
