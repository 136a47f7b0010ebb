"""Single-file checkpoints: every tensor comes back as it was written, in the module it was in."""

import copy
import json
import subprocess
import sys

import pytest
import torch

from lora_workbench.hosts.embedded.checkpoints import ldm_names, ldm_tensors, load_checkpoint
from lora_workbench.lora_core.errors import LoraError, ShapeMismatchError, UnsupportedFormatError
from lora_workbench.lora_core.files.safetensors_file import open_safetensors
from lora_workbench.lora_core.files.write import write_safetensors

from .tiny_checkpoints import FAMILIES, tiny_vae, write_tiny

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
every_family = pytest.mark.parametrize("family", FAMILIES)


def modules_of(checkpoint):
    encoders = checkpoint.text.encoders if checkpoint.text else {}
    parts = {"unet": checkpoint.diffusion.unet, **encoders}
    return parts | ({"vae": checkpoint.vae.vae} if checkpoint.vae else {})


def assert_same_modules(loaded, written, dtype=torch.float32):
    ours, theirs = modules_of(loaded), modules_of(written)
    assert ours.keys() == theirs.keys()
    for name, module in ours.items():
        assert type(module) is type(theirs[name])
        state, expected = module.state_dict(), theirs[name].state_dict()
        assert state.keys() == expected.keys()
        for key, value in state.items():
            assert torch.equal(value, expected[key].to(dtype)), f"{name}.{key}"


