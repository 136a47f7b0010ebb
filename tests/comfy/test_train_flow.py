"""Training of flow models in ComfyUI, SD3 and Flux, against ComfyUI's own sampling and files."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from .flow_checkpoint import flux_model
from .training_runs import Listener, Runs, pictures, same_state, state_of

pytestmark = [
    pytest.mark.comfyui("0.30", "the trainer is written for 0.30"),
    pytest.mark.usefixtures("one_thread"),
]

BLOCKS = ("attn", "ff")  # neither model has what the selector "proj" means
SIZE = ((64, 64), (0, 0), (64, 64))


@pytest.fixture(scope="module", params=["sd3", "flux"])
def loaded(request, sd3):
    return sd3 if request.param == "sd3" else (flux_model(), *sd3[1:])


@pytest.fixture
def runs(comfy, loaded, tmp_path):
    return Runs(comfy, loaded, tmp_path)


def asked(model, pack, count=1):
    """Noise, and what the model is told with it."""
    noisy = torch.randn(count, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (text,) = model.encode_captions(["a dot"])
    return noisy, model.conditions([text] * count, [pack.trainable.PictureSize(*SIZE)] * count)


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def test_noise_is_mixed_as_comfyui_does(runs):
    """The table begins with the least noise, and holds the model's own shifted times."""
    sampling, levels = runs.model.get_model_object("model_sampling"), runs.trainable().levels
    table = sampling.sigmas
    assert levels.prediction == "flow"
    assert torch.equal(levels.noise, table.double())
    assert torch.equal(levels.signal, 1 - table.double())
    assert (table.diff() > 0).all()
    assert (table[0] < 0.01, table[-1]) == (True, 1)
    even = torch.arange(1, len(table) + 1) / len(table)
    assert torch.equal(table, sampling.sigma(even * getattr(sampling, "multiplier", 1)))
    assert table[len(table) // 2] > 0.7  # an even time has more noise than its number says

    numbers = torch.Generator().manual_seed(2)
    latents, noise = (torch.randn(3, 16, 8, 8, generator=numbers) for _ in range(2))
    times = torch.tensor([0, len(table) // 3, len(table) - 1])
    theirs = sampling.noise_scaling(table[times], noise, latents)
    torch.testing.assert_close(levels.mixed(latents, noise, times), theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(levels.wanted(latents, noise, times), noise - latents)


def test_the_answer_is_what_the_model_itself_gives(runs):
    """Its raw output; ComfyUI gives the clean latents, of which it is made again."""
    model, seen = runs.trainable(), []
    unet = runs.model.model.diffusion_model
    times = torch.tensor([len(model.levels.noise) // 9, len(model.levels.noise) - 1])
    with torch.no_grad(), model.loaded():
        noisy, conditions = asked(model, runs.pack, 2)
        handle = unet.register_forward_hook(lambda _, told, out: seen.append((*told[:2], out)))
        answer = model.predict(noisy, times, conditions)
        handle.remove()
    ((x, told, raw),) = seen
    sampling = runs.model.get_model_object("model_sampling")
    assert torch.equal(x, noisy)
    assert torch.equal(told, sampling.timestep(sampling.sigmas[times]))
    assert relative(answer, raw) < 1e-6


def test_gradients_are_the_slope_of_the_loss(runs):
    """ComfyUI's Flux adds in place to what its norms have read."""
    pack, model, numbers = runs.pack, runs.trainable(), torch.Generator().manual_seed(3)
    config = runs.config(adapter={"targets": ("unet",)})
    targets = pack.targets.choose_targets(model.parts, model.weights, config.adapter)
    with model.loaded():
        noisy, conditions = asked(model, pack)
        aim = torch.randn(noisy.shape, generator=numbers)

        def loss():
            answer = model.predict(noisy, torch.tensor([400]), conditions)
            return ((answer - aim) ** 2).mean()

        draws = pack.dropout.Draws(0)
        with pack.injection.injected(model.parts, targets, config.adapter, 0, draws) as factors:
            trained = [p for each in factors for p in each.parameters.values()]
            with torch.no_grad():
                for parameter in trained:
                    parameter += torch.randn(parameter.shape, generator=numbers) * 0.02
            gradients = torch.autograd.grad(loss(), trained)
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            step = [g / norm * 0.02 for g in gradients]
            with torch.no_grad():
                values = []
                for sign in (1, -2):
                    for parameter, change in zip(trained, step, strict=True):
                        parameter += sign * change
                    values.append(loss())
    slope = (values[0] - values[1]) / 0.04
    assert slope.item() == pytest.approx(norm.item(), rel=5e-3)


def test_the_loss_of_one_picture_falls_and_the_file_says_what_was_learnt(runs):
    """Against the same draws with hardly a rate; core's loader adds what ours does."""
    from comfy import lora, sd

    runs.dataset = runs.scanned(pictures(runs.folder / "one", count=1))
    before, losses = state_of(runs.parts), {}
    for rate in (1e-9, 3e-3):
        watcher = Listener()
        adapter, optimizer = {"targets": ("unet",)}, {"rate": rate}
        config = runs.config(steps=25, adapter=adapter, optimizer=optimizer)
        outcome = runs.train(config, watcher, name=str(rate))
        losses[rate] = torch.tensor(watcher.losses)
    assert same_state(before, state_of(runs.parts)) == []
    still, moved = losses.values()
    assert moved[0] == still[0]
    assert moved[-8:].mean() < 0.8 * still[-8:].mean()

    tensors = load_file(outcome.path)
    with torch.inference_mode():
        core, _ = sd.load_lora_for_models(runs.model, None, tensors, 1.0, 0.0)
        item = runs.stack_item(runs.pack.lora.load_lora(outcome.path), 1.0)
        ours = runs.host.apply(runs.model, runs.clip, [item], "error", "merge").model
    assert len(core.patches) == len(ours.patches) == len(tensors) / 3
    for key in core.patches:
        zeros = torch.zeros_like(core.model.get_parameter(key))
        mine, theirs = (lora.calculate_weight(p.patches[key], zeros, key) for p in (ours, core))
        assert relative(mine, theirs) < 1e-6


@pytest.mark.parametrize("method", ["lora", "lokr"])
def test_the_file_computes_what_the_trainer_computed(runs, method):
    from comfy import model_management, sd

    pack, model, numbers = runs.pack, runs.trainable(), torch.Generator().manual_seed(2)
    config = runs.config(adapter={"method": method, "rank": 2, "targets": BLOCKS})
    targets = pack.targets.choose_targets(model.parts, model.weights, config.adapter)
    times, path = torch.tensor([400]), runs.folder / "trained.safetensors"
    with torch.no_grad(), model.loaded():
        noisy, conditions = asked(model, pack)
        base = model.predict(noisy, times, conditions)
        draws = pack.dropout.Draws(0)
        with pack.injection.injected(model.parts, targets, config.adapter, 0, draws) as factors:
            for parameter in (p for each in factors for p in each.parameters.values()):
                parameter += torch.randn(parameter.shape, generator=numbers) * 0.1
            trained = model.predict(noisy, times, conditions)
            modules = [each.learnt() for each in factors]
            pack.export.export(modules, model.table, path, "kohya", "fp32", {}, overwrite=True)
    with torch.inference_mode():
        core, _ = sd.load_lora_for_models(runs.model, None, load_file(path), 1.0, 0.0)
        model_management.load_models_gpu([core])
        patched = model.predict(noisy, times, conditions)
    effect = (trained - base).norm()
    assert effect > 0.01 * base.norm()
    assert (patched - trained).norm() < 1e-4 * effect


def test_blocks_computed_twice_give_the_same_file(runs):
    """Flux adds in place to the inputs of its blocks, of which they are computed again."""
    config = runs.config(steps=2, optimizer={"rate": 1e-2})  # with the default targets
    plain = load_file(runs.train(config, name="plain").path)
    config = replace(config, run=replace(config.run, gradient_checkpointing=1))
    twice = load_file(runs.train(config, name="twice").path)
    assert plain.keys() == twice.keys()
    assert all(torch.equal(tensor, twice[key]) for key, tensor in plain.items())


def test_text_encoders_are_trained_and_previews_drawn(comfy, sd3, tmp_path):
    from comfy import sd

    runs = Runs(comfy, sd3, tmp_path)
    before, watcher = state_of(runs.parts), Listener()
    adapter = {"targets": BLOCKS, "text_encoder": ("te",)}
    preview = {"every": 1, "prompts": ("a dot",), "steps": 1, "size": (64, 64)}
    outcome = runs.train(runs.config(steps=1, adapter=adapter, preview=preview), watcher)
    assert tuple(watcher.pictures[0][2].shape) == (64, 64, 3)
    assert same_state(before, state_of(runs.parts)) == []
    tensors = load_file(outcome.path)
    ups = [tensor for key, tensor in tensors.items() if "lora_up" in key]
    assert all(tensor.abs().max() > 0 for tensor in ups)
    with torch.inference_mode():
        model, clip = sd.load_lora_for_models(runs.model, runs.clip, tensors, 1.0, 1.0)
    assert clip.patcher.patches
    assert len(model.patches) + len(clip.patcher.patches) == len(tensors) / 3


def test_a_shift_that_is_set_on_the_model_is_trained_with(runs):
    """As core's ModelSamplingSD3 sets it."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    (shifted,) = ModelSamplingSD3().patch(runs.model, 1.0)
    model = runs.with_parts(model=shifted).trainable()
    even = torch.arange(1, 1001).double() / 1000
    torch.testing.assert_close(model.levels.noise, even, rtol=1e-6, atol=0)
    with torch.no_grad(), model.loaded():
        noisy, conditions = asked(model, runs.pack)
        seen = []
        unet = runs.model.model.diffusion_model
        handle = unet.register_forward_hook(lambda _, told, out: seen.append(told[1]))
        model.predict(noisy, torch.tensor([499]), conditions)
        handle.remove()
    assert seen[0].item() == pytest.approx(500)
