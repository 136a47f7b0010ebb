"""Files that ComfyUI renames before it reads them: we find the same weights, and change them so."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from .test_runtime import flux, random_model  # noqa: F401

only_030 = pytest.mark.comfyui("0.30", "its Flux and Wan, or what it renames, are others")
BOUND = 2e-6  # of max |delta|, beside 1 ulp
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 4,
    "out_dim": 4,
    "dim": 48,
    "ffn_dim": 96,
    "freq_dim": 16,
    "text_dim": 24,
    "num_heads": 2,
    "num_layers": 1,
}


@pytest.fixture(autouse=True)
def inference_mode(comfy):
    """As in ComfyUI's executor."""
    with torch.inference_mode():
        yield


@pytest.fixture
def wan(comfy):
    """A MODEL of ComfyUI's own Wan, one block deep."""
    from comfy import model_base, model_patcher, supported_models

    config = supported_models.WAN21_T2V(dict(WAN))
    config.set_inference_dtype(torch.float32, None)
    model = model_base.WAN21(config, device=torch.device("cpu"))
    random_model(model)
    return model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def factors(name, out, columns, suffixes, seed=0):
    generator = torch.Generator().manual_seed(seed + out + columns)
    down, up = suffixes
    return {
        f"{name}.{down}": torch.randn(3, columns, generator=generator) * 0.3,
        f"{name}.{up}": torch.randn(out, 3, generator=generator) * 0.3,
    }


KOHYA = ("lora_down.weight", "lora_up.weight")
PEFT = ("lora_A.weight", "lora_B.weight")
XLABS = ("down.weight", "up.weight")


def wan_fun_file():
    names = ("cross_attn_k", "self_attn_q", "cross_attn_o")
    tensors = {}
    for seed, name in enumerate(names):
        tensors |= factors(f"lora_unet__blocks_0_{name}", 48, 48, KOHYA, seed)
        tensors[f"lora_unet__blocks_0_{name}.alpha"] = torch.tensor(1.5)
    return tensors


def uso_file():
    """With blocks that our Flux does not have: ComfyUI knows the format by them."""
    shapes = {
        "double_blocks.0.processor.qkv_lora1": (192, 64),
        "double_blocks.0.processor.qkv_lora2": (192, 64),
        "double_blocks.0.processor.proj_lora1": (64, 64),
        "double_blocks.0.processor.proj_lora2": (64, 64),
        "single_blocks.0.processor.qkv_lora": (192, 64),
        "single_blocks.0.processor.proj_lora": (64, 320),
        "double_blocks.18.processor.qkv_lora2": (192, 64),
        "single_blocks.37.processor.qkv_lora": (192, 64),
    }
    tensors = {}
    for seed, (name, (out, columns)) in enumerate(shapes.items()):
        tensors |= factors(name, out, columns, XLABS, seed)
    return tensors


def bfl_file(columns):
    """As Flux.1-Depth-dev-lora; the model's input has 16 columns."""
    tensors = factors("img_in", 64, columns, PEFT)
    tensors |= factors("double_blocks.0.img_attn.qkv", 192, 64, PEFT)
    tensors |= factors("single_blocks.0.linear2", 64, 320, PEFT)
    tensors["img_in.lora_B.bias"] = torch.linspace(-1, 1, 64)
    tensors["double_blocks.0.img_attn.qkv.lora_B.bias"] = torch.linspace(-1, 1, 192)
    tensors["double_blocks.0.img_attn.norm.query_norm.scale"] = torch.linspace(0.5, 2, 32)
    tensors["single_blocks.0.norm.key_norm.scale"] = torch.linspace(0.5, 2, 32)
    return tensors


def apply_node(model, name, strength):
    import nodes

    node = nodes.NODE_CLASS_MAPPINGS["LoraWorkbenchApply"]()
    result = node.execute(model, f"<lora:{name}:{strength}>", mode="merge")["result"]
    return result[0], result[2]


def apply_ours(model, name):
    return apply_node(model, name, 0.8)


def apply_core(model, name):
    import nodes

    return nodes.LoraLoader().load_lora(model, None, f"{name}.safetensors", 0.8, 0.0)[0]


def patched_weights(patcher):
    from comfy import model_management

    model_management.load_models_gpu([patcher])
    state = patcher.model.state_dict()
    weights = {key: state[key].clone() for key in patcher.patches}
    model_management.unload_all_models()
    return weights