def outputs_of(checkpoint):
    """One forward of every module: equal only if what shapes do not show is equal too."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.tensor([[48, 3, 17, 49, 49]])
    outputs, unet = {}, checkpoint.diffusion.unet
    context = torch.randn(1, 5, unet.config["cross_attention_dim"], generator=generator)
    latents = torch.randn(1, unet.config["in_channels"], 8, 8, generator=generator)
    added = {"time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    if checkpoint.diffusion.family == "sdxl-refiner":
        added["time_ids"] = added["time_ids"][:, :5]
    added["text_embeds"] = torch.randn(1, 1280, generator=generator)
    with torch.inference_mode():
        outputs["unet"] = unet(latents, 300, context, added_cond_kwargs=added).sample
        for name, encoder in checkpoint.text.encoders.items():
            found = encoder(ids)
            outputs[name] = found.last_hidden_state
            outputs[f"{name} pooled"] = getattr(found, "text_embeds", torch.zeros(1))
        vae = checkpoint.vae.vae
        outputs["decoded"] = vae.decode(torch.randn(1, 4, 4, 4, generator=generator)).sample
    return outputs


@every_family
def test_what_was_written_in_checkpoint_names_is_loaded_bit_for_bit(family, tmp_path):
    written, tensors = write_tiny(tmp_path / "a.safetensors", family)

    loaded = load_checkpoint(tmp_path / "a.safetensors")

    assert_same_modules(loaded, written)
    assert loaded.diffusion.family == loaded.text.family == family
    assert loaded.diffusion.prediction == "epsilon"
    assert loaded.diffusion.latent_scale == written.diffusion.latent_scale
    assert loaded.vae.latent_scale == written.vae.latent_scale
    again = ldm_tensors(loaded)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


@every_family
def test_what_shapes_do_not_show_is_that_of_the_family(family, tmp_path):
    """Heads, groups, activations, the constants of norms: the outputs are equal bit for bit."""
    written, _ = write_tiny(tmp_path / "a.safetensors", family)
    ours, theirs = outputs_of(load_checkpoint(tmp_path / "a.safetensors")), outputs_of(written)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@every_family
def test_the_modules_are_for_use_and_not_for_training(family, tmp_path):
    write_tiny(tmp_path / "a.safetensors", family)
    for module in modules_of(load_checkpoint(tmp_path / "a.safetensors")).values():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_every_storage_is_cast_on_loading(stored, wanted, tmp_path):
    path = tmp_path / "a.safetensors"
    written, _ = write_tiny(path, "sd15", dtype=stored)
    written = copy.deepcopy(written)
    for module in modules_of(written).values():
        module.to(stored)

    assert_same_modules(load_checkpoint(path, wanted), written, wanted)


@every_family
def test_a_parameter_can_be_read_again_where_files_say(family, tmp_path):
    path = tmp_path / "a.safetensors"
    write_tiny(path, family, dtype=torch.float16)
    loaded, file = load_checkpoint(path), open_safetensors(path)
    parameters = dict(loaded.diffusion.unet.named_parameters())
    encoders = {
        f"{name}.{key}": parameter
        for name, encoder in loaded.text.encoders.items()
        for key, parameter in encoder.named_parameters()
    }
    assert loaded.diffusion.files.keys() == parameters.keys()
    turned = {key for key in encoders if key.endswith("text_projection.weight")}
    assert loaded.text.files.keys() == encoders.keys() - turned
    for name, place in {**loaded.diffusion.files, **loaded.text.files}.items():
        parameter = parameters.get(name, encoders.get(name))
        stop = place.first_row + parameter.shape[0]
        rows = file.read_rows(place.key, place.first_row, stop)
        assert place.path == path
        assert torch.equal(rows.to(parameter.dtype), parameter), name


def test_a_fused_projection_gives_its_rows_to_query_key_and_value(tmp_path):
    path = tmp_path / "a.safetensors"
    _, tensors = write_tiny(path, "sd2")
    fused = tensors["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"]
    layer = load_checkpoint(path).text.encoders["h"].text_model.encoder.layers[1].self_attn
    assert torch.equal(
        torch.cat([layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight]), fused
    )


def test_a_text_projection_is_turned_over(tmp_path):
    path = tmp_path / "a.safetensors"
    _, tensors = write_tiny(path, "sdxl")
    projection = load_checkpoint(path).text.encoders["g"].text_projection.weight
    assert torch.equal(projection, tensors["conditioner.embedders.1.model.text_projection"].T)


def test_nine_channels_are_an_inpainting_model(tmp_path):
    written, _ = write_tiny(tmp_path / "a.safetensors", "sd15", in_channels=9)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert_same_modules(loaded, written)
    assert loaded.diffusion.unet.config["in_channels"] == 9


def without(*prefixes):
    def edit(tensors):
        for key in [key for key in tensors if key.startswith(prefixes)]:
            del tensors[key]

    return edit


def test_what_a_file_does_not_have_is_none(tmp_path):
    edit = without("cond_stage_model.", "first_stage_model.")
    write_tiny(tmp_path / "a.safetensors", "sd15", edit=edit)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.text is None and loaded.vae is None


def test_text_encoder_names_without_text_model_are_read_too(tmp_path):
    def edit(tensors):
        for key in [key for key in tensors if key.startswith(TEXT)]:
            tensors[key.replace(".text_model.", ".", 1)] = tensors.pop(key)

    written, _ = write_tiny(tmp_path / "a.safetensors", "sd15", edit=edit)
    assert_same_modules(load_checkpoint(tmp_path / "a.safetensors"), written)


EXTRAS = (
    *("cond_stage_model.transformer.text_model.embeddings.position_ids", "alphas_cumprod"),
    *("model_ema.diffusion_modelinput_blocks00weight", "model_ema.decay", "betas", "logvar"),
    *("cond_stage_model.logit_scale", "first_stage_model.loss.logvar", "posterior_variance"),
    "sqrt_one_minus_alphas_cumprod",
)


def test_what_training_leaves_in_published_files_does_not_matter(tmp_path, caplog):
    def edit(tensors):
        tensors |= {key: torch.arange(3.0) for key in EXTRAS}

    written, _ = write_tiny(tmp_path / "a.safetensors", "sd15", edit=edit)
    assert_same_modules(load_checkpoint(tmp_path / "a.safetensors"), written)
    assert not caplog.records


def test_a_part_of_its_own_is_passed_over_with_a_word_in_the_log(tmp_path, caplog):
    def edit(tensors):
        tensors["control_model.zero_convs.0.0.weight"] = torch.zeros(1)

    written, _ = write_tiny(tmp_path / "a.safetensors", "sd15", edit=edit)
    assert_same_modules(load_checkpoint(tmp_path / "a.safetensors"), written)
    assert "control_model.zero_convs.0.0.weight" in caplog.text


@pytest.mark.parametrize("vae_scale", [1.0, 0.18215])
def test_taesd_says_how_the_latents_of_nodes_reach_it(vae_scale, tmp_path):
    vae = tiny_vae(0.18215 / vae_scale)

    def edit(tensors):
        tensors["first_stage_model.vae_scale"] = torch.tensor(vae_scale)

    written, _ = write_tiny(tmp_path / "a.safetensors", "sd15", vae=vae, edit=edit)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert_same_modules(loaded, written)
    assert loaded.vae.latent_scale == pytest.approx(vae_scale, rel=1e-6)
    assert loaded.vae.vae.config["scaling_factor"] == pytest.approx(0.18215 / vae_scale, rel=1e-6)
    latents = torch.linspace(-2, 2, 64).reshape(1, 4, 4, 4)
    assert torch.equal(loaded.vae.vae.decode(latents).sample, vae.decode(latents).sample)


def sd2_with_late_norm(tmp_path, spread, in_channels=4):
    """SD2's depth: four levels of two resnets, so that the norm that tells is there."""
    from diffusers import UNet2DConditionModel

    from lora_workbench.hosts.embedded.parts import Checkpoint, DiffusionPart

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=in_channels,
        block_out_channels=(64,) * 4,
        cross_attention_dim=64,
        attention_head_dim=1,
        use_linear_projection=True,
    )
    bias = torch.tensor([-1.0, 1.0]).repeat(32) * spread
    unet.up_blocks[3].attentions[2].transformer_blocks[0].norm1.bias.data.copy_(bias)
    checkpoint = Checkpoint(DiffusionPart(unet, "sd2", "epsilon", 0.18215, {}), None, None)
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ldm_tensors(checkpoint), {})
    return load_checkpoint(path).diffusion


