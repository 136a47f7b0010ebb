"""Every tensor of every known kind of file is accounted for, and used where its kind can be."""

import json
from collections import Counter

import pytest
import torch

from lora_workbench.lora_core.binding import USED, bind
from lora_workbench.lora_core.explain import explain
from lora_workbench.lora_core.family import known_tables
from lora_workbench.lora_core.lora import load_lora, lora_from_tensors
from lora_workbench.lora_core.models import BASES, table_from_shapes
from lora_workbench.lora_core.models.architectures import (
    checkpoint_shapes,
    comfy_shapes,
    diffusers_unet_shapes,
)

from ..lora_files import (
    NAMINGS,
    factor_keys,
    is_attention,
    is_linear_target,
    lora_tensors,
    modules_of_shapes,
    peft_header,
    text_encoder_modules,
    unet_modules,
)

DTYPES = {
    "F16": torch.float16,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    None: torch.float16,
}
NAMELESS = "file_cloneofsimo-lora_analog_svd_rank4.json"
ALL_USED = {
    "file_catundchat_pytorch_lora_weights.json": 256,
    "peer_lycoris413_sd15_full_norm.json": 828,
    "peer_lycoris413_sd15_loha.json": 1770,
    "peer_lycoris413_sd15_lokr_factor-1.json": 1416,
    "peer_lycoris413_sd15_lora.json": 1062,
    "peer_lycoris413_sd15_lora_dora.json": 1416,
    "peer_lycoris413_sd15_lora_tucker_conv.json": 1114,
    "peer_peft_sd15_loha_base_model_prefix.json": 644,
    "peer_peft_sd15_lora_attn_diffusers_script.json": 256,
    "peer_peft_sd15_lora_attn_rawpeft.json": 256,
    "peer_peft_sd15_lora_attn_to_kohya.json": 384,
    "peer_peft_sd15_lora_full_dora_rawpeft.json": 834,
    "peer_peft_sd15_te_rawpeft_transformers5.json": 96,
    "rb_sd15_kohya_add_detail.json": 792,
}
UNET_LISTS = {
    "sd15": ("comfy_sd15_diffusion_model", "diffusers_sd15_unet"),
    "sd21": ("comfy_sd21_diffusion_model", "diffusers_sd21_unet"),
    "sdxl": ("comfy_sdxl_diffusion_model", "diffusers_sdxl_unet"),
    "sdxl-refiner": ("comfy_sdxl_refiner_diffusion_model", "diffusers_sdxl_refiner_unet"),
}
TEXT_ENCODER_LISTS = {
    "sd15": ("transformers_clip_l_text",),
    "sd21": ("transformers_openclip_h_text_sd2",),
    "sdxl": ("transformers_clip_l_text", "transformers_openclip_bigg_text_sdxl"),
    "sdxl-refiner": ("transformers_openclip_bigg_text_sdxl",),
}


@pytest.fixture(scope="module")
def tables():
    return known_tables()


def lora_of_list(path):
    """A LoRA of the list's names and shapes; every tensor is one shared number."""
    stored = json.loads(path.read_text())
    tensors = {
        key: torch.ones((), dtype=DTYPES[entry["dtype"]]).expand(entry["shape"])
        for key, entry in stored["tensors"].items()
    }
    return lora_from_tensors(path.name, tensors, stored.get("metadata") or {})


def listed_shapes(shared_data, name):
    """Name -> shape; diffusers' and transformers' lists write LayerNorms etc. alike."""
    stored = json.loads((shared_data / "models" / f"{name}.json").read_text())
    return {
        key: tuple(entry["shape"] if isinstance(entry, dict) else entry)
        for key, entry in stored["tensors"].items()
    }


def assert_accounted_for(report):
    assert [row.key for row in report.rows] == list(report.lora.file.tensors)
    assert all(row.reason for row in report.unused)
    assert all(row.target_key and row.rule for row in report.rows if row.verdict == USED)


def assert_all_used(report):
    assert_accounted_for(report)
    assert not report.unused, report.unused[:3]


@pytest.mark.parametrize("name", ALL_USED)
def test_every_tensor_of_a_plain_sd15_list_is_used(shared_data, tables, name):
    report = explain(lora_of_list(shared_data / "keylists" / name), tables=tables)
    assert_all_used(report)
    assert (report.family, report.tensors_used) == ("sd15", ALL_USED[name])