def assert_as_core(comfy, model, name, tensors, left_out=()):
    """Equal keys, ``left_out`` aside, and equal weights; returns our report."""
    save_file(tensors, comfy.loras_dir / f"{name}.safetensors")
    base = {key: value.clone() for key, value in model.model.state_dict().items()}
    core = patched_weights(apply_core(model, name))
    patcher, report = apply_ours(model, name)
    ours = patched_weights(patcher)
    assert set(core) - set(ours) == set(left_out)
    assert ours.keys() <= core.keys()
    for key, weight in ours.items():
        delta = (core[key] - base[key]).abs().max()
        assert delta > 0, key
        ulp = torch.nextafter(core[key].abs(), torch.tensor(torch.inf)) - core[key].abs()
        assert bool(((weight - core[key]).abs() <= BOUND * delta + ulp).all()), key
    return report


@only_030
def test_wan_fun_files_are_applied_as_core_applies_them(comfy, wan):
    report = assert_as_core(comfy, wan, "wan_fun", wan_fun_file())
    assert "9 / 9 tensors used" in report


def modulation_file():
    """Differences of parameters that lie beside modules, as distilled Wan LoRAs have them."""
    names = {"blocks.0.modulation": (1, 6, 48), "head.modulation": (1, 2, 48)}
    tensors = {
        f"diffusion_model.{name}.diff": torch.linspace(-1, 1, shape[1] * shape[2]).reshape(shape)
        for name, shape in names.items()
    }
    return tensors | factors("diffusion_model.blocks.0.self_attn.q", 48, 48, PEFT)


@only_030
def test_weights_that_cores_load_passes_over_are_patched_and_restored(comfy, wan):
    """Core takes these patches and never applies them: its weights stay the base's."""
    from comfy import model_management

    save_file(modulation_file(), comfy.loras_dir / "modulation.safetensors")
    base = {key: value.clone() for key, value in wan.model.state_dict().items()}
    passed = ("diffusion_model.blocks.0.modulation", "diffusion_model.head.modulation")
    core = patched_weights(apply_core(wan, "modulation"))
    assert set(passed) < core.keys()
    assert all(torch.equal(core[key], base[key]) for key in passed)

    patcher, report = apply_ours(wan, "modulation")
    assert "4 / 4 tensors used" in report
    assert "stay as they were" not in report
    for key, diff in modulation_file().items():
        if key.endswith(".diff"):
            name = key.removesuffix(".diff")
            wanted = base[name] + 0.8 * diff
            assert torch.allclose(patched_weights(patcher)[name], wanted, rtol=1e-6), name
    other = apply_node(wan, "modulation", 0.3)[0]
    model_management.load_models_gpu([patcher])
    assert other.why_stock(patcher.load_device) is None  # a change touches these weights alone
    model_management.load_models_gpu([other])
    weight = wan.model.state_dict()[passed[1]]
    expected = base[passed[1]] + 0.3 * modulation_file()[f"{passed[1]}.diff"]
    assert torch.allclose(weight, expected, rtol=1e-6)
    model_management.unload_all_models()
    assert all(torch.equal(value, base[key]) for key, value in wan.model.state_dict().items())


@only_030
def test_a_patcher_of_another_class_says_which_weights_it_passes_over(comfy, wan):
    save_file(modulation_file(), comfy.loras_dir / "modulation.safetensors")
    wan.__class__ = type("SomebodysPatcher", (type(wan),), {})
    patcher, report = apply_ours(wan, "modulation")
    assert "2 of the weights above stay as they were" in report
    assert "diffusion_model.blocks.0.modulation, diffusion_model.head.modulation" in report
    base = wan.model.state_dict()["diffusion_model.head.modulation"].clone()
    assert torch.equal(patched_weights(patcher)["diffusion_model.head.modulation"], base)


@only_030
def test_uso_and_xlabs_files_are_applied_as_core_applies_them(comfy, flux):  # noqa: F811
    report = assert_as_core(comfy, flux, "uso", uso_file())
    assert "12 / 16 tensors used" in report


