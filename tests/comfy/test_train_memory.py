"""Training where ComfyUI moves models: pushed out by the text encoders, or streamed by layers."""

import importlib

import pytest
import torch

from .training_runs import Listener, Runs, loaded_checkpoint

pytestmark = [
    pytest.mark.comfyui("0.30", "the trainer is written for 0.30"),
    pytest.mark.usefixtures("one_thread"),
]

ADAPTER = {"targets": ("attn", "ff")}


@pytest.fixture
def runs(comfy, sd3, tmp_path):
    return Runs(comfy, sd3, tmp_path)


def is_loaded(patcher):
    from comfy import model_management

    return any(each.model is patcher for each in model_management.current_loaded_models)


@pytest.mark.parametrize("text", [(), ("te",)], ids=["frozen", "trained"])
def test_a_model_that_the_text_encoders_push_out_comes_back(runs, monkeypatch, text):
    """As on a card that holds one of both."""
    from comfy import model_management

    pushed, plain = [], Listener()
    adapter = {**ADAPTER, "text_encoder": text}
    config = runs.config(steps=2, adapter=adapter)
    runs.train(config, plain, name="plain")
    load = type(runs.clip).load_model

    def load_alone(clip, *args, **kwargs):
        found = load(clip, *args, **kwargs)
        model_management.free_memory(1e30, torch.device("cpu"), keep_loaded=[kept(clip)])
        pushed.append(not is_loaded(runs.model))
        return found

    def kept(clip):
        return next(e for e in model_management.current_loaded_models if e.model is clip.patcher)

    monkeypatch.setattr(type(runs.clip), "load_model", load_alone)
    model = runs.trainable()
    with model.loaded():
        model.encode_captions(["a dot", "a line"])
        assert is_loaded(runs.model)
    assert pushed == [True, True]
    watcher = Listener()
    runs.train(config, watcher, name="pushed")
    assert watcher.losses == plain.losses


@pytest.fixture
def dynamic(comfy, sd3_checkpoint, monkeypatch):
    """SD3 with ComfyUI's own dynamic patchers, which it makes on graphics cards alone."""
    import comfy_aimdo.control
    import comfy_aimdo.host_buffer
    from comfy import model_patcher

    class DynamicHere(model_patcher.ModelPatcherDynamic):
        def __new__(cls, *args, **kwargs):
            return object.__new__(cls)

        def partially_unload(self, *args, **kwargs):  # theirs asserts that there is a card
            return self.restore_loaded_backups()

    if not comfy_aimdo.control.init("cuda"):
        pytest.skip("the library of dynamic memory does not load here")
    importlib.reload(comfy_aimdo.host_buffer)  # it looked for the library before it was there
    monkeypatch.setattr(model_patcher, "CoreModelPatcher", DynamicHere)
    loaded = loaded_checkpoint(sd3_checkpoint)
    monkeypatch.undo()
    assert loaded[0].is_dynamic()
    assert loaded[1].patcher.is_dynamic()
    return loaded


def answer(runs):
    """Of the MODEL itself, as a sampler asks it."""
    from comfy import model_management

    with torch.inference_mode():
        text = runs.clip.encode_from_tokens(runs.clip.tokenize("a dot"), return_dict=True)
        model_management.load_models_gpu([runs.model])
        noisy = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
        told = {"c_crossattn": text["cond"], "y": text["pooled_output"]}
        return runs.model.model.apply_model(noisy, torch.tensor([0.5]), **told)


def bits(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def test_a_model_that_is_streamed_is_trained_as_a_whole_copy(comfy, runs, dynamic, tmp_path):
    """The original is still streamed, with the same bits."""
    streamed = runs.with_parts(model=dynamic[0], clip=dynamic[1], vae=dynamic[2])
    before, shown = bits(dynamic[0].model), answer(streamed)
    parts = streamed.trainable().parts
    assert parts["unet"] is not dynamic[0].model
    assert parts["te1"] is not dynamic[1].cond_stage_model.clip_l
    theirs, ours = Listener(), Listener()
    config = runs.config(steps=2, adapter=ADAPTER)
    runs.train(config, theirs, name="plain")
    streamed.train(config, ours, name="streamed")
    assert ours.losses == theirs.losses
    assert dynamic[0].is_dynamic()
    assert torch.equal(answer(streamed), shown)
    assert torch.equal(answer(runs), shown)
    after = bits(dynamic[0].model)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_a_streamed_model_of_a_loader_that_cannot_load_it_again(comfy, runs, dynamic):
    streamed = runs.with_parts(model=dynamic[0], clip=dynamic[1], vae=dynamic[2])
    dynamic[0].cached_patcher_init = None
    with pytest.raises(runs.pack.errors.LoraError, match="cannot be loaded as a whole"):
        streamed.trainable()