KINDS = {
    "peer_lycoris413_sd15_loha.json": ("loha", 354),
    "peer_lycoris413_sd15_lokr_factor-1.json": ("lokr", 354),
    "peer_peft_sd15_loha_base_model_prefix.json": ("loha", 150),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_module_of_a_list_is_of_its_kind(shared_data, tables, name):
    lora = lora_of_list(shared_data / "keylists" / name)
    kind, count = KINDS[name]
    assert Counter(module.kind for module in lora.modules.values()) == {kind: count}


def test_a_published_lokr_of_full_matrices_has_scale_1(shared_data):
    """By ai-toolkit, whose alpha of 9999999999 is none."""
    lora = lora_of_list(shared_data / "keylists" / "rb_krea2_lokr.json")
    found = Counter((m.kind, m.rank, m.scale, m.problem) for m in lora.modules.values())
    assert found == {("lokr", None, 1.0, None): 256}


def test_a_file_of_nameless_keys_is_reported_as_a_whole(shared_data, tables):
    report = explain(lora_of_list(shared_data / "keylists" / NAMELESS), tables=tables)
    assert_accounted_for(report)
    assert len(report.unused) == 384
    assert len({row.reason for row in report.unused}) == 1
    assert "traversal order" in report.unused[0].reason


def test_no_sd15_list_is_left_out(shared_data):
    listed = {
        path.name
        for path in (shared_data / "keylists").glob("*.json")
        if json.loads(path.read_text())["base"] == "sd15"
    }
    assert listed == {*ALL_USED, NAMELESS}


@pytest.mark.parametrize("family", ["flux", "krea2", "minimax-h3", "wan2.2"])
def test_a_list_of_another_architecture_is_accounted_for_and_not_used(shared_data, tables, family):
    paths = [
        path
        for path in (shared_data / "keylists").glob("*.json")
        if json.loads(path.read_text())["base"].startswith(family)
    ]
    assert paths
    for path in paths:
        report = explain(lora_of_list(path), tables=tables)
        assert_accounted_for(report)
        # A Flux file may train CLIP-L too, whose names are those of SD1.5's text encoder.
        assert report.tensors_used == (216 if "with_te1" in path.name else 0), path.name


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("catundchat/pytorch_lora_weights.bin", 256),
        ("catundchat/pytorch_lora_weights.safetensors", 256),
        ("cloneofsimo-lora/analog_svd_rank4.kohya.safetensors", 576),
        ("cloneofsimo-lora/analog_svd_rank4.peft.safetensors", 384),
        ("cloneofsimo-lora/analog_svd_rank4.safetensors", 0),
        ("cloneofsimo-lora/lora_disney_inpainting.safetensors", 0),
    ],
)
def test_every_tensor_of_a_published_file_is_accounted_for(shared_data, tables, name, used):
    report = explain(load_lora(shared_data / "real_files" / name), tables=tables)
    assert_accounted_for(report)
    assert report.tensors_used == used
    assert len(report.unused) == (0 if used else len(report.rows))


def expressible(modules, naming):
    """What a naming has names for: diffusers of 2023 could train attention only."""
    return [m for m in modules if naming != "diffusers-2023" or is_attention(m)]


def namings_of(unet_naming, base):
    """kohya's te1 is CLIP-L or CLIP-H; a refiner's only encoder is written lora_te_."""
    diffusers_only = {"diffusers-2023", "peft-raw"} if unet_naming == "ldm" else set()
    not_refiner = {"kohya"} if base == "sdxl-refiner" else set()
    return [name for name in NAMINGS if name not in diffusers_only | not_refiner]


GENERATED = [
    (base, unet_naming, naming)
    for base in BASES
    for unet_naming in ("ldm", "diffusers")
    for naming in namings_of(unet_naming, base)
]


@pytest.mark.parametrize(("base", "unet_naming", "naming"), GENERATED)
def test_every_matrix_and_kernel_of_a_base_is_reached_under_every_naming(
    tables, base, unet_naming, naming
):
    modules = expressible(unet_modules(base, unet_naming) + text_encoder_modules(base), naming)
    alpha = 2.0 if naming.startswith("kohya") else None
    lora = lora_from_tensors("generated", lora_tensors(modules, naming, alpha=alpha, empty=True))
    report = explain(lora, tables[base], base, tables={})
    assert_all_used(report)
    targets = {(b.target.target_key, b.target.rows) for b in report.binding.used()}
    assert len(targets) == len(modules)


@pytest.mark.parametrize("base", BASES)
def test_the_family_of_a_whole_file_is_found_by_names_and_shapes(tables, base):
    modules = unet_modules(base) + text_encoder_modules(base)
    lora = lora_from_tensors("x", lora_tensors(modules, "peft", empty=True))
    assert explain(lora, tables=tables).family == base