@only_030
def test_xlabs_files_that_core_does_not_know_are_applied_too(comfy, flux):  # noqa: F811
    """Its mark is a whole USO file; x-labs' own have the same names in fewer blocks."""
    tensors = {key: value for key, value in uso_file().items() if "_blocks.0." in key}
    save_file(tensors, comfy.loras_dir / "xlabs.safetensors")
    assert_as_core(comfy, flux, "uso", uso_file())
    whole, some = (apply_ours(flux, name)[0] for name in ("uso", "xlabs"))
    assert whole.patches.keys() == some.patches.keys()


@only_030
def test_bfl_control_files_are_applied_but_for_the_norms_they_replace(comfy, flux):  # noqa: F811
    """On a Flux that takes the control picture already."""
    norms = {
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm.weight",
        "diffusion_model.single_blocks.0.norm.key_norm.weight",
    }
    report = assert_as_core(comfy, flux, "bfl_fits", bfl_file(16), norms)
    assert "8 / 10 tensors used" in report
    assert "set_weight" in report


@only_030
def test_a_bfl_control_file_that_must_widen_the_input_says_so(comfy, flux):  # noqa: F811
    """Without its input layer the model would not see the control picture."""
    save_file(bfl_file(32), comfy.loras_dir / "bfl_wide.safetensors")
    assert "diffusion_model.img_in.weight" in apply_core(flux, "bfl_wide").patches
    with pytest.raises(ValueError, match="reshape_weight") as caught:
        apply_ours(flux, "bfl_wide")
    assert "[64, 16] to [64, 32]" in str(caught.value)
    assert "LoraLoader" in caught.value.fix
    assert "not for this model" not in str(caught.value)
    assert "another base" not in str(caught.value)


def test_a_file_of_set_weight_alone_says_so(comfy, flux):  # noqa: F811
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {f"{name}.set_weight": torch.ones(192, 64)}
    tensors |= factors("diffusion_model.double_blocks.7.img_attn.qkv", 192, 64, PEFT)
    save_file(tensors, comfy.loras_dir / "set.safetensors")
    assert f"{name}.weight" in apply_core(flux, "set").patches
    with pytest.raises(ValueError, match="set_weight") as caught:
        apply_ours(flux, "set")
    assert "LoraLoader" in caught.value.fix


@pytest.fixture
def components(comfy):
    """The component of each encoder's weights, by ComfyUI's name of the encoder."""
    pack = comfy.pack.__name__
    names = importlib.import_module(f"{pack}.hosts.comfy.names")
    weighting = importlib.import_module(f"{pack}.lora_core.weighting").Weighting

    def components(encoders):
        table = names.ComfyNames(None, SimpleNamespace(cond_stage_model=encoders))
        found = {}
        for key in encoders.state_dict():
            if key.endswith(".weight") and "layer_norm" not in key:
                for module in table.find(f"text_encoders.{key.removesuffix('.weight')}"):
                    found.setdefault(key.partition(".")[0], set()).add(module.weight.component)
                    factor = weighting.parse("te2=0").factor(module.weight)
                    assert (factor == 0) == (module.weight.component == "te2")
        assert table.components == set().union(*found.values())
        return {encoder: next(iter(one)) for encoder, one in found.items() if len(one) == 1}

    return components


def on_meta(make, **options):
    return make(device="meta", dtype=torch.float16, dtype_t5=torch.float16, **options)


@only_030
def test_te2_is_the_second_text_encoder_of_models_that_only_core_knows(components):
    from comfy.text_encoders.flux import FluxClipModel
    from comfy.text_encoders.sd3_clip import SD3ClipModel

    assert components(on_meta(FluxClipModel)) == {"clip_l": "te1", "t5xxl": "te2"}
    assert components(on_meta(SD3ClipModel)) == {"clip_l": "te1", "clip_g": "te2", "t5xxl": "te3"}
    without_l = on_meta(SD3ClipModel, clip_l=False)
    assert components(without_l) == {"clip_g": "te2", "t5xxl": "te3"}
    alone = on_meta(SD3ClipModel, clip_l=False, clip_g=False)
    assert components(alone) == {"t5xxl": "te1"}


def test_comfyui_shows_our_errors_under_a_short_name(comfy):
    from execution import full_type_name

    errors = importlib.import_module(f"{comfy.pack.__name__}.lora_core.errors")
    assert full_type_name(errors.LoraError) == "lora_workbench.LoraError"
    assert full_type_name(errors.ShapeMismatchError) == "lora_workbench.ShapeMismatchError"
