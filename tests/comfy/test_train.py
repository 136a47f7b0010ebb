"""Training on ComfyUI's model in memory: it learns, its file fits, and the base is left alone."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from .training_runs import (
    Listener,
    Runs,
    loaded_checkpoint,
    same_state,
    state_of,
    training_modules,
)

pytestmark = [
    pytest.mark.comfyui("0.30", "the trainer is written for 0.30"),
    pytest.mark.usefixtures("one_thread"),
]

TEXT = {"text_encoder": ("te",)}
LYCORIS = (
    {"method": "loha", "dropout": 0.3, "targets": ("attn", "conv"), **TEXT},
    {"method": "lokr", "factor": 4, "targets": ("attn", "conv"), **TEXT},
    {"method": "oft", "targets": ("attn", "proj", "ff"), **TEXT},
)


@pytest.fixture(scope="module")
def loaded(comfy, slim_checkpoint):
    return loaded_checkpoint(slim_checkpoint)


@pytest.fixture
def runs(comfy, loaded, tmp_path):
    return Runs(comfy, loaded, tmp_path)


def tensors(outcome):
    """The content of a run's file."""
    return load_file(outcome.path)


def kept_megabytes(watcher):
    """Activations kept for the backward pass, as the run measured them."""
    (note,) = watcher.notes
    return float(re.search(r"kept activations: ([\d.]+) MB", note)[1])


def same_tensors(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[key]) for key, tensor in ours.items()
    )


@pytest.mark.parametrize(
    "adapter",
    [{}, TEXT, {"start": "pissa"}, {"method": "dora"}, {"dropout": 0.3, **TEXT}, *LYCORIS],
    ids=["plain", "text", "pissa", "dora", "dropout", "loha", "lokr", "oft"],
)
def test_a_run_learns_and_leaves_the_base_as_it_was(runs, adapter):
    before = state_of(runs.parts)
    watcher = Listener()
    outcome = runs.train(runs.config(steps=2, adapter=adapter), watcher)
    assert same_state(before, state_of(runs.parts)) == []
    assert not hasattr(runs.model.model, "peft_config")
    assert all(map(math.isfinite, watcher.losses))
    assert (outcome.steps, outcome.new_steps, outcome.is_complete) == (2, 2, True)
    found = {key: value for key, value in tensors(outcome).items() if not key.endswith(".alpha")}
    assert all(tensor.abs().max() > 0 for tensor in found.values())
    assert any(key.startswith("lora_te_") for key in found) == ("text_encoder" in adapter)
    assert not any("text_projection" in key for key in found)


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("interrupt", {"start": "pissa"}),
        ("error", {"start": "pissa"}),
        ("interrupt", {"method": "oft", "targets": ("attn",), **TEXT}),
    ],
    ids=["interrupt", "error", "oft"],
)
def test_a_run_that_is_broken_off_leaves_the_base_and_goes_on(runs, kind, adapter):
    from comfy.model_management import InterruptProcessingException

    raised = {"interrupt": InterruptProcessingException, "error": RuntimeError}[kind]
    before, config = state_of(runs.parts), runs.config(steps=4, adapter=adapter)
    with pytest.raises(raised):
        runs.train(config, Listener(raises=raised(), raise_after=3))
    assert same_state(before, state_of(runs.parts)) == []
    rest = runs.train(config)
    assert (rest.steps, rest.new_steps, rest.is_complete) == (4, 1, True)
    whole = runs.train(config, name="whole")
    assert whole.new_steps == 4
    assert same_tensors(tensors(rest), tensors(whole))


def test_comfyui_knows_when_gradients_are_needed(runs):
    """Flux and others compute with fast kernels without gradients otherwise."""
    from comfy import model_management

    seen, watcher = [], Listener(raises=RuntimeError(), raise_after=1)
    watcher.noted = lambda _: seen.append(model_management.in_training)
    with pytest.raises(RuntimeError):
        runs.train(runs.config(steps=2), watcher)
    assert seen == [True]
    assert not model_management.in_training