def test_sdxl_has_722_linear_and_264_text_encoder_modules():
    """kohya's default preset: what most published SDXL files hold."""
    unet = [module for module in unet_modules("sdxl", "ldm") if is_linear_target(module)]
    assert (len(unet), len(text_encoder_modules("sdxl"))) == (722, 264)


LISTED = [
    (base, which, naming)
    for base in UNET_LISTS
    for which, unet_naming in enumerate(("ldm", "diffusers"))
    for naming in namings_of(unet_naming, base)
]


@pytest.mark.parametrize(("base", "which", "naming"), LISTED)
def test_files_made_from_the_published_model_lists_are_used_whole(
    shared_data, tables, base, which, naming
):
    prefix = ("diffusion_model.", "")[which]
    unet = modules_of_shapes("unet", listed_shapes(shared_data, UNET_LISTS[base][which]), prefix)
    encoders = [
        module
        for number, name in enumerate(TEXT_ENCODER_LISTS[base], start=1)
        for module in modules_of_shapes(f"te{number}", listed_shapes(shared_data, name))
        if "text_projection" not in module.path
    ]
    modules = expressible([*unet, *encoders], naming)
    alpha = 1.0 if naming.startswith("kohya") else None
    lora = lora_from_tensors("listed", lora_tensors(modules, naming, alpha=alpha, empty=True))
    assert_all_used(explain(lora, tables[base], base, tables={}))


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_the_same_file_reaches_a_diffusers_unet(base):
    table = table_from_shapes(diffusers_unet_shapes(base))
    for unet_naming in ("ldm", "diffusers"):
        modules = unet_modules(base, unet_naming)
        lora = lora_from_tensors("x", lora_tensors(modules, "kohya", alpha=1.0, empty=True))
        assert_all_used(explain(lora, table, "unet", tables={}))


@pytest.mark.parametrize("base", ["sd15", "sd21", "sdxl", "sdxl-refiner"])
def test_one_file_reaches_the_same_weights_in_a_checkpoint_and_in_comfyui(base):
    modules = unet_modules(base) + text_encoder_modules(base)
    lora = lora_from_tensors("x", lora_tensors(modules, "peft", empty=True))
    places = [
        {b.module.lora_key: b.target.canonical for b in bind(lora, table_from_shapes(s)).used()}
        for s in (checkpoint_shapes(base), comfy_shapes(base))
    ]
    assert places[0] == places[1]
    assert len(places[0]) == len(modules)


def test_time_and_label_embeddings_and_the_first_convolution_are_among_the_modules():
    paths = {module.path for module in unet_modules("sdxl", "ldm")}
    assert {"time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2"} <= paths
    assert {"input_blocks.0.0", "out.2", "input_blocks.3.0.op"} <= paths