@pytest.mark.parametrize(
    ("spread", "in_channels", "prediction"),
    [(0.08, 4, "epsilon"), (0.1, 4, "v_prediction"), (0.1, 9, "epsilon")],
)
def test_sd2_gives_the_velocity_when_a_late_norm_spreads_wide(
    spread, in_channels, prediction, tmp_path
):
    """ComfyUI 0.30's rule: standard deviation above 0.09, never for inpainting."""
    part = sd2_with_late_norm(tmp_path, spread, in_channels)
    assert (part.family, part.prediction) == ("sd2", prediction)


def test_sdxl_says_with_a_tensor_that_it_gives_the_velocity(tmp_path):
    write_tiny(tmp_path / "a.safetensors", "sdxl", prediction="v_prediction")
    assert load_checkpoint(tmp_path / "a.safetensors").diffusion.prediction == "v_prediction"


def adding(*keys):
    def edit(tensors):
        tensors |= {key: torch.ones(1) for key in keys}

    return edit


@pytest.mark.parametrize(
    ("family", "edit", "problem"),
    [
        ("sdxl", adding("v_pred", "ztsnr"), "noise schedule of its own"),
        ("sdxl", adding("edm_mean", "edm_std"), "noise schedule of its own"),
        ("sd15", adding(f"{UNET}double_blocks.0.img_attn.qkv.weight"), "Flux"),
        ("sd15", adding(f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"), "Stable Diffusion 3"),
        ("sd15", adding(f"{UNET}clip_txt_mapper.weight"), "Stable Cascade"),
        ("sd15", adding(f"{UNET}input_blocks.1.1.time_stack.0.ff.net.2.weight"), "Video"),
        ("sd15", adding(f"{UNET}out.2.comfy_quant"), "quantised"),
    ],
)
def test_what_only_comfyui_runs_is_refused_by_name(family, edit, problem, tmp_path):
    write_tiny(tmp_path / "a.safetensors", family, edit=edit)
    with pytest.raises(UnsupportedFormatError, match=problem) as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert "--comfyui" in str(caught.value)


def test_other_inputs_than_latents_and_masks_are_refused(tmp_path):
    write_tiny(tmp_path / "a.safetensors", "sd15", in_channels=8)
    with pytest.raises(UnsupportedFormatError, match="InstructPix2Pix"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "key",
    [
        *(f"{UNET}out.3.weight", f"{UNET}input_blocks.1.0.emb_layers.2.bias"),
        *(f"{UNET}input_blocks.1.0.in_layers.0.running_mean", f"{TEXT}head.weight"),
        *("first_stage_model.encoder.extra.weight", f"{TEXT}encoder.layers.0.mlp.fc3.weight"),
    ],
)
def test_a_tensor_that_no_part_takes_is_an_error_that_names_it(key, tmp_path):
    write_tiny(tmp_path / "a.safetensors", "sd15", edit=adding(key))
    with pytest.raises(LoraError, match="no part of the model takes") as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        *(f"{UNET}input_blocks.1.0.in_layers.2.bias", f"{UNET}out.0.weight"),
        *(f"{UNET}middle_block.1.transformer_blocks.0.attn1.to_q.weight",),
        *(f"{TEXT}final_layer_norm.bias", f"{TEXT}encoder.layers.1.self_attn.k_proj.weight"),
        *(
            "first_stage_model.decoder.up.0.block.0.norm1.weight",
            "first_stage_model.decoder.mid.attn_1.q.bias",
        ),
    ],
)
def test_missing_tensors_are_an_error_that_names_them_as_files_do(key, tmp_path):
    write_tiny(tmp_path / "a.safetensors", "sd15", edit=without(key))
    with pytest.raises(LoraError, match="not complete") as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert key in str(caught.value)


def test_no_missing_tensor_goes_unnoticed(tmp_path):
    """One at a time, spread over the file: always a LoraError, never a model with a hole."""
    path = tmp_path / "a.safetensors"
    _, tensors = write_tiny(path, "sdxl", dtype=torch.float8_e4m3fn)
    optional = ("text_projection", "mid.attn_1", "quant_conv")
    keys = [key for key in tensors if not any(part in key for part in optional)][::17]
    for key in keys:
        rest = {name: tensor for name, tensor in tensors.items() if name != key}
        write_safetensors(path, rest, {}, overwrite=True)
        with pytest.raises(LoraError):
            load_checkpoint(path)