def test_a_diverged_run_leaves_the_base(runs):
    before = state_of(runs.parts)
    with pytest.raises(runs.pack.errors.LoraError, match="The loss is no number"):
        runs.train(runs.config(steps=9, optimizer={"rate": 1e30, "clip_norm": 0.0}))
    assert same_state(before, state_of(runs.parts)) == []


def test_a_run_after_another_is_as_if_alone(runs):
    second = runs.config(steps=2, adapter={"rank": 2, "targets": ("attn",)})
    alone = runs.train(second, name="alone")
    runs.train(runs.config(steps=2, adapter={"method": "dora", **TEXT}), name="first")
    after = runs.train(second, name="after")
    assert after.new_steps == alone.new_steps == 2
    assert same_tensors(tensors(after), tensors(alone))


def test_a_finished_run_is_known_on_the_checkpoint_loaded_anew(
    runs, comfy, slim_checkpoint, tmp_path
):
    first = runs.train(runs.config(steps=2))
    anew = Runs(comfy, loaded_checkpoint(slim_checkpoint), tmp_path)
    assert anew.train(anew.config(steps=2)).new_steps == 0
    assert first.steps == 2


def test_weights_that_carry_a_lora_of_an_earlier_picture_are_the_base_all_the_same(runs):
    from comfy import model_management

    first = runs.train(runs.config(steps=2))
    with torch.inference_mode():
        item = runs.stack_item(first.lora, 1.0)
        found = runs.host.apply(runs.model, runs.clip, [item], "error", "auto")
        model_management.load_models_gpu([found.model, found.clip.patcher])
    assert runs.model.model.current_weight_patches_uuid == found.model.patches_uuid
    again = runs.train(runs.config(steps=2))
    assert again.new_steps == 0


def test_a_model_with_loras_is_refused(runs):
    first = runs.train(runs.config(steps=1))
    for mode in ("auto", "runtime"):
        with torch.inference_mode():
            item = runs.stack_item(first.lora, 1.0)
            found = runs.host.apply(runs.model, runs.clip, [item], "error", mode)
        other = Runs.__new__(Runs)
        other.__dict__.update(vars(runs), model=found.model)
        with pytest.raises(runs.pack.errors.LoraError, match="are on this model"):
            other.trainable()


@pytest.mark.parametrize("depth", [1, 2])
def test_blocks_computed_twice_give_the_same_file(runs, depth):
    adapter = {"dropout": 0.3}
    one, two = Listener(), Listener()
    plain = runs.train(runs.config(steps=2, adapter=adapter), one)
    twice = runs.train(runs.config(steps=2, adapter=adapter, gradient_checkpointing=depth), two)
    assert same_tensors(tensors(twice), tensors(plain))
    assert kept_megabytes(two) < 0.7 * kept_megabytes(one)


def test_previews_show_the_lora_and_change_no_bit(runs):
    before = state_of(runs.parts)
    preview = {"every": 2, "prompts": ("a dot",), "steps": 2, "size": (64, 64)}
    config = runs.config(steps=3, adapter=TEXT, optimizer={"rate": 3e-2}, preview=preview)
    watcher = Listener()
    shown = runs.train(config, watcher, name="shown")
    plain = runs.train(runs.config(steps=3, adapter=TEXT, optimizer={"rate": 3e-2}), name="plain")
    ((step, prompt, picture),) = watcher.pictures
    assert (step, prompt, tuple(picture.shape)) == (2, "a dot", (64, 64, 3))
    assert same_tensors(tensors(shown), tensors(plain))
    assert same_state(before, state_of(runs.parts)) == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_stays_near(runs, precision):
    exact, near = Listener(), Listener()
    runs.train(runs.config(steps=2), exact)
    runs.train(runs.config(steps=2, precision=precision), near)
    assert near.losses == pytest.approx(exact.losses, rel=0.02)
    assert near.losses != exact.losses


