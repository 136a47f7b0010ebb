"""Every name that LoRA files use finds the model's own weight."""

import json

import pytest

from lora_workbench.lora_core.errors import LoraError, UnsupportedFormatError
from lora_workbench.lora_core.models import (
    BASES,
    ModelTable,
    Target,
    table_for_base,
    table_from_shapes,
)
from lora_workbench.lora_core.models.architectures import (
    checkpoint_shapes,
    comfy_shapes,
    diffusers_unet_shapes,
)

Q_OF_LAYER_0 = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def tables() -> dict[str, ModelTable]:
    return {base: table_for_base(base) for base in BASES}


def weight_of(table: ModelTable, lora_key: str) -> Target | None:
    """Return the weight of the only module that the name addresses."""
    (module,) = table.find(lora_key)
    return module.weight


def canonical(table: ModelTable, lora_key: str) -> list[str]:
    """Return the canonical names of the weights and biases that a name addresses."""
    parts = [part for module in table.find(lora_key) for part in (module.weight, module.bias)]
    return [part.canonical for part in parts if part]


def renamed(shapes, old: str, new: str):
    """Return the part of a state dict below a prefix, below another prefix."""
    return {
        new + key.removeprefix(old): shape for key, shape in shapes.items() if key.startswith(old)
    }


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_every_name_of_comfyuis_key_map_finds_the_same_weight(base, shared_data):
    models = shared_data / "models"
    keymap = json.loads((models / f"comfy_{base}_lora_keymap.json").read_text())
    table = table_from_shapes(comfy_shapes(base))
    stored = comfy_shapes(base).keys()

    theirs = {**keymap["unet"], **keymap["clip"]}
    theirs = {lora_key: key for lora_key, key in theirs.items() if key in stored}
    ours = {lora_key: weight_of(table, lora_key).target_key for lora_key in theirs}

    assert len(theirs) > 2900
    assert ours == theirs


@pytest.mark.parametrize("base", BASES)
def test_the_way_a_model_is_stored_changes_no_name(base, tables):
    """A name means one canonical weight in a checkpoint, in ComfyUI and in diffusers.

    The projection of CLIP-L is in ComfyUI's memory only, so its bare name means more there.
    """
    unet_in_diffusers = renamed(diffusers_unet_shapes(base), "", "unet.")
    for other in (table_from_shapes(comfy_shapes(base)), table_from_shapes(unet_in_diffusers)):
        shared = tables[base].names.keys() & other.names.keys()
        shared = {name for name in shared if not name.endswith("text_projection")}

        assert len(shared) > 0.8 * len(other.names)
        assert {name: canonical(tables[base], name) for name in shared} == {
            name: canonical(other, name) for name in shared
        }


@pytest.mark.parametrize("base", BASES)
def test_every_target_can_be_addressed(base, tables):
    addressed = {
        target
        for modules in tables[base].names.values()
        for module in modules
        for target in (module.weight, module.bias)
    }

    assert addressed - {None} == set(tables[base].targets)


@pytest.mark.parametrize("base", BASES)
def test_the_targets_cover_every_stored_weight_exactly_once(base, tables):
    """Row views of one storage tile it: they start at 0, touch, and end at its last row."""
    shapes = checkpoint_shapes(base)
    views: dict[str, list[tuple[int, int]]] = {key: [] for key in shapes}
    for target in tables[base].targets:
        views[target.target_key].append(target.rows or (0, shapes[target.target_key][0]))

    for key, rows in views.items():
        starts, stops = zip(*sorted(rows), strict=True)
        assert starts == (0, *stops[:-1])
        assert stops[-1] == shapes[key][0]