def test_a_tensor_of_another_shape_is_an_error_that_names_both_shapes(tmp_path):
    key = f"{UNET}input_blocks.1.1.transformer_blocks.0.ff.net.2.weight"

    def edit(tensors):
        tensors[key] = tensors[key][:, :-1]

    write_tiny(tmp_path / "a.safetensors", "sd15", edit=edit)
    with pytest.raises(ShapeMismatchError, match=r"\(32, 128\)[\s\S]*\(32, 127\)") as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    assert key in str(caught.value)


def test_a_file_without_a_unet_says_what_it_holds(tmp_path):
    path = tmp_path / "lora.safetensors"
    write_safetensors(path, {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, {})
    with pytest.raises(LoraError, match="no Stable Diffusion UNet") as caught:
        load_checkpoint(path)
    assert "lora_unet_x" in str(caught.value)


def test_other_files_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"\x80\x04")
    (tmp_path / "a.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(UnsupportedFormatError, match="safetensors"):
        load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(LoraError, match="ends inside its first 8 bytes"):
        load_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(LoraError, match="does not exist"):
        load_checkpoint(tmp_path / "b.safetensors")


def test_one_of_two_text_encoders_is_not_enough(tmp_path):
    write_tiny(tmp_path / "a.safetensors", "sdxl", edit=without("conditioner.embedders.0."))
    with pytest.raises(LoraError, match="text encoders"):
        load_checkpoint(tmp_path / "a.safetensors")


def header(**entries):
    return {f"lora_workbench.{name}": json.dumps(value) for name, value in entries.items()}


def test_a_header_may_state_what_shapes_cannot_show(tmp_path):
    metadata = header(
        unet={"num_heads": [4, 2], "norm_num_groups": 16, "layers_per_block": 1},
        text_encoder={"num_heads": 4, "hidden_act": "gelu", "layers": 2},
        vae={"norm_num_groups": 8, "scaling_factor": 0.5},
    )
    write_tiny(tmp_path / "a.safetensors", "sd15", metadata)
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    unet, clip = loaded.diffusion.unet, loaded.text.encoders["l"]
    assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 4
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 2
    assert unet.conv_norm_out.num_groups == 16
    assert (clip.config.num_attention_heads, clip.config.hidden_act) == (4, "gelu")
    assert loaded.vae.vae.decoder.conv_norm_out.num_groups == 8
    assert loaded.vae.latent_scale == loaded.diffusion.latent_scale == 0.5


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"unet": {"num_head": 4}}, "num_head"),
        ({"unet": {"num_heads": 5}}, "num_heads"),
        ({"unet": {"num_heads": [4]}}, "or 2"),
        ({"unet": {"norm_num_groups": 0}}, "above 0"),
        ({"unet": {"norm_num_groups": 12}}, "norm_num_groups"),
        ({"unet": {"block_out_channels": [32, 32]}}, "something else than the tensors"),
        ({"unet": {"family": "sd3"}}, "family"),
        ({"unet": [4]}, "not a JSON object"),
        ({"text_encoder": {"hidden_act": "relu"}}, "hidden_act"),
        ({"text_encoder": {"layers": 3}}, "something else than the tensors"),
        ({"text_encoder": {"num_heads": 7}}, "heads"),
        ({"vae": {"norm_num_groups": 7}}, "groups"),
        ({"vae": {"scaling_factor": "1"}}, "above 0"),
    ],
)
def test_a_header_that_is_wrong_is_refused(entries, problem, tmp_path):
    write_tiny(tmp_path / "a.safetensors", "sd15", header(**entries))
    with pytest.raises(LoraError, match=problem):
        load_checkpoint(tmp_path / "a.safetensors")


@every_family
def test_every_parameter_has_a_key_of_the_file(family, tmp_path):
    path = tmp_path / "a.safetensors"
    _, tensors = write_tiny(path, family)
    loaded = load_checkpoint(path)
    prefixes = dict(zip(loaded.text.encoders, ("text_encoder", "text_encoder_2"), strict=False))
    expected = {
        f"{prefixes.get(part, part)}.{name}"
        for part, module in modules_of(loaded).items()
        for name, _ in module.named_parameters()
    }
    names = ldm_names(loaded)
    assert names.keys() == expected
    assert set(names.values()) == tensors.keys()


def test_importing_the_loader_imports_neither_diffusers_nor_transformers():
    """ComfyUI's users may have neither."""
    source = (
        "import sys, lora_workbench.hosts.embedded.checkpoints\n"
        "assert not {'diffusers', 'transformers'} & set(sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