@pytest.mark.parametrize("start", ["usual", "pissa"])
def test_a_base_in_half_precision_is_trained_and_kept(
    comfy, slim_checkpoint, tmp_path, monkeypatch, start
):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "bf16_unet", True)
    runs = Runs(comfy, loaded_checkpoint(slim_checkpoint), tmp_path)
    assert next(runs.model.model.parameters()).dtype == torch.bfloat16
    before, watcher = state_of(runs.parts), Listener()
    adapter = {**TEXT, **({"start": start} if start == "pissa" else {})}
    outcome = runs.train(runs.config(steps=3, adapter=adapter), watcher)
    assert outcome.is_complete
    assert all(map(math.isfinite, watcher.losses))
    assert same_state(before, state_of(runs.parts)) == []


@pytest.mark.parametrize("method", ["lora", "loha", "lokr", "oft"])
@pytest.mark.parametrize("program", ["core", "ours"])
def test_the_file_computes_what_the_trainer_computed(runs, comfy, method, program):
    from comfy import model_management

    import nodes

    adapter = {"method": method, "rank": 2, "targets": ("unet",)}
    pack, config, model = runs.pack, runs.config(adapter=adapter), runs.trainable()
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times, size = torch.tensor([400]), pack.trainable.PictureSize((64, 64), (0, 0), (64, 64))
    targets = pack.targets.choose_targets(model.parts, model.weights, config.adapter)
    path = comfy.loras_dir / "trained.safetensors"
    numbers = torch.Generator().manual_seed(2)
    with torch.no_grad(), model.loaded():
        conditions = model.conditions(model.encode_captions(["a dot"]), [size])
        base = model.predict(noisy, times, conditions)
        draws = pack.dropout.Draws(0)
        with pack.injection.injected(model.parts, targets, config.adapter, 0, draws) as factors:
            for parameter in (p for each in factors for p in each.parameters.values()):
                parameter += torch.randn(parameter.shape, generator=numbers) * 0.02
            trained = model.predict(noisy, times, conditions)
            modules = [each.learnt() for each in factors]
            pack.export.export(modules, model.table, path, "kohya", "fp32", {}, overwrite=True)
    with torch.inference_mode():
        if program == "core":
            loaded, _ = nodes.LoraLoader().load_lora(runs.model, runs.clip, path.name, 1.0, 0.0)
            assert len(loaded.patches) == len(targets)
        else:
            item = runs.stack_item(pack.lora.load_lora(path), 1.0)
            loaded = runs.host.apply(runs.model, runs.clip, [item], "error", "auto").model
        model_management.load_models_gpu([loaded])
        patched = model.predict(noisy, times, conditions)
    effect = (trained - base).norm()
    assert effect > 0.01 * base.norm()
    assert (patched - trained).norm() < 1e-4 * effect


def test_sdxl_is_told_the_sizes_of_each_picture(comfy):
    """Original, crop and trained size, each height first, after the pooled text."""
    from comfy import latent_formats, model_base
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

    pack = training_modules(comfy)
    sdxl = object.__new__(model_base.SDXL)
    torch.nn.Module.__init__(sdxl)
    sdxl.embedder, sdxl.noise_augmentor, sdxl.concat_keys = Timestep(256), None, ()
    sdxl.latent_format = latent_formats.SDXL()
    model = object.__new__(pack.comfy_trainable.ComfyTrainable)
    model._model, model.device = SimpleNamespace(model=sdxl), torch.device("cpu")
    texts = [{"cond": torch.randn(1, 77, 2048), "pooled_output": torch.randn(1, 1280)}] * 2
    numbers = [(480, 640, 3, 5, 64, 96), (200, 100, 0, 7, 64, 96)]
    sizes = [pack.trainable.PictureSize(n[:2], n[2:4], n[4:]) for n in numbers]
    found = model.conditions(texts, sizes)
    assert found["c_crossattn"].shape == (2, 77, 2048)
    for row, text, told in zip(found["y"], texts, numbers, strict=True):
        wanted = Timestep(256)(torch.tensor(told, dtype=torch.float32)).flatten()
        assert torch.equal(row, torch.cat([text["pooled_output"][0], wanted]))
