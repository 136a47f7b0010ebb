"""Models that the trainer refuses, before anything of them is loaded or changed."""

import pytest
import torch

from .flow_checkpoint import flux_model
from .training_runs import Runs, loaded_checkpoint

pytestmark = [
    pytest.mark.comfyui("0.30", "the trainer is written for 0.30"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture
def runs(comfy, sd3, tmp_path):
    return Runs(comfy, sd3, tmp_path)


@pytest.fixture
def refused(runs):
    """The message for other parts than SD3's own."""

    def told(**parts):
        with pytest.raises(runs.pack.errors.LoraError) as caught:
            runs.with_parts(**parts).trainable()
        assert "Fix: " in str(caught.value)
        return str(caught.value)

    return told


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("Wan21", "Dimensions: 3, pictures have 2"),
        ("StableAudio1", "Dimensions: 1, pictures have 2"),
        ("Flux2", "Pixels in a latent: 16, 8 are trained"),
        ("HunyuanImage21", "Pixels in a latent: 32, 8 are trained"),
        ("ChromaRadiance", "Pixels in a latent: 1, 8 are trained"),
    ],
)
def test_other_latents_than_those_of_pictures(runs, refused, monkeypatch, name, facts):
    from comfy import latent_formats

    monkeypatch.setattr(runs.model.model, "latent_format", getattr(latent_formats, name)())
    assert facts in refused()


def test_the_autoencoder_of_another_model(comfy, refused, slim_checkpoint):
    *_, vae = loaded_checkpoint(slim_checkpoint)
    assert "The VAE's latents: 4 channels" in refused(vae=vae)


@pytest.mark.parametrize(("name", "value"), [("downscale_ratio", 16), ("latent_dim", 3)])
def test_an_autoencoder_of_other_latents(runs, refused, monkeypatch, name, value):
    monkeypatch.setattr(runs.vae, name, value)
    assert "The VAE is not this model's" in refused()


def test_parts_that_a_checkpoint_does_not_hold(comfy, refused):
    from comfy.sd import VAE

    assert "Missing: CLIP" in refused(clip=None)
    assert "Missing: CLIP and VAE" in refused(clip=None, vae=None)
    assert "Missing: VAE" in refused(vae=VAE(sd={}))


@pytest.mark.parametrize(("channels", "more"), [(32, 16), (96, 80)])
def test_flux_that_reads_a_second_picture(comfy, refused, channels, more):
    """Depth and edges; fill, whose mask has a channel for each of 8 x 8 pixels."""
    message = refused(model=flux_model(channels))
    assert f"Channels beside the latents: {more}" in message


def test_inpainting_of_the_first_models(comfy, refused, slim_checkpoint):
    model, _, vae = loaded_checkpoint(slim_checkpoint)
    model.model.set_inpaint()
    assert "Channels beside the latents: 5" in refused(model=model, vae=vae)


def test_samplings_of_another_rule(comfy, runs, refused):
    """ComfyUI: LCM is a kind of EPS, and the last two are kinds of CONST."""
    from comfy import model_sampling as known
    from comfy_extras.nodes_model_advanced import LCM

    class NoisierFlow(known.ModelSamplingDiscreteFlow, known.CONST):
        noise_scale = property(lambda _: 8.0, lambda *_: None)

    class PictureToPicture(known.ModelSamplingDiscreteFlow, known.IMG_TO_IMG_FLOW):
        pass

    class Distilled(known.ModelSamplingDiscrete, LCM):
        pass

    for kind in (NoisierFlow, PictureToPicture, Distilled):
        model = runs.model.clone()
        model.add_object_patch("model_sampling", kind())
        assert f"Its sampling: {kind.__bases__[0].__name__}" in refused(model=model)


def test_captions_of_different_lengths_in_one_batch(runs):
    """SD3's text is never repeated to one length, as CLIP's for a UNet is."""
    model, size = runs.trainable(), runs.pack.trainable.PictureSize((64, 64), (0, 0), (64, 64))
    with torch.no_grad():
        texts = model.encode_captions(["a dot", "dots, " * 60])
    assert texts[0]["cond"].shape != texts[1]["cond"].shape
    with pytest.raises(runs.pack.errors.LoraError, match=r"run.batch_size = 1"):
        model.conditions(texts, [size, size])
    assert model.conditions(texts[1:], [size])["c_crossattn"].shape == texts[1]["cond"].shape
