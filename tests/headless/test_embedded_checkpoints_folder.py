"""Folders as diffusers and transformers save them, loaded without a network."""

import json
import re

import pytest
import torch

from lora_workbench.hosts.embedded.checkpoints import load_checkpoint
from lora_workbench.hosts.embedded.parts import Checkpoint, VaePart
from lora_workbench.hosts.embedded.text import encode, tokenizer as tokenizer_module
from lora_workbench.lora_core.errors import DamagedFileError, LoraError, UnsupportedFormatError
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors

from .test_embedded_checkpoints import assert_same_modules, outputs_of
from .tiny_checkpoints import FAMILIES, text_encoder, tiny_checkpoint, tiny_vae

PIPELINES = {
    "sd15": "StableDiffusionPipeline",
    "sd2": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
}
FOLDERS = {"l": "text_encoder", "h": "text_encoder", "g": "text_encoder_2"}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit_json(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


def saved(folder, family, vae=None, **options):
    """Save a tiny checkpoint with the libraries' own functions; returns its parts."""
    checkpoint = tiny_checkpoint(family)
    if vae is not None:
        checkpoint = Checkpoint(checkpoint.diffusion, checkpoint.text, VaePart(vae, 1.0))
    write_json(folder / "model_index.json", {"_class_name": PIPELINES[family]})
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    checkpoint.diffusion.unet.save_pretrained(folder / "unet", **options)
    checkpoint.vae.vae.save_pretrained(folder / "vae", **options)
    for name, encoder in checkpoint.text.encoders.items():
        encoder.save_pretrained(folder / FOLDERS[name], **options)
    return checkpoint


@pytest.fixture
def sd15(tmp_path):
    saved(tmp_path, "sd15")
    return tmp_path


def test_the_tokenizer_beside_the_model_is_a_last_resort(sd15, monkeypatch):
    """Wrong on purpose: the error shows that it was read, and what was not."""
    assert load_checkpoint(sd15).text.tokenizer is None
    write_json(sd15 / "tokenizer" / "vocab.json", {"a</w>": 0})
    loaded = load_checkpoint(sd15)
    monkeypatch.setattr(tokenizer_module, "_packaged", not_installed)
    with pytest.raises(LoraError, match=re.escape(str(sd15 / "tokenizer"))):
        encode(loaded.text, "a fox")


def not_installed():
    raise ImportError


@pytest.mark.parametrize("family", FAMILIES)
def test_what_diffusers_saved_is_loaded_bit_for_bit(family, tmp_path):
    written = saved(tmp_path, family)

    loaded = load_checkpoint(tmp_path)

    assert_same_modules(loaded, written)
    assert loaded.diffusion.family == loaded.text.family == family
    assert loaded.diffusion.prediction == "epsilon"
    assert loaded.diffusion.latent_scale == loaded.vae.latent_scale == written.vae.latent_scale
    ours, theirs = outputs_of(loaded), outputs_of(written)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_shards_and_the_fp16_variant_are_read(tmp_path):
    saved(tmp_path, "sd15", variant="fp16", max_shard_size="100KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    assert_same_modules(load_checkpoint(tmp_path), tiny_checkpoint("sd15"))


def test_full_precision_is_read_before_a_variant(sd15):
    other = sd15 / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    write_safetensors(other, {"x": torch.zeros(1)}, {})
    assert_same_modules(load_checkpoint(sd15), tiny_checkpoint("sd15"))


def test_a_parameter_can_be_read_again_where_files_say(tmp_path):
    saved(tmp_path, "sdxl", max_shard_size="300KB")
    loaded = load_checkpoint(tmp_path)
    parameters = dict(loaded.diffusion.unet.named_parameters())
    assert loaded.diffusion.files.keys() == parameters.keys()
    for name, place in loaded.diffusion.files.items():
        assert torch.equal(open_safetensors(place.path).read(place.key), parameters[name])
    assert len(loaded.text.files) == sum(
        len(list(encoder.parameters())) for encoder in loaded.text.encoders.values()
    )


def test_text_encoder_files_may_have_text_model_in_their_names_or_not(sd15):
    file = sd15 / "text_encoder" / "model.safetensors"
    tensors = open_safetensors(file).read_many(open_safetensors(file).tensors)
    plain = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    for spelling in ("", "text_model."):
        renamed = {spelling + key: value for key, value in plain.items()}
        renamed[f"{spelling}embeddings.position_ids"] = torch.arange(77)
        write_safetensors(file, renamed, {}, overwrite=True)
        assert_same_modules(load_checkpoint(sd15), tiny_checkpoint("sd15"))


def test_a_vae_with_the_attention_names_of_2022_is_read(sd15):
    file = sd15 / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, value in open_safetensors(file).read_many(open_safetensors(file).tensors).items():
        for now, then in old.items():
            key = key.replace(f".{now}.", f".{then}.")
        tensors[key] = value
    assert any(".query." in key for key in tensors)
    write_safetensors(file, tensors, {}, overwrite=True)
    assert_same_modules(load_checkpoint(sd15), tiny_checkpoint("sd15"))


@pytest.mark.parametrize(("factor", "scale"), [(1.0, 0.18215), (0.18215, 1.0)])
def test_taesd_says_how_the_latents_of_nodes_reach_it(factor, scale, tmp_path):
    """Pipelines give it the UNet's latents divided by its factor; nodes have the UNet's / 0.18."""
    written = saved(tmp_path, "sd15", vae=tiny_vae(factor))
    loaded = load_checkpoint(tmp_path)
    assert_same_modules(loaded, written)
    assert loaded.vae.latent_scale == pytest.approx(scale)
    assert loaded.diffusion.latent_scale == 0.18215


def test_the_prediction_is_that_of_the_scheduler(sd15):
    edit_json(sd15 / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert load_checkpoint(sd15).diffusion.prediction == "v_prediction"


def test_what_the_folder_does_not_have_is_none(sd15):
    for name in ("vae", "text_encoder"):
        (sd15 / name).rename(sd15 / f"no {name}")
    loaded = load_checkpoint(sd15)
    assert loaded.text is None and loaded.vae is None
    assert loaded.diffusion.latent_scale == 0.18215


def test_23_layers_are_read_as_they_are(tmp_path):
    """SD2's folders lack the last layer of CLIP-H, which nothing uses."""
    saved(tmp_path, "sd2")
    text_encoder("l", 9, layers=3).save_pretrained(tmp_path / "text_encoder")
    encoder = load_checkpoint(tmp_path).text.encoders["h"]
    assert type(encoder).__name__ == "CLIPTextModel"
    assert encoder.config.num_hidden_layers == 3


def test_no_hub_is_asked(sd15, monkeypatch):
    import socket

    def refuse(*args):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_checkpoint(sd15)


@pytest.mark.parametrize(
    ("file", "changes", "error", "problem"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, UnsupportedFormatError, "Flux"),
        (
            *("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}),
            *(UnsupportedFormatError, "StableDiffusion3"),
        ),
        ("unet/config.json", {"in_channels": 7}, UnsupportedFormatError, "upscaler"),
        ("unet/config.json", {"_class_name": "UNetX"}, UnsupportedFormatError, "UNetX"),
        ("unet/config.json", {"layers_per_block": 2}, LoraError, "not complete"),
        ("unet/config.json", {"cross_attention_dim": 32}, LoraError, "shape does not fit"),
        ("text_encoder/config.json", {"num_hidden_layers": 1}, LoraError, "no part of the model"),
        ("vae/config.json", {"shift_factor": 0.1}, UnsupportedFormatError, "shifts"),
        (
            *("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}),
            *(UnsupportedFormatError, "schedule of its own"),
        ),
        (
            *("scheduler/scheduler_config.json", {"beta_end": 0.02}),
            *(UnsupportedFormatError, "schedule of its own"),
        ),
        (
            *("scheduler/scheduler_config.json", {"prediction_type": "sample"}),
            *(UnsupportedFormatError, "sample"),
        ),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(file, changes, error, problem, sd15):
    edit_json(sd15 / file, **changes)
    with pytest.raises(error, match=problem):
        load_checkpoint(sd15)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("model_index.json", "no model in diffusers' form"),
        ("unet/config.json", "config.json is missing"),
        ("unet/diffusion_pytorch_model.safetensors", "weights of unet are missing"),
        ("text_encoder/model.safetensors", "weights of text_encoder are missing"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
    ],
)
def test_a_missing_file_is_named(file, problem, sd15):
    (sd15 / file).unlink()
    with pytest.raises(LoraError, match=problem):
        load_checkpoint(sd15)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_damaged_json_is_an_error(text, sd15):
    (sd15 / "unet" / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedFileError):
        load_checkpoint(sd15)


@pytest.mark.parametrize("name", ["../other.safetensors", "a/b.safetensors"])
def test_an_index_names_only_files_beside_it(name, sd15):
    (sd15 / "unet" / "diffusion_pytorch_model.safetensors").rename(sd15 / "other.safetensors")
    index = sd15 / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    write_json(index, {"weight_map": {"conv_in.weight": name}})
    with pytest.raises(DamagedFileError, match="beside it"):
        load_checkpoint(sd15)