@pytest.mark.parametrize(
    ("base", "lora_key", "target"),
    [
        ("sd15", "lora_unet_up_blocks_0_upsamplers_0_conv", "output_blocks.2.1.conv.weight"),
        ("sd15", "lora_unet_up_blocks_2_upsamplers_0_conv", "output_blocks.8.2.conv.weight"),
        ("sdxl", "lora_unet_up_blocks_0_upsamplers_0_conv", "output_blocks.2.2.conv.weight"),
        ("sd15", "lora_unet_down_blocks_2_downsamplers_0_conv", "input_blocks.9.0.op.weight"),
        (
            "sdxl",
            "lora_unet_up_blocks_1_attentions_2_proj_out",
            "output_blocks.5.1.proj_out.weight",
        ),
        (
            "sdxl",
            "lora_unet_down_blocks_1_resnets_0_time_emb_proj",
            "input_blocks.4.0.emb_layers.1.weight",
        ),
        ("sd15", "lora_unet_mid_block_resnets_1_conv2", "middle_block.2.out_layers.3.weight"),
        ("sdxl", "unet.class_embedding.linear_2", "label_emb.0.2.weight"),
        ("sd15", "unet.output_blocks.5.2.conv", "output_blocks.5.2.conv.weight"),
        ("sd15", "lora_unet_conv_norm_out", "out.0.weight"),
    ],
)
def test_hand_worked_names(base, lora_key, target, tables):
    assert weight_of(tables[base], lora_key).canonical == target


@pytest.mark.parametrize(
    "lora_key",
    [
        "lora_unet_{flat_ldm}",
        "lora_unet_{flat_diffusers}",
        "lycoris_{flat_diffusers}",
        "{diffusers}",
        "unet.{diffusers}",
        "base_model.model.{diffusers}",
        "unet.base_model.model.{diffusers}",
        "{ldm}",
        "unet.{ldm}",
        "diffusion_model.{ldm}",
        "model.diffusion_model.{ldm}",
        "base_model.model.{ldm}",
        "{old_diffusers}",
        "unet.{old_diffusers}",
    ],
)
def test_every_spelling_of_a_unet_module_is_known_directly(lora_key, tables):
    ldm = "input_blocks.4.1.transformer_blocks.0.attn2.to_out.0"
    diffusers = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
    name = lora_key.format(
        ldm=ldm,
        diffusers=diffusers,
        flat_ldm=ldm.replace(".", "_"),
        flat_diffusers=diffusers.replace(".", "_"),
        old_diffusers="down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out",
    )

    (module,) = tables["sdxl"].names[name]
    assert module.weight.canonical == f"{ldm}.weight"
    assert module.bias.canonical == f"{ldm}.bias"


@pytest.mark.parametrize(
    ("lora_key", "component"),
    [
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "te1"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "te1"),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "te2"),
        (f"text_encoder.{Q_OF_LAYER_0}", "te1"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj", "te1"),
        (f"text_encoder_2.{Q_OF_LAYER_0}", "te2"),
        ("text_encoder_2.base_model.model.encoder.layers.0.self_attn.q_proj", "te2"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q", "te1"),
        (f"text_encoders.clip_l.transformer.{Q_OF_LAYER_0}", "te1"),
        (f"text_encoders.clip_g.transformer.{Q_OF_LAYER_0}", "te2"),
        (f"clip_g.transformer.{Q_OF_LAYER_0}", "te2"),
    ],
)
def test_each_text_encoder_of_sdxl_answers_to_its_own_names(lora_key, component, tables):
    weight = weight_of(tables["sdxl"], lora_key)

    assert weight.component == component
    assert weight.canonical == f"{Q_OF_LAYER_0}.weight"


@pytest.mark.parametrize(
    "lora_key",
    [Q_OF_LAYER_0, "encoder.layers.0.self_attn.q_proj", f"base_model.model.{Q_OF_LAYER_0}"],
)
def test_a_bare_text_encoder_name_is_ambiguous_on_sdxl_and_told_apart_by_shape(lora_key, tables):
    found = tables["sdxl"].find(lora_key)

    assert {module.weight.shape: module.weight.component for module in found} == {
        (768, 768): "te1",
        (1280, 1280): "te2",
    }
    assert len(tables["sd15"].find(lora_key)) == 1


