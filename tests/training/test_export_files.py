"""Exported files: names, what is refused, what is left on disk, and the forms' headers."""

import json
from dataclasses import replace

import pytest
import torch

from lora_workbench.lora_core.errors import LoraError, ShapeMismatchError, UnsupportedFormatError
from lora_workbench.lora_core.lora import load_lora
from lora_workbench.lora_core.models import Target, table_for_base
from lora_workbench.training.export import (
    BOUNDS,
    TrainedModule,
    TrainingFacts,
    export,
    exported_tensors,
    metadata,
    named_modules,
    trained_modules,
    verify,
)

CANONICAL = {
    "linear": "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight",
    "conv": "input_blocks.4.0.in_layers.2.weight",
    "time": "time_embed.0.weight",
    "te1": "text_model.encoder.layers.3.mlp.fc1.weight",
    "te2": "text_model.encoder.layers.3.self_attn.q_proj.weight",
}


def target_of(table, what):
    component = what if what.startswith("te") else "unet"
    name = CANONICAL["te1" if what == "te1" else what]
    return next(t for t in table.targets if (t.component, t.canonical) == (component, name))


def module_of(target, generator, rank=2, scale=0.5, size=1.0, **more):
    out, columns, *kernel = target.shape
    down = torch.randn(rank, columns, *kernel, generator=generator)
    up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator) * size
    return TrainedModule(target, down, up, scale, **more)


@pytest.fixture
def table():
    return table_for_base("sd15")


@pytest.fixture
def linear(table, generator):
    return module_of(target_of(table, "linear"), generator)


NAMES = {
    ("sd15", "linear"): "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    ("sd15", "conv"): "lora_unet_down_blocks_1_resnets_0_conv1",
    ("sd15", "time"): "lora_unet_time_embedding_linear_1",
    ("sd15", "te1"): "lora_te_text_model_encoder_layers_3_mlp_fc1",
    ("sd21", "te1"): "lora_te_text_model_encoder_layers_3_mlp_fc1",
    ("sdxl", "linear"): "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    ("sdxl", "te1"): "lora_te1_text_model_encoder_layers_3_mlp_fc1",
    ("sdxl", "te2"): "lora_te2_text_model_encoder_layers_3_self_attn_q_proj",
    ("sdxl-refiner", "te1"): "lora_te_text_model_encoder_layers_3_mlp_fc1",
}


@pytest.mark.parametrize(("base", "what"), NAMES)
def test_names_are_kohyas(base, what, generator):
    table = table_for_base(base)
    (name,) = named_modules([module_of(target_of(table, what), generator)], table)
    assert name == NAMES[base, what]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_error_is_within_the_bound_of_the_dtype(dtype, table, generator, tmp_path):
    modules = [module_of(target_of(table, what), generator) for what in ("linear", "conv", "te1")]
    result = export(modules, table, tmp_path / "a.safetensors", dtype=dtype)
    assert 0 <= result.worst_error <= BOUNDS[dtype]
    assert result.worst_error > BOUNDS[dtype] / 20 or dtype == "fp32"
    assert result.warnings == ()
    assert load_lora(result.path).sha256 == result.sha256


def test_a_barely_trained_factor_survives_fp16(table, generator, tmp_path):
    """Numbers of 1e-7 are 0 or 1.2e-7 in fp16."""
    module = module_of(target_of(table, "linear"), generator, size=1e-7)
    assert export([module], table, tmp_path / "a.safetensors").worst_error < BOUNDS["fp16"]


@pytest.mark.parametrize("size", [1e-5, 1e-7, 1e-9])
def test_what_fp16_cannot_hold_is_written_in_fp32(size, table, generator, tmp_path):
    """As after a few steps of plain SGD: no partner has enough to give."""
    module = module_of(target_of(table, "linear"), generator, size=size)
    small = replace(module, down=module.down / module.down.abs().max() * 1e-2)
    result = export([small], table, tmp_path / "lora.safetensors", dtype="fp16")
    assert result.worst_error <= BOUNDS["fp16"]
    stored = load_lora(result.path).file.tensors
    kinds = {info.dtype for name, info in stored.items() if "alpha" not in name}
    assert kinds == {torch.float32 if size < 1e-6 else torch.float16}