def one_module(**more):
    """q of SD1.5's first self-attention, rank 2, with tensors by suffix."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    base = {"lora_down.weight": torch.ones(2, 320), "lora_up.weight": torch.ones(320, 2)}
    return {f"{name}.{suffix}": t for suffix, t in (base | more).items() if t is not None}


def explained(tensors, tables, metadata=None):
    return explain(lora_from_tensors("x", tensors, metadata), tables["sd15"], "sd15", tables={})


@pytest.mark.parametrize(
    ("alpha", "scale"), [(None, 1.0), (0.0, 1.0), (1.0, 0.5), (2.0, 1.0), (8.0, 4.0), (-2.0, -1.0)]
)
def test_scale_is_alpha_by_rank_and_one_without_or_with_zero_alpha(tables, alpha, scale):
    stored = None if alpha is None else torch.tensor(alpha)
    (module,) = explained(one_module(alpha=stored), tables).to_json()["modules"]
    assert (module["rank"], module["alpha"], module["scale"]) == (2, alpha, scale)


def test_alpha_zero_is_noted(tables):
    assert any(
        "alpha is 0" in note
        for note in explained(one_module(alpha=torch.tensor(0.0)), tables).notes()
    )


def test_each_module_has_its_own_rank_and_scale(tables):
    """A file that says network_dim 128 and holds ranks 2 and 4."""
    modules = [m for m in unet_modules("sd15") if m.path.endswith("attn1.to_q")][:2]
    tensors = lora_tensors(modules[:1], rank=2, alpha=1.0) | lora_tensors(
        modules[1:], rank=4, alpha=1.0
    )
    report = explained(tensors, tables, {"ss_network_dim": "128", "ss_network_alpha": "64"})
    found = [(m["rank"], m["scale"]) for m in report.to_json()["modules"]]
    assert sorted(found) == [(2, 0.5), (4, 0.25)]


def test_a_second_tensor_for_a_role_spoils_its_module_and_is_reported(tables):
    twin = one_module()
    down = next(iter(twin))
    twin[down.replace("lora_down.weight", "lora_A.weight")] = torch.ones(2, 320)
    report = explained(twin, tables)
    assert report.tensors_used == 0
    assert_accounted_for(report)
    assert all("two tensors for the role down" in row.reason for row in report.unused)


@pytest.mark.parametrize("missing", ["lora_up.weight", "lora_down.weight"])
def test_a_lone_factor_is_reported(tables, missing):
    report = explained(one_module(**{missing: None}, alpha=torch.tensor(1.0)), tables)
    assert {row.reason for row in report.unused} == {
        f"the {'up' if 'up' in missing else 'down'} factor is missing"
    }


def test_a_tucker_core_belongs_to_its_module(tables):
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, 320, 1, 1),
        f"{name}.lora_mid.weight": torch.ones(2, 2, 3, 3),
        f"{name}.lora_up.weight": torch.ones(320, 2, 1, 1),
        f"{name}.alpha": torch.tensor(1.0),
    }
    report = explained(tensors, tables)
    assert_all_used(report)
    assert {row.rule for row in report.rows} == {"scale * up @ (mid x down)"}


def test_the_bias_of_lora_b_changes_the_bias_by_the_scale(tables):
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(2, 320),
        f"{name}.lora_B.weight": torch.ones(320, 2),
        f"{name}.lora_B.bias": torch.ones(320),
    }
    report = explained(tensors, tables, peft_header(2, 4.0))
    assert_all_used(report)
    targets = {m["kind"]: (m["target_key"], m["scale"]) for m in report.to_json()["modules"]}
    owner = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0"
    assert targets == {"lora": (f"{owner}.weight", 2.0), "lora-bias": (f"{owner}.bias", 2.0)}
    bound = next(b for b in report.binding.used() if b.part.kind == "lora-bias")
    delta = report.lora.adapter(bound.module, bound.part).delta(torch.zeros(320))
    assert delta.tolist() == [2.0] * 320


@pytest.mark.parametrize(
    "lora_key",
    [
        "lora_unet_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet__down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q_",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1.to_q",
        "transformer.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    ],
)
def test_malformed_names_of_real_files_reach_their_weight(tables, lora_key):
    tensors = {
        f"{lora_key}.lora_down.weight": torch.ones(2, 320),
        f"{lora_key}.lora_up.weight": torch.ones(320, 2),
    }
    report = explained(tensors, tables)
    assert_all_used(report)
    assert {row.target_key for row in report.rows} == {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    }


def test_an_underscore_before_lora_down_is_read(tables):
    """timohavdk/sd-lora: ``lora_unet_unet_..._to_k_lora_down.weight``."""
    name = "lora_unet_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    tensors = {
        f"{name}_lora_down.weight": torch.ones(2, 320),
        f"{name}_lora_up.weight": torch.ones(320, 2),
    }
    assert_all_used(explained(tensors, tables))


def test_a_half_converted_dora_is_applied_with_its_magnitude(tables):
    """diffusers' convert_state_dict_to_kohya leaves the magnitude under a dotted name."""
    tensors = one_module()
    owner = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1"
    tensors[f"{owner}.to_q.lora_magnitude_vector"] = torch.ones(320)
    report = explained(tensors, tables)
    assert_all_used(report)
    assert [bound.part.kind for bound in report.binding.used()] == ["dora"]


def test_an_alpha_with_a_trailing_underscore_belongs_to_its_module(tables):
    """SimpleTuner, ComfyUI#4347: ``..._attn_to_q_.alpha``."""
    tensors = one_module()
    owner = next(iter(tensors)).removesuffix(".lora_down.weight")
    report = explained(tensors | {f"{owner}_.alpha": torch.tensor(1.0)}, tables)
    assert_all_used(report)
    assert report.to_json()["modules"][0]["scale"] == 0.5


def test_every_naming_calls_the_factors_by_two_names():
    module = unet_modules("sd15")[5]
    for naming in NAMINGS:
        attention = next(m for m in unet_modules("sd15") if is_attention(m))
        down, up = factor_keys(attention if naming == "diffusers-2023" else module, naming)
        assert down != up