@pytest.mark.parametrize(
    ("projection", "rows"), [("q", (0, 1280)), ("k", (1280, 2560)), ("v", (2560, 3840))]
)
def test_projections_of_open_clip_are_rows_of_the_fused_storage(projection, rows, tables):
    block = "conditioner.embedders.1.model.transformer.resblocks.31.attn"
    owner = f"text_model.encoder.layers.31.self_attn.{projection}_proj"

    (module,) = tables["sdxl"].find(f"lora_te2_{owner.replace('.', '_')}")

    assert module.weight == Target(
        f"{block}.in_proj_weight", (1280, 1280), "te2", f"{owner}.weight", rows
    )
    assert module.bias == Target(f"{block}.in_proj_bias", (1280,), "te2", f"{owner}.bias", rows)


def test_the_text_projection_of_open_clip_is_stored_turned_over():
    """open_clip computes x @ P with P (width, out); files hold the linear weight (out, width)."""
    shapes = checkpoint_shapes("sdxl-refiner")
    shapes["conditioner.embedders.0.model.text_projection"] = (1280, 640)

    weight = weight_of(table_from_shapes(shapes), "lora_te2_text_projection")

    assert weight.transposed
    assert weight.shape == (640, 1280)


def test_the_text_projection_of_hugging_face_is_not_turned_over():
    table = table_from_shapes(comfy_shapes("sdxl"))

    for lora_key, key in [
        ("lora_te1_text_projection", "clip_l.transformer.text_projection.weight"),
        ("lora_te2_text_projection", "clip_g.transformer.text_projection.weight"),
        ("lora_prior_te_text_projection", "clip_g.transformer.text_projection.weight"),
    ]:
        weight = weight_of(table, lora_key)
        assert (weight.target_key, weight.transposed) == (key, False)


@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te2_", "lora_prior_te_"])
def test_the_only_text_encoder_of_the_refiner_is_te1_under_every_number(prefix, tables):
    flat = Q_OF_LAYER_0.replace(".", "_")

    assert weight_of(tables["sdxl-refiner"], prefix + flat).component == "te1"


def test_a_clip_l_name_of_an_sdxl_lora_is_unknown_to_the_refiner(tables):
    flat = Q_OF_LAYER_0.replace(".", "_")

    assert tables["sdxl-refiner"].find(f"lora_te1_{flat}") == ()


def test_a_text_encoder_alone_is_known_with_and_without_text_model():
    """transformers 5 leaves ``text_model.`` out of the names in memory."""
    with_it = renamed(comfy_shapes("sd21"), "clip_h.transformer.", "")
    without = {name.removeprefix("text_model."): shape for name, shape in with_it.items()}

    for shapes in (with_it, without):
        table = table_from_shapes(shapes)
        weight = weight_of(table, "text_encoder.encoder.layers.0.self_attn.q_proj")
        assert table.components == {"te1"}
        assert weight.canonical == f"{Q_OF_LAYER_0}.weight"
        assert weight.target_key in shapes


def test_a_diffusers_pipeline_is_one_table_of_three_components():
    comfy = comfy_shapes("sdxl")
    shapes = {
        **renamed(diffusers_unet_shapes("sdxl"), "", "unet."),
        **renamed(comfy, "clip_l.transformer.", "text_encoder."),
        **renamed(comfy, "clip_g.transformer.", "text_encoder_2."),
    }

    table = table_from_shapes(shapes)

    assert table.family == "sdxl"
    assert {target.target_key for target in table.targets} == shapes.keys()
    assert table.components == {"unet", "te1", "te2"}


def test_a_module_without_bias_has_none(tables):
    (module,) = tables["sd15"].find(
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    )

    assert module.weight is not None
    assert module.bias is None