def test_pissa_survives_fp16(table, generator, tmp_path):
    """The factors hardly left their start: [B, -B0] [A; A0] in fp16 would be mostly rounding."""
    start = module_of(target_of(table, "linear"), generator)
    step = [torch.randn(t.shape, generator=generator) * 1e-4 for t in (start.down, start.up)]
    module = replace(
        start, down=start.down + step[0], up=start.up + step[1], initial=(start.down, start.up)
    )
    assert export([module], table, tmp_path / "a.safetensors").worst_error < BOUNDS["fp16"]


def test_modules_of_different_alphas_get_one_alpha(table, generator):
    """diffusers applies the most frequent alpha to every attention module of a kohya file."""
    targets = [target_of(table, what) for what in ("linear", "conv", "time")]
    scales = (0.5, 0.5, 0.3)
    modules = [module_of(t, generator, scale=s) for t, s in zip(targets, scales, strict=True)]
    named = named_modules(modules, table)
    tensors = exported_tensors(named, dtype="fp32")
    assert {float(t) for key, t in tensors.items() if key.endswith(".alpha")} == {1.0}
    for name, module in named.items():
        up, down = (tensors[f"{name}.lora_{side}.weight"].flatten(1) for side in ("up", "down"))
        expected = module.scale * module.up.flatten(1) @ module.down.flatten(1)
        torch.testing.assert_close(0.5 * up @ down, expected)


def test_equal_runs_make_equal_files(table, linear, tmp_path):
    header = metadata(TrainingFacts("a", "sd15", rank=2, alpha=1.0))
    first = export([linear], table, tmp_path / "a.safetensors", metadata=header)
    again = export([linear], table, tmp_path / "b.safetensors", metadata=header)
    other = export([linear], table, tmp_path / "c.safetensors", metadata={"ss_seed": "1"})
    assert first.path.read_bytes() == again.path.read_bytes()
    assert first.tensors_sha256 == again.tensors_sha256 == other.tensors_sha256
    assert first.sha256 == again.sha256 != other.sha256


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_nothing_is_overwritten_unless_asked(form, table, linear, generator, tmp_path):
    path = tmp_path / ("lora" if form == "peft" else "lora.safetensors")
    first = export([linear], table, path, form)
    other = module_of(linear.target, generator)
    with pytest.raises(LoraError, match="exists"):
        export([other], table, path, form)
    assert load_lora(path).sha256 == first.sha256
    second = export([other], table, path, form, overwrite=True)
    assert load_lora(path).sha256 == second.sha256 != first.sha256