def test_a_bias_is_addressed_as_a_weight_by_its_full_name(tables):
    key = "model.diffusion_model.out.2.bias"

    for lora_key in (key, "diffusion_model.out.2.bias"):
        assert weight_of(tables["sd15"], lora_key).target_key == key


@pytest.mark.parametrize(
    ("lora_key", "module"),
    [
        ("lora_unet_unet_down_blocks_0_attentions_0_proj_in_lora", "input_blocks.1.1.proj_in"),
        ("lora_unet_down_blocks_0_attentions_0.proj_in", "input_blocks.1.1.proj_in"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in_", "input_blocks.1.1.proj_in"),
        ("lora_unet__down_blocks_0_attentions_0_proj_in", "input_blocks.1.1.proj_in"),
        (
            "transformer.base_model.model.down_blocks.0.attentions.0.proj_in",
            "input_blocks.1.1.proj_in",
        ),
        ("oft_unet_input_blocks_1_1_proj_in", "input_blocks.1.1.proj_in"),
        ("oft_te_text_model_encoder_layers_0_self_attn_q_proj", Q_OF_LAYER_0),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora", Q_OF_LAYER_0),
    ],
)
def test_malformed_names_of_real_files_are_cured(lora_key, module, tables):
    assert lora_key not in tables["sd15"].names
    assert weight_of(tables["sd15"], lora_key).canonical == f"{module}.weight"


@pytest.mark.parametrize(
    "lora_key",
    [
        "",
        "lora_unet_unet_down_blocks_9_attentions_0_proj_in",
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te_text_model_encoder_layers_12_self_attn_q_proj",
    ],
)
def test_a_name_that_sd15_does_not_have_is_not_guessed(lora_key, tables):
    assert tables["sd15"].find(lora_key) == ()


def conv(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (8, 8, 3, 3), f"{name}.bias": (8,)}


def small_unet(*modules: str) -> dict[str, tuple[int, ...]]:
    """Return a UNet of these ldm modules between the first and the last convolution."""
    names = ("input_blocks.0.0", *modules, "out.2")
    return {key: shape for name in names for key, shape in conv(name).items()}


def test_a_unet_of_one_level_and_one_resnet_is_walked_by_its_own_names():
    """One level has no sampler; its upward half has one resnet more: up_blocks.0.resnets.1."""
    table = table_from_shapes(
        small_unet(
            "input_blocks.1.0.in_layers.2",
            "input_blocks.1.1.proj_in",
            "middle_block.0.in_layers.2",
            "output_blocks.0.0.in_layers.2",
            "output_blocks.1.0.in_layers.2",
            "output_blocks.1.1.proj_in",
        )
    )

    for diffusers, ldm in {
        "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
        "down_blocks.0.attentions.0.proj_in": "input_blocks.1.1.proj_in",
        "mid_block.resnets.0.conv1": "middle_block.0.in_layers.2",
        "up_blocks.0.resnets.0.conv1": "output_blocks.0.0.in_layers.2",
        "up_blocks.0.resnets.1.conv1": "output_blocks.1.0.in_layers.2",
        "up_blocks.0.attentions.1.proj_in": "output_blocks.1.1.proj_in",
    }.items():
        assert weight_of(table, f"unet.{diffusers}").target_key == f"{ldm}.weight"
    assert table.family is None


def test_two_levels_of_one_resnet_are_walked_the_same_from_both_namings():
    pairs = {
        "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
        "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks.3.0.in_layers.2": "down_blocks.1.resnets.0.conv1",
        "input_blocks.3.1.proj_in": "down_blocks.1.attentions.0.proj_in",
        "middle_block.0.in_layers.2": "mid_block.resnets.0.conv1",
        "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
        "middle_block.2.in_layers.2": "mid_block.resnets.1.conv1",
        "output_blocks.0.0.in_layers.2": "up_blocks.0.resnets.0.conv1",
        "output_blocks.0.1.proj_in": "up_blocks.0.attentions.0.proj_in",
        "output_blocks.1.0.in_layers.2": "up_blocks.0.resnets.1.conv1",
        "output_blocks.1.1.proj_in": "up_blocks.0.attentions.1.proj_in",
        "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.2.0.in_layers.2": "up_blocks.1.resnets.0.conv1",
        "output_blocks.3.0.in_layers.2": "up_blocks.1.resnets.1.conv1",
    }
    from_ldm = table_from_shapes(small_unet(*pairs))
    names = ["conv_in", *pairs.values(), "conv_out"]
    from_diffusers = table_from_shapes({k: v for name in names for k, v in conv(name).items()})

    for ldm, diffusers in pairs.items():
        assert weight_of(from_ldm, diffusers).canonical == f"{ldm}.weight"
        assert weight_of(from_diffusers, f"lora_unet_{ldm.replace('.', '_')}") == Target(
            f"{diffusers}.weight", (8, 8, 3, 3), "unet", f"{ldm}.weight"
        )


@pytest.mark.parametrize("name", ["add_embedding", "class_embedding"])
def test_both_embeddings_of_diffusers_are_the_label_embedding(name):
    modules = ("conv_in", f"{name}.linear_1", "conv_out")
    table = table_from_shapes({k: v for module in modules for k, v in conv(module).items()})

    for lora_key in ("lora_unet_label_emb_0_0", "unet.add_embedding.linear_1"):
        assert weight_of(table, lora_key).target_key == f"{name}.linear_1.weight"


@pytest.mark.parametrize("base", BASES)
def test_the_family_is_read_from_the_shapes_in_every_naming(base, tables):
    assert tables[base].family == base
    assert table_from_shapes(comfy_shapes(base)).family == base
    assert table_from_shapes(diffusers_unet_shapes(base)).family == base


def test_other_tensors_of_a_checkpoint_are_passed_over():
    shapes = checkpoint_shapes("sd15")
    others = {
        "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
        "model_ema.decay": (),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
        "model.diffusion_model.input_blocks.0.0.weight_scale": (),
    }

    table = table_from_shapes(shapes | others)

    assert {target.target_key for target in table.targets} == shapes.keys()


def test_an_unknown_model_is_an_error_that_says_what_was_looked_for():
    vae = {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}

    with pytest.raises(LoraError) as caught:
        table_from_shapes(vae)

    assert "model.diffusion_model.input_blocks.0.0.weight" in caught.value.facts["Looked for"]
    assert caught.value.facts["Found"].startswith("2 names: encoder.conv_in.weight")


@pytest.mark.parametrize(
    ("listed", "model"),
    [
        ("comfy_flux_dev_diffusion_model", "Flux"),
        ("diffusers_flux_dev_transformer", "Flux"),
        ("comfy_flux_dev_text_encoders", "Flux"),
        ("comfy_sd3_medium_diffusion_model", "SD3"),
        ("comfy_sd3_medium_text_encoders", "SD3"),
        ("diffusers_sd35_large_transformer", "SD3"),
    ],
)
def test_flux_and_sd3_are_recognised_and_put_off(listed, model, shared_data):
    tensors = json.loads((shared_data / "models" / f"{listed}.json").read_text())["tensors"]
    shapes = {key: tuple(tensor["shape"]) for key, tensor in tensors.items()}

    with pytest.raises(UnsupportedFormatError, match=f"{model}.* later version"):
        table_from_shapes(shapes)


def test_two_modules_of_one_flattened_name_are_an_error():
    names = [*small_unet(), "input_blocks.1.0.proj_in.weight", "input_blocks.1.0.proj.in.weight"]

    with pytest.raises(LoraError, match="same name in LoRA files"):
        table_from_shapes(dict.fromkeys(names, (8, 8, 3, 3)))