def test_a_mismatch_names_the_worst_module_and_leaves_no_file(
    table, generator, tmp_path, monkeypatch
):
    modules = [module_of(target_of(table, what), generator) for what in ("linear", "conv")]
    good = verify.load_lora

    def damaged(path):
        """What a reader sees that takes another alpha for the convolution."""
        lora = good(path)
        bad = {k: replace(m, alpha=3.0) for k, m in lora.modules.items() if "conv1" in k}
        lora.modules = {**lora.modules, **bad}
        return lora

    monkeypatch.setattr(verify, "load_lora", damaged)
    with pytest.raises(LoraError) as caught:
        export(modules, table, tmp_path / "a.safetensors", dtype="fp32")
    assert "Worst module: lora_unet_down_blocks_1_resnets_0_conv1" in str(caught.value)
    assert "Modules beyond it: 1" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_factors_that_are_not_finite_leave_no_file(table, linear, tmp_path):
    linear.up[0, 0] = torch.nan
    with pytest.raises(LoraError, match="NaN"):
        export([linear], table, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_factors_of_another_shape_are_refused(table, generator):
    target = target_of(table, "linear")
    with pytest.raises(ShapeMismatchError, match=r"factor 2: \[320, 3\]"):
        TrainedModule(target, torch.zeros(2, target.shape[1]), torch.zeros(320, 3), 1.0)


def test_a_peft_folder_holds_one_component(table, linear, generator, tmp_path):
    text = module_of(target_of(table, "te1"), generator)
    with pytest.raises(LoraError, match="one component"):
        export([linear, text], table, tmp_path / "a", "peft")


def test_the_diffusers_header_says_each_scale(table, generator, tmp_path):
    """Two modules of one rank and scale, one of another rank, one of another scale."""
    what = {"linear": (2, 0.5), "conv": (2, 0.5), "time": (4, 0.25), "te1": (2, 3.0)}
    modules = [module_of(target_of(table, w), generator, *n) for w, n in what.items()]
    path = export(modules, table, tmp_path / "a.safetensors", "diffusers", "fp32").path
    lora = load_lora(path)
    assert sorted(m.scale for m in lora.modules.values()) == [0.25, 0.5, 0.5, 3.0]
    fields = json.loads(lora.metadata["lora_adapter_metadata"])
    assert (fields["unet.r"], fields["unet.lora_alpha"]) == (2, 1.0)
    assert fields["unet.rank_pattern"] == {"time_embedding.linear_1": 4}
    assert fields["unet.alpha_pattern"] == {}
    assert fields["text_encoder.target_modules"] == ["encoder.layers.3.mlp.fc1"]


def dora(table, generator):
    target = target_of(table, "conv")
    magnitude = torch.rand(target.shape[0], generator=generator) + 0.5
    return module_of(target, generator, magnitude=magnitude)


def test_dora_magnitudes_have_the_shapes_that_readers_take(table, generator):
    module = dora(table, generator)
    for form, key, shape in (
        ("kohya", "dora_scale", (640, 1, 1, 1)),
        ("diffusers", "lora_magnitude_vector.weight", (1, 640, 1, 1)),
    ):
        tensors = exported_tensors(named_modules([module], table, form), form)
        (stored,) = [tensor for name, tensor in tensors.items() if name.endswith(key)]
        assert stored.shape == shape
        torch.testing.assert_close(stored.flatten(), module.magnitude)


def test_a_dora_file_is_checked_and_its_readers_are_told(table, generator, tmp_path):
    result = export([dora(table, generator)], table, tmp_path / "a.safetensors", dtype="fp32")
    assert 0 < result.worst_error <= BOUNDS["fp32"]
    assert any("ComfyUI" in text for text in result.warnings)


def test_dora_and_plain_modules_need_kohyas_form(table, linear, generator, tmp_path):
    with pytest.raises(LoraError, match="all modules DoRA or none"):
        export([linear, dora(table, generator)], table, tmp_path / "a.safetensors", "diffusers")


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 6), torch.nn.Linear(6, 4)


TARGETS = {
    "first": Target("first.weight", (6, 4), "unet", "first.weight"),
    "second": Target("second.weight", (4, 6), "unet", "second.weight"),
}


def injected(**options):
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=2, target_modules=["first", "second"], **options)
    return inject_adapter_in_model(config, Small(), "default")


def test_factors_are_peft_parameters_not_copies():
    model = injected(lora_alpha=8, use_rslora=True)
    first, _ = trained_modules(model, TARGETS)
    assert first.scale == pytest.approx(8 / 2**0.5)
    assert first.down.data_ptr() == model.first.lora_A["default"].weight.data_ptr()


@pytest.mark.parametrize("given", [["first"], ["first", "second", "third"]])
def test_every_layer_needs_a_target_and_every_target_a_layer(given):
    targets = {name: TARGETS.get(name, TARGETS["first"]) for name in given}
    with pytest.raises(LoraError, match="are not the trained targets"):
        trained_modules(injected(), targets)


def test_a_bias_of_up_is_refused():
    with pytest.raises(UnsupportedFormatError, match="lora_bias"):
        trained_modules(injected(lora_bias=True), TARGETS)
